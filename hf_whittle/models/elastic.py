"""Modules for a stock forward that read only the active slice of their weights.

A prefix is read through a view (`narrow`), any other choice of rows through `index_select`. Rows that are left out cost
nothing and get no gradient. While no gradient is recorded, gathered rows are kept for the next forward.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..compat.torch import version_of
from ..errors import WeightsError
from .placement import is_offloaded


def take(tensor: torch.Tensor, axis: int, chosen: int | torch.Tensor | None) -> torch.Tensor:
    """The chosen rows of an axis: all of them (`None`), the first (`int`, a view), or any (`torch.Tensor`, a copy)."""
    if chosen is None:
        return tensor
    if isinstance(chosen, int):
        return tensor.narrow(axis, 0, chosen)
    return tensor.index_select(axis, chosen)


class Elastic:
    """Mixin of modules that can run a slice of their weights."""

    output_dim = 0
    """Number of the axis of the weight along which outputs run."""

    _chosen: tuple[int | torch.Tensor | None, ...] | None = None
    _gathered: dict[str, tuple[torch.Tensor, int, torch.Tensor]] | None = None

    @property
    def chosen(self) -> tuple[int | torch.Tensor | None, ...] | None:
        """For each axis of the weight, the rows in use in the form that `take` expects; `None` while all are in use."""
        return self._chosen

    @chosen.setter
    def chosen(self, chosen: tuple[int | torch.Tensor | None, ...] | None) -> None:
        self._chosen, self._gathered = chosen, None

    def in_use(self, name: str) -> torch.Tensor:
        """The slice in use of the parameter `name`; a bias is sliced as the axis of a matrix's outputs is.

        A gathered slice is used again until the parameter is replaced or its version counter moves. Changes through
        `parameter.data` do not move the counter: leave the `active_subnet` block before making them. Slices of
        offloaded parameters are not kept, since they would stay in memory with the whole parameter.
        """
        whole: torch.Tensor = getattr(self, name)
        chosen = self._chosen or ()
        if whole.ndim < len(chosen):
            chosen = (chosen[self.output_dim],)
        if torch.compiler.is_compiling():  # the graph gathers anew
            return _take_all(whole, chosen)
        if torch.is_grad_enabled() or whole.is_inference():
            self._gathered = None
            return _take_all(whole, chosen)
        if not any(map(torch.is_tensor, chosen)) or is_offloaded(self):  # type: ignore[arg-type]
            return _take_all(whole, chosen)
        if self._gathered is None:
            self._gathered = {}
        source, version, part = self._gathered.get(name, (None, None, whole))
        if source is not whole or version != version_of(whole):
            part = _take_all(whole, chosen)
            self._gathered[name] = whole, version_of(whole), part
        return part

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._gathered = None  # parameters are moved and cast, and their version counter stays
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gathered": None}


def _take_all(tensor: torch.Tensor, chosen: tuple[int | torch.Tensor | None, ...]) -> torch.Tensor:
    for axis, rows_in_use in enumerate(chosen):
        tensor = take(tensor, axis, rows_in_use)
    return tensor


class ElasticLinear(Elastic, nn.Linear):
    """A linear layer that can run on some of its output and input features."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.chosen is None:
            return super().forward(input)
        return F.linear(input, self.in_use("weight"), None if self.bias is None else self.in_use("bias"))


class ElasticLayerNorm(Elastic, nn.LayerNorm):
    """A layer norm with statistics over the channels in use alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.chosen is None:
            return super().forward(input)
        weight = self.in_use("weight")
        return F.layer_norm(input, weight.shape, weight, self.in_use("bias"), self.eps)


class ElasticEmbedding(Elastic, nn.Embedding):
    """An embedding that can give some of its rows, by their places among these, and some of their channels."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.chosen is None:
            return super().forward(*args, **kwargs)
        rows, channels = self.chosen
        if rows is not None:
            ids, *others = args
            rows = rows if isinstance(rows, torch.Tensor) else torch.arange(rows)
            args = rows.to(ids.device)[ids], *others  # raises for an id that is left out
        return take(super().forward(*args, **kwargs), -1, channels)


