"""Hidden states of calibration text: kept in a file, and checked for NaN and Inf."""

import weakref
from tempfile import TemporaryFile

import torch

from ..errors import HealingError
from ..files.disk import disk_errors


class HiddenStatesFile:
    """Hidden states `(B, T, channels)` in a temporary file, so that memory does not grow with the number of tokens.

    Args:
        shape (`tuple[int, int, int]`): their shape.
        device (`torch.device`): where they are read to.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): precision of the file.
    """

    def __init__(self, shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype = torch.float32):
        self._shape, self._device, self._dtype = shape, device, dtype
        self._bytes = dtype.itemsize * shape[1] * shape[2]
        self._file = TemporaryFile()  # noqa: SIM115, closed by `close`, or with this object
        self.close = weakref.finalize(self, self._file.close)

    def read(self, blocks: range) -> torch.Tensor:
        """The hidden states of some blocks, in single precision."""
        self._file.seek(self._bytes * blocks.start)
        flat = torch.frombuffer(bytearray(self._file.read(self._bytes * len(blocks))), dtype=self._dtype)
        return flat.view(len(blocks), *self._shape[1:]).to(self._device, torch.float32)

    def write(self, blocks: range, values: torch.Tensor) -> None:
        self._file.seek(self._bytes * blocks.start)
        with disk_errors("a temporary file"):
            self._file.write(values.to("cpu", self._dtype).contiguous().view(torch.uint8).numpy().data)
            self._file.flush()


def check_hidden_states(hidden_states: torch.Tensor, model: str, layer: int) -> None:
    """Raise `HealingError` if hidden states after a layer contain NaN or Inf.

    Args:
        hidden_states (`torch.Tensor`): `(B, T, channels)`.
        model (`str`): the model in words, such as "the teacher".
        layer (`int`): index of the layer in the super-network.
    """
    if not torch.isfinite(hidden_states).all():
        raise HealingError(
            f"the hidden states of {model} contain NaN or Inf after layer {layer}; use a checkpoint whose weights are "
            "finite, and calibration text in its tokens"
        )
