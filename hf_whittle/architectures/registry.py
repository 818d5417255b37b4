"""The architectures that have a table."""

import importlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..compat.transformers import first_layer
from ..errors import ArchitectureError
from .dimensions import HEAD_CHANNELS
from .table import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ARCHITECTURES = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2", "opt", "cohere")
"""The `model_type` of each; its table is the module of this name."""

WHITTLE = "whittle_"
"""What the `model_type` of a student begins with that no stock class can hold."""

_registered: dict[str, Architecture] = {}


def register_architecture(architecture: Architecture) -> None:
    """Make the table of another architecture known in this process.

    Its super-networks, counts, search, healing, extraction and cards are then as those of the architectures in the
    package. Its students must be such that the stock class can hold them: search with `stock_only=True`. Commands and
    other processes do not know it.

    Args:
        architecture (`Architecture`): the table.

    Raises:
        ArchitectureError: if there is another table for its `model_type`.
    """
    model_type = architecture.model_type
    if is_known(model_type) and get_architecture(model_type) != architecture:
        raise ArchitectureError(
            f"there is a table of {model_type!r} already; a changed one must be registered in a fresh process, and one "
            "in hf_whittle stays as it is"
        )
    _registered[model_type] = architecture


def has_student_classes(architecture: Architecture) -> bool:
    """Whether hf_whittle has classes for students of an architecture that no stock class can hold."""
    return architecture.model_type in ARCHITECTURES


def get_architecture(source: "PreTrainedConfig | str") -> Architecture:
    """The table of a configuration or a `model_type`, of a stock model or a student.

    Raises:
        ArchitectureError: if there is no table for it.
    """
    model_type = source if isinstance(source, str) else source.model_type
    check_model_type(model_type, text=getattr(source, "text_config", None))
    return _registered.get(model_type) or _architecture(model_type.removeprefix(WHITTLE))


@lru_cache
def _architecture(name: str) -> Architecture:
    return importlib.import_module(f"{__package__}.{name}").ARCHITECTURE


def check_model_type(model_type: str | None, source: object = None, text: Any = None) -> None:
    """Raise `ArchitectureError` unless there is a table for `model_type`.

    Args:
        model_type (`str`, *optional*): the architecture.
        source (*optional*): the checkpoint, for the error.
        text (`PreTrainedConfig` or `dict`, *optional*): its `text_config`, if it also reads images or sound.
    """
    if is_known(model_type):
        return
    of = f" of {source}" if source else ""
    text_type = text.get("model_type") if isinstance(text, dict) else getattr(text, "model_type", None)
    advice = "use a checkpoint of one of these, or add a table for it as docs/adding-an-architecture.md describes"
    if is_known(text_type):
        advice = f"its language model is a {text_type}; save that alone, as docs/concepts.md#super-networks shows"
    known = ", ".join((*ARCHITECTURES, *_registered))
    raise ArchitectureError(f"the architecture{of} is {model_type!r}; hf_whittle knows {known}: {advice}")


def is_known(model_type: str | None) -> bool:
    """Whether there is a table for a `model_type`."""
    return model_type is not None and (model_type in _registered or model_type.removeprefix(WHITTLE) in ARCHITECTURES)


def has_architecture(config: "PreTrainedConfig") -> bool:
    """Whether the architecture of a configuration has a table."""
    return is_known(config.model_type)


def is_whittle(model_type: str | None) -> bool:
    """Whether a `model_type` is that of a student that no stock class can hold."""
    return model_type is not None and model_type.startswith(WHITTLE)


def class_modules() -> dict[str, str]:
    """The module in hf_whittle of each class that an architecture has here, by the name of the class."""
    modules = {}
    for model_type in ARCHITECTURES:
        prefix, students = get_architecture(model_type).prefix, "models.students"
        modules[f"{prefix}SuperNetForCausalLM"] = "models.supernets"
        modules[f"Whittle{prefix}Config"] = f"{students}.configuration_whittle_{model_type}"
        modules[f"Whittle{prefix}ForCausalLM"] = f"{students}.modeling_whittle_{model_type}"
    return modules


def rotated_channels(config: "PreTrainedConfig") -> int:
    """Number of channels of a head that are rotated, of a stock model or a student."""
    pairs = getattr(config, "rotary_pairs", None)
    rotated = get_architecture(config).rotated
    if pairs is not None:
        return 2 * len(pairs)
    return 0 if rotated is None else rotated(first_layer(config))


def head_channels(config: "PreTrainedConfig") -> list[int]:
    """The channel of a head that each entry of `HEAD_CHANNELS` stands for, in the order of entries."""
    architecture = get_architecture(config)
    channels = list(range(architecture.read_sizes(first_layer(config))[HEAD_CHANNELS]))
    rotated = rotated_channels(config)
    if not architecture.is_interleaved:
        channels[:rotated] = [first + half for first in range(rotated // 2) for half in (0, rotated // 2)]
    return channels
