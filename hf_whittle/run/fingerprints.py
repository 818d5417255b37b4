"""What a run is made from, told by its contents, so that it goes on with nothing else."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.documents import documents_fingerprint
from ..distillation.store.files import read_settings
from ..errors import OutputError
from ..files.text import read_json, write_json
from ..fingerprints import checkpoint_fingerprint, tokenizer_fingerprint
from ..recipe.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

INPUTS_FILE = "inputs.json"


def input_fingerprints(
    recipe: Recipe, documents: "Callable[[], Dataset]", tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, str]:
    """A hash of each input of a recipe, by its name in an error.

    Args:
        recipe (`Recipe`): the recipe.
        documents (`Callable`): gives the text, where it is not in local files.
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
    """
    found = {
        f"the teacher {recipe.teacher}": checkpoint_fingerprint(recipe.teacher),
        "the text": documents_fingerprint(documents, recipe.data.dataset, recipe.data.files),
        "the tokenizer": tokenizer_fingerprint(tokenizer),
    }
    if recipe.supernet is not None:
        found[f"the super-network {recipe.supernet}"] = checkpoint_fingerprint(recipe.supernet)
    if recipe.teacher_store is not None:
        settings, _ = read_settings(Path(recipe.teacher_store))
        told = json.dumps(settings.to_dict(), sort_keys=True).encode()
        found[f"the store {recipe.teacher_store}"] = hashlib.sha256(told).hexdigest()
    return found


def check_inputs(folder: Path, now: dict[str, str], *, is_begun: bool) -> None:
    """Note what a run is made from; raise `OutputError` if it was begun with something else.

    Args:
        folder (`Path`): of the run.
        now (`dict[str, str]`): what `input_fingerprints` gives.
        is_begun (`bool`): whether something was made of it before.
    """
    path = folder / INPUTS_FILE
    if is_begun and path.is_file():
        before = read_json(path)
        changed = [name for name, value in now.items() if before.get(name, value) != value]
        if changed:
            raise OutputError(
                f"{folder} holds a run whose inputs have other contents now: {', '.join(changed)}; put back what was "
                "there, choose another output_dir, or remove that folder"
            )
    write_json(path, now)
