"""What of a student's folder is published, under which name, and what it says there."""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    logging,
)

from ..compat import relative_imports
from ..cost.counts import num_parameters
from ..errors import CheckpointError
from ..files.paths import expanded, is_local
from ..files.text import read_json
from ..files.tokenizer import TEMPLATES, TOKENIZER_FILES, names_of_templates, save_tokenizer
from ..healing.config import HEALING_FILE
from ..models.architecture import has_architecture
from ..models.portable import has_names_of_files, make_portable
from ..record.files import RECIPE_FILE
from ..record.lineage import RESULTS_FILE, Lineage
from ..record.source import CARD_FILE, add_license
from ..record.training import points
from ..search.facts import search_facts
from ..search.result import CANDIDATES_FILE, SEARCH_FILE, SearchResult
from ..subnet import SUBNET_FILE
from .card import PICTURES, SubnetModelCardData, is_as_rendered, render_card, write_card
from .lm_eval import LM_EVAL_FILE, reduced
from .recipes import publishable
from .repository import Content, read_content

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

_STUDENT = (
    SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors", "pytorch_model*.bin*",
    "configuration_whittle_*.py", "modeling_whittle_*.py", ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME,
)  # fmt: skip
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.h5", "*.msgpack")
_ANY_MODEL = (*WEIGHTS, "*.safetensors.index.json", "*.bin.index.json", "configuration_*.py", "modeling_*.py")
_MAKING = (
    SUBNET_FILE, HEALING_FILE, SEARCH_FILE, CANDIDATES_FILE, RESULTS_FILE, RECIPE_FILE, LM_EVAL_FILE,
    *(f"{picture}.png" for picture in PICTURES),
)  # fmt: skip


