"""Saved models: checks that they can be saved, and names and settings that all versions of `transformers` read."""

from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from ..compat import add_renamings
from ..errors import CheckpointError
from .architecture import ARCHITECTURES, architecture_module, get_architecture, has_architecture


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

    GPT-NeoX's output matrix is `embed_out` in all files of the Hub and in `transformers` before 5.13. Newer versions
    rename it while they load a file, save it by the name it had there, and load state dicts by the new name only.

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
    architecture_module(model.config, "student").add_former_settings(model.config)


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
    if model_type not in ARCHITECTURES:
        return None
    return architecture_module(model_type, "student").oldest_transformers(config)


def has_portable_names(config: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether a student's files name its tensors as all versions of `transformers` read them.

    Args:
        config (`dict`): content of its `config.json`.
        names (`Iterable[str]`): names of the tensors in its files.
    """
    model_type = config.get("model_type")
    return model_type not in ARCHITECTURES or not {weight.name for weight in _renamed(model_type)} & set(names)
