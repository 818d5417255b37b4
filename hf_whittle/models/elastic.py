"""Index-aware modules: what a stock forward calls, reading only the slice of its weights that is active.

A prefix is read through a view (`narrow`), any other choice through `index_select`. What is left out costs nothing
and gets no gradient.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..subnet import Kept


def rows(kept: Kept, block: int = 1, device: torch.device | str | None = None) -> int | torch.Tensor:
    """Rows of an axis that kept entries of `block` adjacent rows each take.

    Returns:
        `int` or `torch.Tensor`: how many first rows, or an `int64` vector of row indices.
    """
    if isinstance(kept, int):
        return kept * block
    starts = torch.tensor(kept, dtype=torch.long, device=device) * block
    return (starts[:, None] + torch.arange(block, device=device)).flatten()


def take(tensor: torch.Tensor, axis: int, chosen: int | torch.Tensor | None) -> torch.Tensor:
    """The chosen rows of an axis: all (`None`), the first ones (`int`, a view), or any (`torch.Tensor`, a copy)."""
    if chosen is None:
        return tensor
    if isinstance(chosen, int):
        return tensor.narrow(axis, 0, chosen)
    return tensor.index_select(axis, chosen)


class Elastic:
    """Mixin of the index-aware modules.

    `chosen` holds, for each axis of the weight, the rows in use as `take` reads them; it is `None` while the module
    runs at full width.
    """

    chosen: tuple[int | torch.Tensor | None, ...] | None = None


class ElasticLinear(Elastic, nn.Linear):
    """A linear layer some output and input features of which are in use."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.chosen is None:
            return super().forward(input)
        out_features, in_features = self.chosen
        weight = take(take(self.weight, 0, out_features), 1, in_features)
        bias = None if self.bias is None else take(self.bias, 0, out_features)
        return F.linear(input, weight, bias)


class ElasticLayerNorm(Elastic, nn.LayerNorm):
    """A layer norm over the channels in use: its statistics are theirs alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.chosen is None:
            return super().forward(input)
        weight, bias = take(self.weight, 0, self.chosen[0]), take(self.bias, 0, self.chosen[0])
        return F.layer_norm(input, weight.shape, weight, bias, self.eps)


class ElasticEmbedding(Elastic, nn.Embedding):
    """An embedding some channels of which are in use; the vocabulary is kept whole."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        embeddings = super().forward(input)
        return embeddings if self.chosen is None else take(embeddings, -1, self.chosen[1])


_ELASTIC = {nn.Linear: ElasticLinear, nn.LayerNorm: ElasticLayerNorm, nn.Embedding: ElasticEmbedding}


def make_elastic(module: nn.Module) -> None:
    """Turn a stock module into its index-aware twin, in place: parameters, hooks and buffers stay what they are."""
    if not isinstance(module, Elastic):
        module.__class__ = _ELASTIC[type(module)]