@dataclass(frozen=True)
class Publication:
    """Files of a repository: their names there, and where they are on disk or what is in them."""

    files: dict[str, Content]

    def size(self, name: str) -> int:
        """Bytes of a file."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return read_content(self.files[name])

    @property
    def card(self) -> str:
        """The text of `README.md`."""
        return self.read(CARD_FILE).decode()

    def owned(self, *, is_another: bool, overwrite: bool) -> tuple[str, ...]:
        """Patterns of names that a student has in a repository: what is there by them and not published is stale.

        Args:
            is_another (`bool`): whether the student there was another subnet. Of the same one, such as one that was
                loaded from there and trained on, what tells of its making stays.
            overwrite (`bool`): whether it takes the place of any model.
        """
        making = _MAKING if is_another or overwrite else ()
        tokenizer = (*TOKENIZER_FILES, TEMPLATES) if any(name in self.files for name in TOKENIZER_FILES) else ()
        config = (CONFIG_NAME, GENERATION_CONFIG_NAME) if CONFIG_NAME not in self.files else ()
        return (*_STUDENT, *(_ANY_MODEL if overwrite else ()), *config, *making, *tokenizer)

    @property
    def config(self) -> dict[str, Any]:
        """What says of which architecture the student is."""
        return json.loads(self.read(CONFIG_NAME if CONFIG_NAME in self.files else ADAPTER_CONFIG_NAME))


def publication_of_folder(
    folder: str | Path,
    repo_id: str,
    *,
    card_data: SubnetModelCardData | None = None,
    lm_eval: str | Path | None = None,
    token: str | bool | None = None,
) -> Publication:
    """What is published of a student's folder, such as `hf-whittle run` or a `Trainer` writes.

    Paths of this machine are left out of what is published. `README.md` is rendered for the repository, unless it was
    written or changed by hand: then it is published as it is.

    Args:
        folder (`str` or `Path`): the folder.
        repo_id (`str`): the repository's name, for the card.
        card_data (`SubnetModelCardData`, *optional*): metadata of the card that count more than what is known.
        lm_eval (`str` or `Path`, *optional*): a results file of `lm_eval`, for the card.
        token (`str` or `bool`, *optional*): to read the card of a private base model with.

    Raises:
        CheckpointError: if the folder holds no student, or one without whole weights in safetensors.
        DataError: if `lm_eval` is not what lm_eval wrote.
    """
    folder = Path(expanded(folder)).resolve()
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a student")
    is_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    names = (
        [ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME]
        if is_adapter
        else [CONFIG_NAME, *_weights(folder), *_code(folder)]
    )
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no student to publish: {name} is missing; save the student there")
        if name.endswith(".safetensors"):
            _check_weights(folder / name, {} if is_adapter else _read(folder / CONFIG_NAME))
    if is_adapter:
        _check_base(folder, repo_id)
    others = [GENERATION_CONFIG_NAME, *TOKENIZER_FILES, SUBNET_FILE, HEALING_FILE, CANDIDATES_FILE]
    names += [name for name in (*others, *(f"{picture}.png" for picture in PICTURES)) if (folder / name).is_file()]
    names += names_of_templates(str(folder))
    files: dict[str, Content] = {name: folder / name for name in names}
    lineage = Lineage.load(folder)
    add_license(lineage.results, token)
    # What follows is not published as it lies there.
    rewritten: dict[str, str] = {}
    if lineage.results:
        rewritten[RESULTS_FILE] = _as_json(lineage.results)
    if (folder / SEARCH_FILE).is_file():
        search = _read(folder / SEARCH_FILE)
        rewritten[SEARCH_FILE] = _as_json({**search, "settings": without_archives(search["settings"])})
    if (folder / RECIPE_FILE).is_file():
        rewritten[RECIPE_FILE] = publishable(folder / RECIPE_FILE)
    lm_eval = lm_eval or (folder / LM_EVAL_FILE if (folder / LM_EVAL_FILE).is_file() else None)
    if lm_eval is not None:
        rewritten[LM_EVAL_FILE] = _as_json(reduced(lm_eval))
    files |= {name: text.encode() for name, text in rewritten.items()}
    files[CARD_FILE] = _card(folder, files, repo_id, card_data).encode()
    return Publication(files)


def _card(folder: Path, files: dict[str, Content], repo_id: str, card_data: SubnetModelCardData | None) -> str:
    """The card of what is published; the one on disk if somebody wrote or changed it."""
    path = folder / CARD_FILE
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    if before is not None and not is_as_rendered(before):
        if card_data is not None:
            logger.warning(f"{path} was written by hand and is published as it is, without the card_data given")
        return before
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            if "/" in file:  # a chat template, of which the card tells nothing
                continue
            if isinstance(content, bytes):
                (Path(name) / file).write_bytes(content)
            else:
                (Path(name) / file).symlink_to(content)
        card = render_card(name, repo_id=repo_id, card_data=card_data)
    if not ModelCard(card).data.get("license"):
        logger.warning(
            "the license is not known and left out of the card: what the student was cut from states none that could "
            "be read. Give it as card_data=SubnetModelCardData(license=...), or with --license"
        )
    return card


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); save the student again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no keys and values; save the student again")
    return values


def _weights(folder: Path) -> list[str]:
    """Names of the files of weights, with their index if there are several."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():  # an index beside it is older
        return [SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shards = set(_read(folder / SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values())
        if not shards:
            raise CheckpointError(f"{folder / SAFE_WEIGHTS_INDEX_NAME} names no shards; save the student again")
        return [SAFE_WEIGHTS_INDEX_NAME, *sorted(shards)]
    raise CheckpointError(
        f"{folder} holds no student to publish: there is neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; "
        "save it with save_pretrained"
    )


def _check_weights(path: Path, config: dict[str, Any]) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read, it is truncated or corrupt: {error}; save it again") from error
    if not has_names_of_files(config, names):
        logger.warning(
            f"{path} has tensors under names that only new versions of transformers read, older ones take random "
            "weights for them: load the student and save it again with hf_whittle.save_student"
        )


def _code(folder: Path) -> list[str]:
    """Names of the modeling files of a student that is no stock model."""
    if not (folder / CONFIG_NAME).is_file():
        return []
    names: set[str] = set()
    for reference in _read(folder / CONFIG_NAME).get("auto_map", {}).values():
        names.add(f"{reference.split('.')[0]}.py")
    for name in sorted(names):
        if (folder / name).is_file():
            names |= {Path(path).name for path in relative_imports(folder / name)}
    return sorted(names)


def _check_base(folder: Path, repo_id: str) -> None:
    base = _read(folder / ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
    if base == repo_id:
        raise CheckpointError(
            f"the adapters in {folder} are of {base} itself, and would take the place of the weights they need; choose "
            "another name for them"
        )
    if not base or is_local(base):
        raise CheckpointError(
            f"the adapters in {folder} are of a student that is not on the Hub ({base or 'it has no name'}), where "
            "nobody else could load them: push the student first and train adapters of that, or fold them into it with "
            "DistillationTrainer.merge_adapters() and push the result"
        )


def without_archives(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a search without the folders that a surrogate learned from."""
    algorithm = {name: value for name, value in settings["algorithm"].items() if name != "archives"}
    return {**settings, "algorithm": algorithm}


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def save_student(
    student: "PreTrainedModel",
    folder: str | Path,
    *,
    search_result: SearchResult | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a student with all that is known of it into a folder: what `hf-whittle push` publishes, with its card.

    Args:
        student (`PreTrainedModel`): a student, or adapters of one.
        folder (`str` or `Path`): the folder.
        search_result (`SearchResult`, *optional*): the search that found it, with its archive and pictures.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): its tokenizer.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): most bytes of a file of weights.
    """
    folder = Path(expanded(folder))
    make_portable(student)
    with using_cache(student.config):
        student.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / CARD_FILE).unlink(missing_ok=True)  # peft writes one of its own
    if not hasattr(student, "peft_config"):
        remove_adapters(folder)
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    lineage = Lineage.of(student)
    if search_result is not None:
        if lineage.subnet is None:
            lineage.subnet = search_result.best
        lineage.results["search"] = search_facts(search_result, lineage.subnet)
        search_result.save(folder)
    if has_architecture(student.config):
        known = lineage.results.get("student", {})
        lineage.results["student"] = {**known, "parameters": num_parameters(student.config)}
    lineage.save(folder)
    describe(folder)


@contextlib.contextmanager
def using_cache(config: Any) -> Iterator[None]:
    """A configuration as it is to be published: a `Trainer` unsets its `use_cache`."""
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = True
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before


def remove_adapters(folder: Path) -> None:
    """Remove the adapters of a student that were saved before they were merged."""
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME):
        (folder / name).unlink(missing_ok=True)


def describe(folder: str | Path, card_data: SubnetModelCardData | None = None) -> None:
    """Draw the pictures of a student's folder, and write its card unless somebody wrote one, as its files say."""
    from ..plots import plot_architecture, plot_training

    folder = Path(expanded(folder))
    lineage = Lineage.load(folder)
    if (folder / SEARCH_FILE).is_file():
        search = SearchResult.load(folder)
        search.plot(folder)
        if lineage.subnet not in (None, search.best):  # another one of its subnets
            plot_architecture(lineage.subnet, search.settings["space"]["supernet"], folder / "architecture.png")
    names = {"student": "student", "baseline": "random initialization"}
    curves = {name: points(lineage.results.get(section, {}).get("curve", ())) for section, name in names.items()}
    if len(curves["student"]) > 1:
        target = lineage.results.get("to_match", {}).get("perplexity")
        plot_training({name: curve for name, curve in curves.items() if curve}, folder / "training.png", target)
    card = folder / CARD_FILE
    if not card.is_file() or is_as_rendered(card.read_text(encoding="utf-8")):
        write_card(folder, card_data=card_data)
