"""Fingerprints of a run's inputs, by their contents, so that a run goes on with the inputs it was begun with."""

import hashlib
import json
from pathlib import Path

from ..distillation.store.files import read_settings
from ..errors import DataError, OutputError
from ..files.text import read_json, write_json
from ..fingerprints import checkpoint_fingerprint, tokenizer_fingerprint
from ..processes import gathered, in_first, is_first_on_machine
from .changes import DEPENDS_ON, has_begun
from .inputs import Inputs

INPUTS_FILE = "inputs.json"


def check_inputs(folder: Path, inputs: Inputs) -> None:
    """Note the fingerprints of the inputs in the folder of a run.

    Raises:
        DataError: if machines have different inputs; it names them.
        OutputError: if a stage has begun with other inputs; it names them.
    """
    found = gathered(input_fingerprints(inputs) if is_first_on_machine() else None)
    in_first(lambda: compare(folder, found))


def compare(folder: Path, found: list[dict[str, str] | None]) -> None:
    """Compare the fingerprints that the first process of each machine found, and those that a run was begun with."""
    path, now = folder / INPUTS_FILE, found[0]
    assert now is not None
    for process, others in enumerate(found):
        changed = [name for name, value in now.items() if others is not None and others[name] != value]
        if changed:
            raise DataError(
                f"process {process} has other contents than process 0: {', '.join(changed)}; give all machines the "
                "same inputs"
            )
    if path.is_file() and any(has_begun(folder, stage) for stage in DEPENDS_ON):
        before = read_json(path)
        changed = [name for name, value in now.items() if before.get(name, value) != value]
        if changed:
            raise OutputError(
                f"{folder} holds a run whose inputs have other contents now: {', '.join(changed)}; restore them, "
                "choose another output_dir, or remove that folder"
            )
    write_json(path, now)


def input_fingerprints(inputs: Inputs) -> dict[str, str]:
    """A hash of each input of a recipe, by its name in an error."""
    recipe = inputs.recipe
    found = {
        f"the teacher {recipe.teacher}": checkpoint_fingerprint(recipe.teacher),
        "the text": inputs.text.fingerprint(),
        "the tokenizer": tokenizer_fingerprint(inputs.tokenizer),
    }
    if recipe.origin != recipe.teacher:
        found["the teacher's tokenizer"] = tokenizer_fingerprint(inputs.teacher_tokenizer)
    if recipe.student is not None:
        found[f"the student {recipe.student}"] = checkpoint_fingerprint(recipe.student)
    if recipe.supernet is not None:
        found[f"the super-network {recipe.supernet}"] = checkpoint_fingerprint(recipe.supernet)
    if recipe.teacher_store is not None:
        settings, _ = read_settings(Path(recipe.teacher_store))
        written = json.dumps(settings.to_dict(), sort_keys=True).encode()
        found[f"the store {recipe.teacher_store}"] = hashlib.sha256(written).hexdigest()
    return found
