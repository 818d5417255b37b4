"""Index-aware modules: what a stock forward calls, reading only the slice of its weights that is active.

A prefix is read through a view (`narrow`), any other choice through `index_select`. What is left out costs nothing
and gets no gradient. While no gradient is recorded, what was gathered is kept for the next forward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..compat import version_of
from ..errors import WeightsError
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
    """Mixin of the index-aware modules."""

    _chosen: tuple[int | torch.Tensor | None, ...] | None = None
    _gathered: dict[str, tuple[torch.Tensor, int, torch.Tensor]] | None = None

    @property
    def chosen(self) -> tuple[int | torch.Tensor | None, ...] | None:
        """For each axis of the weight, the rows in use as `take` reads them; `None` while all are."""
        return self._chosen

    @chosen.setter
    def chosen(self, chosen: tuple[int | torch.Tensor | None, ...] | None) -> None:
        self._chosen, self._gathered = chosen, None

    def in_use(self, name: str) -> torch.Tensor:
        """The part in use of the parameter `name`; its axes are the first axes of the weight.

        What was gathered is not kept where the parameter is another or was changed since, as its version tells. A
        change through `parameter.data` does not tell: leave the block of the subnet before one.
        """
        whole: torch.Tensor = getattr(self, name)
        chosen = (self._chosen or ())[: whole.ndim]
        if torch.compiler.is_compiling():  # the graph gathers anew
            return _take_all(whole, chosen)
        if torch.is_grad_enabled() or whole.is_inference():
            self._gathered = None
            return _take_all(whole, chosen)
        if not any(map(torch.is_tensor, chosen)):
            return _take_all(whole, chosen)
        if self._gathered is None:
            self._gathered = {}
        source, version, part = self._gathered.get(name, (None, None, whole))
        if source is not whole or version != version_of(whole):
            part = _take_all(whole, chosen)
            self._gathered[name] = whole, version_of(whole), part
        return part

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # moves and casts parameters without a new version
        self._gathered = None
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gathered": None}


def _take_all(tensor: torch.Tensor, chosen: tuple[int | torch.Tensor | None, ...]) -> torch.Tensor:
    for axis, rows_in_use in enumerate(chosen):
        tensor = take(tensor, axis, rows_in_use)
    return tensor


class ElasticLinear(Elastic, nn.Linear):
    """A linear layer some output and input features of which are in use."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.chosen is None:
            return super().forward(input)
        return F.linear(input, self.in_use("weight"), None if self.bias is None else self.in_use("bias"))


class ElasticLayerNorm(Elastic, nn.LayerNorm):
    """A layer norm over the channels in use: its statistics are theirs alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.chosen is None:
            return super().forward(input)
        weight = self.in_use("weight")
        return F.layer_norm(input, weight.shape, weight, self.in_use("bias"), self.eps)


class ElasticEmbedding(Elastic, nn.Embedding):
    """An embedding some channels of which are in use; the vocabulary is kept whole."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        embeddings = super().forward(input)
        return embeddings if self.chosen is None else take(embeddings, -1, self.chosen[1])


_ELASTIC = {nn.Linear: ElasticLinear, nn.LayerNorm: ElasticLayerNorm, nn.Embedding: ElasticEmbedding}


def make_elastic(module: nn.Module, name: str = "a module") -> None:
    """Turn a stock module into its index-aware twin, in place: parameters, hooks and buffers stay what they are.

    Raises:
        WeightsError: if there is no twin of it.
    """
    if isinstance(module, Elastic):
        return
    if type(module) not in _ELASTIC:
        known = ", ".join(each.__name__ for each in _ELASTIC)
        raise WeightsError(
            f"{name} is a {type(module).__module__}.{type(module).__qualname__}, of which no slice can be run; a "
            f"super-network is made of {known} alone: load it without quantization and fused kernels, and merge "
            "adapters into it (merge_and_unload)"
        )
    module.__class__ = _ELASTIC[type(module)]