class ElasticTransposed(Elastic):
    """Mixin of a linear layer of `transformers` whose weight has its inputs along the first axis."""

    stock: type[nn.Module]
    output_dim = 1

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.chosen is None:
            return self.stock.forward(self, input)
        weight = self.in_use("weight")
        output = torch.addmm(self.in_use("bias"), input.reshape(-1, input.size(-1)), weight)
        return output.view(*input.shape[:-1], weight.shape[1])


class ElasticNorm(Elastic):
    """Mixin of a norm of `transformers` that runs its stock forward on a slice of its weights."""

    stock: type[nn.Module]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.stock.forward(self if self.chosen is None else _Sliced(self), input)


class _Sliced:
    """A module in which parameters are those in use."""

    def __init__(self, module: Elastic):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return self._module.in_use(name) if name in ("weight", "bias") else getattr(self._module, name)


class ElasticRotary:
    """Mixin of a rotary embedding that can give some of its channels."""

    stock: type[nn.Module]
    chosen: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        rotations = self.stock.forward(self, *args, **kwargs)
        if self.chosen is None:
            return rotations
        self.chosen = self.chosen.to(rotations[0].device)
        return tuple(rotation.index_select(-1, self.chosen) for rotation in rotations)


@lru_cache
def _elastic_class(mixin: Any, stock: Any) -> Any:
    """A class of modules that run a slice of what a class of `transformers` runs whole."""

    def reduce(self: Any) -> tuple[Any, ...]:  # pickle does not find a class that was made here by its name
        state = self.__getstate__() if issubclass(mixin, Elastic) else self.__dict__
        return _new_elastic, (mixin, stock), state

    members = {"stock": stock, "__reduce__": reduce, "__module__": __name__}
    return type(f"Elastic{stock.__name__}", (mixin, stock), members)


def _new_elastic(mixin: type, stock: type) -> Any:
    own = _elastic_class(mixin, stock)
    return own.__new__(own)


_ELASTIC = {
    nn.Linear: ElasticLinear,
    nn.LayerNorm: ElasticLayerNorm,
    nn.Embedding: ElasticEmbedding,
}


def make_elastic(module: nn.Module, name: str, *, is_norm: bool = False, is_transposed: bool = False) -> None:
    """Change the class of a stock module to its elastic one, in place; parameters, hooks and buffers stay.

    Args:
        module (`nn.Module`): the module.
        name (`str`): its name, for an error.
        is_norm (`bool`, *optional*, defaults to `False`): whether it is a norm.
        is_transposed (`bool`, *optional*, defaults to `False`): whether it is a linear layer whose weight has its
            inputs along the first axis.

    Raises:
        WeightsError: if its class has no elastic one.
    """
    if isinstance(module, Elastic):
        return
    stock: Any = type(module)
    is_of_transformers = stock.__module__.startswith("transformers.")
    if stock in _ELASTIC:
        module.__class__ = _ELASTIC[stock]
    elif is_of_transformers and is_transposed:
        module.__class__ = _elastic_class(ElasticTransposed, stock)
    elif is_of_transformers and isinstance(module, nn.Embedding):
        module.__class__ = _elastic_class(ElasticEmbedding, stock)
    elif is_of_transformers and is_norm:
        module.__class__ = _elastic_class(ElasticNorm, stock)
    else:
        known = ", ".join(each.__name__ for each in _ELASTIC)
        raise WeightsError(
            f"{name} is a {stock.__module__}.{stock.__qualname__}, of which no slice can be run; a super-network is "
            f"made of {known} and norms of transformers alone: load it without quantization and fused kernels, and "
            "merge adapters into it (merge_and_unload)"
        )


def make_rotary_elastic(module: nn.Module) -> None:
    """Change the class of a stock rotary embedding to one that can give some of its channels, in place."""
    stock: Any = type(module)
    if not issubclass(stock, ElasticRotary):
        module.__class__ = _elastic_class(ElasticRotary, stock)
