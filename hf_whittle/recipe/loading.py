"""The sections `teacher_options` and `supernet_options` of a recipe: arguments of `from_pretrained`."""

import contextlib
import difflib
import inspect
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from ..compat.transformers import check_quantizer, quantization_config
from ..errors import RecipeError
from ..files.paths import expanded

_PLACING = ("auto", "balanced", "balanced_low_0", "sequential")
_DEVICE = re.compile(r"(cpu|cuda|xpu|npu|mps|hpu|mlu|musa)(:\d+)?")
_SIZE = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B", re.IGNORECASE)
_OF_ANY_KEYS = ("torchao", "quark")
"""Quantizers whose settings have keys that depend on other settings."""


@dataclass
class LoadingSection:
    """How a model is loaded: in which precision, on which devices, quantized or not; names as in `from_pretrained`."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = field(
        default=None, metadata={"help": "Precision of the weights: float32 by default, `auto` is the checkpoint's."}
    )
    device_map: str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Device of each module, `cpu` and `disk` included, or auto; by default, all are on the device of "
            "the training."
        },
    )
    max_memory: dict[Any, Any] | None = field(
        default=None, metadata={"help": "Most memory that a device_map such as auto takes of each device."}
    )
    offload_folder: str | None = field(default=None, metadata={"help": "Folder of weights on disk."})
    quantization_config: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of a quantizer of transformers, of the teacher alone."}
    )

    def __post_init__(self) -> None:
        self.offload_folder = None if self.offload_folder is None else expanded(self.offload_folder)
        if self.device_map is None:
            for name in ("max_memory", "offload_folder"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect without device_map; give device_map: auto too")
        elif isinstance(self.device_map, str):
            if self.device_map not in _PLACING and not _DEVICE.fullmatch(self.device_map):
                raise ValueError(
                    f"device_map must be {', '.join(_PLACING)}, a device such as cuda:1, or the device of each module, "
                    f"got {self.device_map!r}"
                )
        else:
            _check_places(self.device_map)
        if self.max_memory is not None:
            if self.device_map not in _PLACING:
                raise ValueError(f"max_memory needs device_map: {' or '.join(_PLACING)}, got {self.device_map!r}")
            _check_memory(self.max_memory)
        if self.quantization_config is not None:
            with contextlib.suppress(ImportError):  # a recipe may be read where it does not run
                self.quantizer_config()

    @property
    def is_default(self) -> bool:
        """Whether nothing is given."""
        return self == LoadingSection()

    @property
    def is_whole(self) -> bool:
        """Whether the weights are in single precision, and where the training is."""
        return self.dtype in (None, "float32") and self.device_map is None and self.quantization_config is None

    @property
    def determining(self) -> dict[str, Any]:
        """The settings that the model's outputs depend on; the others say where it is."""
        return {"dtype": self.dtype or "float32", "quantization_config": self.quantization_config}

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.quantization_config is not None:
            given["quantization_config"] = self.quantizer_config()
        return {"dtype": "float32", **given}

    def quantizer_config(self) -> Any:
        """The settings of the quantizer, as transformers has them.

        Raises:
            ValueError: if transformers has no such quantizer or setting.
            ImportError: if the quantizer's library is missing.
        """
        given = dict(self.quantization_config or {})
        try:
            config = quantization_config(given)
        except ImportError:
            raise
        except Exception as error:  # each class has errors of its own
            raise ValueError(f"quantization_config: {' '.join(str(error).split()) or repr(error)}") from error
        parameters = inspect.signature(type(config)).parameters.values()
        known = {"quant_method", *(each.name for each in parameters if each.kind is not each.VAR_KEYWORD)}
        unknown = next((str(name) for name in given if name not in known), None)
        if unknown is not None and config.quant_method not in _OF_ANY_KEYS:
            nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0)[0]
            raise ValueError(f"quantization_config: unknown key {unknown!r}; did you mean {nearest!r}?")
        return config

    def check_quantizer(self, where: str) -> None:
        """Find out whether this machine has what the quantizer needs.

        Raises:
            RecipeError: if a library or a device is missing; it names the section `where`.
        """
        if self.quantization_config is None:
            return
        try:
            check_quantizer(self.quantizer_config(), self.device_map)
        except (ImportError, RuntimeError, ValueError) as error:
            raise RecipeError(f"{where}.quantization_config: {' '.join(str(error).split())}") from error


def _check_places(device_map: dict[str, Any]) -> None:
    """Raise `ValueError` unless a map has one device of every module that it names."""
    for module, place in device_map.items():
        is_number = isinstance(place, int) and not isinstance(place, bool) and place >= 0
        if not (is_number or place == "disk" or (isinstance(place, str) and _DEVICE.fullmatch(place))):
            raise ValueError(
                f"device_map: {module!r} must be the number of a GPU, a device, cpu or disk, got {place!r}"
            )
        outer = next((other for other in device_map if other != module and is_part(module, other)), None)
        if outer is not None:
            raise ValueError(
                f"device_map: {module!r} is part of {outer!r}, which has a place too, and accelerate cannot place it "
                "apart; name modules of which none is part of another"
            )


def is_part(name: str, module: str) -> bool:
    """Whether a module or weight lies in a module, or is it; `""` is the whole model."""
    return not module or f"{name}.".startswith(f"{module}.")


def _check_memory(max_memory: dict[Any, Any]) -> None:
    """Raise `ValueError` unless devices and sizes are such."""
    for device, size in max_memory.items():
        if not (isinstance(device, int) or device in ("cpu", "disk", "mps")):
            raise ValueError(f"max_memory: a device is the number of a GPU, cpu, disk or mps, got {device!r}")
        if not (isinstance(size, int) or (isinstance(size, str) and _SIZE.fullmatch(size.strip()))):
            raise ValueError(f"max_memory: {device!r} must have a size such as 20GiB, got {size!r}")
