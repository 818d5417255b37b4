"""What we write, as other versions of `transformers` and other programs read it."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from ..compat import add_renamings
from .architecture import ARCHITECTURES, architecture_module, get_architecture, has_architecture


def make_portable(model: Any) -> None:
    """Have a model save what files of its architecture say, and load state dicts under the names of both.

    `transformers` saves a model under the names it was loaded by, reads state dicts under those of the model alone, and
    before 5.13 called GPT-NeoX's output matrix `embed_out`, as all files of the Hub do.

    Args:
        model (`PreTrainedModel` or `PeftModel`): any; one without a table stays as it is.
    """
    while hasattr(model, "get_base_model"):  # adapters around it
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
    """Take a weight under its name in files, as `Trainer` gives it when it resumes."""
    for weight in _renamed(model.config.model_type):
        if prefix + weight.file_name in state_dict:
            state_dict[prefix + weight.name] = state_dict.pop(prefix + weight.file_name)


def _renamed(model_type: str) -> list[Any]:
    """The weights whose name in files is another than in the model."""
    return [weight for weight in get_architecture(model_type).weights if weight.file_name is not None]


def oldest_transformers(config: dict[str, Any]) -> str | None:
    """The oldest version of `transformers` that reads a student, if that is known.

    Args:
        config (`dict`): what is in its `config.json`.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        return None
    return architecture_module(model_type, "student").oldest_transformers(config)


def has_names_of_files(config: dict[str, Any], names: Iterable[str]) -> bool:
    """Whether tensors in the files of a student have the names there that all versions of `transformers` read.

    Args:
        config (`dict`): what is in its `config.json`.
        names (`Iterable[str]`): of the tensors.
    """
    model_type = config.get("model_type")
    return model_type not in ARCHITECTURES or not {weight.name for weight in _renamed(model_type)} & set(names)
