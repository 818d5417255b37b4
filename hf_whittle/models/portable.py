"""Saved models: checks that they can be saved, and names and settings that all versions of `transformers` read."""

from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from ..architectures.registry import get_architecture, has_architecture, is_known, is_whittle
from ..compat.transformers import add_renamings
from ..errors import CheckpointError
from .students.whittle_configuration import OLDEST_TRANSFORMERS


def check_generation_config(config: Any) -> None:
    """Raise `CheckpointError` if a generation configuration contradicts itself, so that no model is saved with it."""
    if not isinstance(config, GenerationConfig):
        return
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            "the model's generation configuration contradicts itself, so that no model could be saved with it: "
            f"{' '.join(str(error).split())} Correct generation_config.json of the checkpoint, or "
            "model.generation_config"
        ) from error


def make_portable(model: Any) -> None:
    """Save a model's weights by their names in files of the Hub, and load state dicts with these names or its own.

    Some weights have other names in files than in the model, such as a matrix that was renamed in `transformers`
    5.13. Newer versions rename it while they load a file, save it by the name it had there, and load state dicts by the
    new name only.

    Args:
        model (`PreTrainedModel` or `PeftModel`): any model; changed in place if its architecture has a table.
    """
    while hasattr(model, "get_base_model"):  # it is wrapped in adapters
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel) or not has_architecture(model.config):
        return
    _write_file_names(model)
    if not hasattr(model, "_reads_file_names"):
        model.register_load_state_dict_pre_hook(_read_file_names)
        model._reads_file_names = True  # type: ignore[assignment]
    _add_former_settings(model.config)


def _add_former_settings(config: Any) -> None:
    """Add the settings of a stock model under the names that older versions of transformers read."""
    architecture = get_architecture(config)
    for name in architecture.former_names:
        vars(config).pop(name, None)
    if not is_whittle(config.model_type):
        vars(config).update(architecture.former_settings(config))


def _write_file_names(model: Any) -> None:
    renamings = {
        rf"^{weight.file_name.removesuffix('.weight')}\.": weight.name.removesuffix("weight")
        for weight in _renamed(model.config.model_type)
    }
    add_renamings(model, renamings)


def _read_file_names(model: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename weights that have their names in files, as in state dicts of a `Trainer` that resumes."""
    for weight in _renamed(model.config.model_type):
        if prefix + weight.file_name in state_dict:
            state_dict[prefix + weight.name] = state_dict.pop(prefix + weight.file_name)


def _renamed(model_type: str) -> list[Any]:
    """The weights whose names in files and in the model differ."""
    return [weight for weight in get_architecture(model_type).weights if weight.file_name is not None]


def oldest_transformers(config: dict[str, Any]) -> str | None:
    """The oldest version of `transformers` that reads a student; `None` if its architecture has no table.

    Args:
        config (`dict`): content of its `config.json`.
    """
    model_type = config.get("model_type")
    if model_type is None or not is_known(model_type):
        return None
    return OLDEST_TRANSFORMERS if is_whittle(model_type) else get_architecture(model_type).oldest_transformers(config)


def has_portable_names(config: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether a student's files name its tensors as all versions of `transformers` read them.

    Args:
        config (`dict`): content of its `config.json`.
        names (`Iterable[str]`): names of the tensors in its files.
    """
    model_type = config.get("model_type")
    return (
        model_type is None
        or not is_known(model_type)
        or not {weight.name for weight in _renamed(model_type)} & set(names)
    )
