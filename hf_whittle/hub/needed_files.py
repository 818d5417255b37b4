"""Files without which a student cannot be published, and whether they are whole."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    logging,
)

from ..compat.transformers import relative_imports
from ..errors import CheckpointError
from ..files.paths import is_local
from ..models.portable import has_portable_names
from .student_folder import read_values

logger = logging.get_logger(__name__)


def needed_files(folder: Path, repo_id: str) -> list[str]:
    """Names of the configuration, weights and modeling files of a student, or of adapters.

    Args:
        folder (`Path`): the student's folder.
        repo_id (`str`): the repository it is to be published in.

    Raises:
        CheckpointError: if one is missing, truncated or corrupt, or if adapters belong to a student that is not on the
            Hub.
    """
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        names = [ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME]
        config: dict[str, Any] = {}
    else:
        config = read_values(folder / CONFIG_NAME)
        names = [CONFIG_NAME, *_weights(folder), *_code(folder, config)]
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no student to publish: {name} is missing; save the student there")
        if name.endswith(".safetensors"):
            _check_weights(folder / name, config)
    if ADAPTER_CONFIG_NAME in names:
        _check_base(folder, repo_id)
    return names


def _weights(folder: Path) -> list[str]:
    """Names of the files of weights, with their index if there are several."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():  # an index beside it is older
        return [SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        raise CheckpointError(
            f"{folder} holds no student to publish: there is neither {SAFE_WEIGHTS_NAME} nor "
            f"{SAFE_WEIGHTS_INDEX_NAME}; save it with save_pretrained"
        )
    shards = set(read_values(index).get("weight_map", {}).values())
    if not shards:
        raise CheckpointError(f"{index} names no shards; save the student again")
    return [SAFE_WEIGHTS_INDEX_NAME, *sorted(shards)]


def _check_weights(path: Path, config: dict[str, Any]) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}; save the student again") from error
    if not has_portable_names(config, names):
        logger.warning(
            f"{path} has names of tensors that only new versions of transformers know; older ones silently use random "
            "weights instead. Load the student and save it again with hf_whittle.save_student"
        )


def _code(folder: Path, config: dict[str, Any]) -> list[str]:
    """Names of the modeling files of a student that no stock model can hold."""
    names = {f"{reference.split('.')[0]}.py" for reference in config.get("auto_map", {}).values()}
    for name in sorted(names):
        if (folder / name).is_file():
            names |= {Path(path).name for path in relative_imports(folder / name)}
    return sorted(names)


def _check_base(folder: Path, repo_id: str) -> None:
    base = read_values(folder / ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
    if base == repo_id:
        raise CheckpointError(
            f"the adapters in {folder} belong to {base} itself and would replace the weights they need; choose another "
            "name for them"
        )
    if not base or is_local(base):
        raise CheckpointError(
            f"the adapters in {folder} belong to a student that is not on the Hub ({base or 'it has no name'}), so "
            "nobody else could load them: push the student first and train adapters of that, or merge them with "
            "DistillationTrainer.merge_adapters() and push the result"
        )
