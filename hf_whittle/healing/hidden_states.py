"""Hidden states of calibration text: kept in a file, and checked for NaN and Inf."""

from tempfile import TemporaryFile

import numpy as np
import torch

from ..errors import HealingError
from ..files.disk import disk_errors


class HiddenStatesFile:
    """Hidden states `(B, T, channels)` in a temporary file, so that memory does not grow with the number of tokens."""

    def __init__(self, shape: tuple[int, int, int], device: torch.device):
        self._shape, self._device = shape, device
        self._file = TemporaryFile()  # noqa: SIM115, closed by `close`

    def read(self, blocks: range) -> torch.Tensor:
        count = len(blocks) * self._shape[1] * self._shape[2]
        self._file.seek(4 * blocks.start * self._shape[1] * self._shape[2])
        flat = np.frombuffer(bytearray(self._file.read(4 * count)), dtype=np.float32)
        return torch.from_numpy(flat).view(len(blocks), *self._shape[1:]).to(self._device)

    def write(self, blocks: range, values: torch.Tensor) -> None:
        self._file.seek(4 * blocks.start * self._shape[1] * self._shape[2])
        with disk_errors("a temporary file"):
            self._file.write(values.contiguous().cpu().numpy().data)
            self._file.flush()

    def close(self) -> None:
        self._file.close()


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
