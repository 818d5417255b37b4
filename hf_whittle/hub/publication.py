"""Files of a student as they are published."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    logging,
)

from ..errors import CheckpointError
from ..files.paths import expanded
from ..files.tokenizer import TEMPLATES, TOKENIZER_FILES, names_of_templates
from ..healing.config import HEALING_FILE
from ..record.files import CARD_FILE, RECIPE_FILE, RESULTS_FILE
from ..record.lineage import Lineage
from ..record.results import Results
from ..record.source import with_license
from ..search.result import CANDIDATES_FILE, SEARCH_FILE
from ..subnet import SUBNET_FILE
from ..vocabulary.of_model import check_has_tokens
from .card import PICTURES, SubnetModelCardData, is_as_rendered, render_card
from .lm_eval import LM_EVAL_FILE, reduced
from .needed_files import needed_files
from .recipes import publishable
from .repository import Content, read_content
from .student_folder import StudentFolder, read_values

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
    """Files of a repository: for each name there, a path on disk or the content."""

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
        """Patterns of the names of a student's files: those in the repository that are not published are stale.

        Args:
            is_another (`bool`): whether the repository holds another subnet. Where it holds the same, such as a student
                that was loaded from there and trained further, the files about its making stay.
            overwrite (`bool`): whether the student replaces any model.
        """
        making = _MAKING if is_another or overwrite else ()
        tokenizer = (*TOKENIZER_FILES, TEMPLATES) if any(name in self.files for name in TOKENIZER_FILES) else ()
        config = (CONFIG_NAME, GENERATION_CONFIG_NAME) if CONFIG_NAME not in self.files else ()
        return (*_STUDENT, *(_ANY_MODEL if overwrite else ()), *config, *making, *tokenizer)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the student, or of adapters."""
        return json.loads(self.read(CONFIG_NAME if CONFIG_NAME in self.files else ADAPTER_CONFIG_NAME))


def publication_of_folder(
    folder: str | Path,
    repo_id: str,
    *,
    card_data: SubnetModelCardData | None = None,
    lm_eval: str | Path | None = None,
    token: str | bool | None = None,
) -> Publication:
    """Files to publish from a student's folder, such as `hf-whittle run` or a `Trainer` writes.

    They hold no paths of this machine. `README.md` is rendered for the repository, unless somebody wrote or changed it:
    then it is published as it is.

    Args:
        folder (`str` or `Path`): the folder.
        repo_id (`str`): the repository's name, for the card.
        card_data (`SubnetModelCardData`, *optional*): metadata of the card that take precedence over what is known.
        lm_eval (`str` or `Path`, *optional*): a results file of `lm_eval`, for the card.
        token (`str` or `bool`, *optional*): to read the card of a private base model with.

    Raises:
        CheckpointError: if the folder holds no student, or one without whole weights in safetensors.
        VocabularyError: if its tokenizer has more tokens than the student.
        DataError: if `lm_eval` has not written that file.
    """
    folder = Path(expanded(folder)).resolve()
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a student")
    names = [*needed_files(folder, repo_id), *_other_files(folder)]
    if CONFIG_NAME in names:
        _check_tokenizer(folder)
    student = StudentFolder.load(folder, lm_eval=lm_eval)
    student = replace(student, lineage=_licensed(student.lineage, token))
    files: dict[str, Content] = {name: folder / name for name in names}
    files |= _rewritten(folder, student.lineage.results)
    if lm_eval is not None or (folder / LM_EVAL_FILE).is_file():
        files[LM_EVAL_FILE] = _as_json(reduced(lm_eval or folder / LM_EVAL_FILE))
    card = _card(folder, replace(student, files=frozenset(files)), repo_id, card_data)
    return Publication({**files, CARD_FILE: card.encode()})


def _check_tokenizer(folder: Path) -> None:
    """Raise `VocabularyError` if a student's folder has a fast tokenizer with more tokens than the student."""
    size, file = read_values(folder / CONFIG_NAME).get("vocab_size"), folder / FULL_TOKENIZER_FILE
    if size is None or not file.is_file():
        return
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    except Exception as error:  # tokenizers: raises no other
        raise CheckpointError(f"{file} is damaged: {error}; save the tokenizer again") from error
    check_has_tokens(size, tokenizer, f"the tokenizer in {folder}")


def _other_files(folder: Path) -> Iterator[str]:
    """Names of files that are published as they are, if there are any."""
    pictures = (f"{picture}.png" for picture in PICTURES)
    names = (GENERATION_CONFIG_NAME, *TOKENIZER_FILES, SUBNET_FILE, HEALING_FILE, CANDIDATES_FILE, *pictures)
    yield from (name for name in names if (folder / name).is_file())
    yield from names_of_templates(str(folder))


def _rewritten(folder: Path, results: Results) -> dict[str, bytes]:
    """Files that are published without what only concerns this machine."""
    files = {}
    if results != Results():
        files[RESULTS_FILE] = _as_json(results.to_dict())
    if (folder / SEARCH_FILE).is_file():
        search = read_values(folder / SEARCH_FILE)
        files[SEARCH_FILE] = _as_json({**search, "settings": without_archives(search["settings"])})
    if (folder / RECIPE_FILE).is_file():
        files[RECIPE_FILE] = publishable(folder / RECIPE_FILE).encode()
    return files


def _licensed(lineage: Lineage, token: str | bool | None) -> Lineage:
    """The lineage with the license of the checkpoints it starts from, if the Hub states one."""
    results = lineage.results
    found: dict[str, Any] = {
        name: with_license(source, token)
        for name in ("supernet", "began_with")
        if (source := getattr(results, name)) is not None
    }
    return replace(lineage, results=replace(results, **found))


def _card(folder: Path, student: StudentFolder, repo_id: str, card_data: SubnetModelCardData | None) -> str:
    """The card to publish; the one on disk if somebody wrote or changed it."""
    path = folder / CARD_FILE
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    if before is not None and not is_as_rendered(before):
        if card_data is not None:
            logger.warning(f"{path} was written by hand and is published as it is, without the card_data given")
        return before
    card = render_card(student, repo_id=repo_id, card_data=card_data)
    if not ModelCard(card).data.get("license"):
        logger.warning(
            "the card states no license: none could be read for the checkpoint that the student was extracted from. "
            "Give one as card_data=SubnetModelCardData(license=...), or with --license"
        )
    return card


def without_archives(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a search without the folders that a surrogate learned from."""
    algorithm = {name: value for name, value in settings["algorithm"].items() if name != "archives"}
    return {**settings, "algorithm": algorithm}


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
