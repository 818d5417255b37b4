"""Losses between hidden states: the output of each student layer and of the teacher layer it was extracted from."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..architectures.registry import get_architecture
from ..subnet import SubnetConfig

HIDDEN_LOSSES = ("mse", "cosine")


class HiddenStateLoss(nn.Module):
    """Distance of the student's projected hidden states from the teacher's, summed over rows, averaged over layers.

    Each layer has a projection to the teacher's channels, trained with the student but not part of it. At first it maps
    each channel of the student to the teacher channel it was extracted from.

    Args:
        subnet (`SubnetConfig`): layers and channels of the teacher that the student was extracted from.
        sizes (`tuple[int, int]`): channels of the student and of the teacher.
        kind (`str`): `"mse"`, mean squared difference over channels (arXiv 1909.10351), or `"cosine"`, 1 minus the
            cosine.
    """

    def __init__(self, subnet: SubnetConfig, sizes: tuple[int, int], kind: str = "mse"):
        super().__init__()
        self.kind = kind
        self.layers = subnet.layers
        channels = subnet.hidden_size
        kept = torch.arange(channels) if isinstance(channels, int) else torch.tensor(channels)
        projections = [nn.Linear(*sizes, bias=False) for _ in self.layers]
        for projection in projections:
            nn.init.zeros_(projection.weight)
            with torch.no_grad():
                projection.weight[kept, torch.arange(len(kept))] = 1
        self.projections = nn.ModuleList(projections)

    def forward(
        self, student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], rows: torch.Tensor
    ) -> torch.Tensor:
        """Sum over the given rows, scalar.

        Args:
            student (`Sequence[torch.Tensor]`): the output of each student layer, `(batch, length, channels)`.
            teacher (`Sequence[torch.Tensor]`): the output of every teacher layer, in the same form.
            rows (`torch.Tensor`): indices of rows with a label, among `batch * length`.
        """
        total = torch.zeros((), device=rows.device)
        for hidden_states, layer, projection in zip(student, self.layers, self.projections, strict=True):
            own = projection(hidden_states.flatten(0, 1)[rows].float()).float()
            other = teacher[layer].to(rows.device).flatten(0, 1)[rows].float()
            if self.kind == "mse":
                total = total + F.mse_loss(own, other, reduction="none").mean(-1).sum()
            else:
                total = total + (1 - F.cosine_similarity(own, other, dim=-1)).sum()
        return total / len(self.layers)


@contextlib.contextmanager
def layer_outputs(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Inside the block, a forward pass appends the output of each layer to the list, in order."""
    outputs: list[torch.Tensor] = []

    def append(module: nn.Module, arguments: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(append) for layer in _layers(model)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _layers(model: Any) -> Iterator[nn.Module]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # without adapters
    return iter(base.get_submodule(get_architecture(base.config).layers))
