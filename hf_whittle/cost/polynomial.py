"""Costs as polynomials of a model's sizes, made from the architecture's table.

Making a polynomial takes some ten microseconds, applying it one: keep it where many subnets of one super-network are
counted.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..architectures.dimensions import LAYERS, VOCABULARY, Dimension
from ..architectures.registry import get_architecture
from ..architectures.table import Axis, Weight
from ..compat.transformers import layer_configs
from ..errors import BinError
from ..subnet import DIMENSIONS, Shape, SubnetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Monomial = tuple[str, ...]
"""A product of sizes, by the names of their dimensions; see `Polynomial`."""
Frame = tuple[int | None, ...]
"""A size of each dimension that all layers share, in the order of `Architecture.shared`; `None` is the whole one."""

_LAYER_SCOPES = {dimension.name for dimension in DIMENSIONS if dimension.per_layer or dimension is LAYERS}
_PLACES = {d.name: (d.name in _LAYER_SCOPES, place) for place, d in enumerate(DIMENSIONS)}


class Prices(NamedTuple):
    """A cost where the shared sizes are given.

    Args:
        model (`float`): cost of a model without layers.
        layer (`float`): cost of a layer without entries of its own.
        entries (`dict[str, float]`): cost of an entry of each dimension that layers have of their own, by its name.
    """

    model: float
    layer: float
    entries: dict[str, float]

    def base(self, layers: int) -> float:
        """Cost of a model whose layers have no entries of their own."""
        return self.model + layers * self.layer

    def of(self, dimension: Dimension) -> float:
        """Cost of an entry of a dimension that layers have of their own."""
        return self.entries.get(dimension.name, 0)


@dataclass(frozen=True)
class Polynomial:
    """A cost as a function of the sizes of a model.

    It is a sum of coefficients times products of sizes. A dimension of which each layer has entries of its own stands
    for their total over the layers, `num_hidden_layers` for the number of layers; a product has one of these at most.
    No coefficient is negative, so a cost never falls as a size grows.

    Args:
        terms (`Mapping[tuple[str, ...], float]`): coefficients, by names of the dimensions that they are multiplied
            with; `()` is the constant.
        shared (`Mapping[str, int | None]`, *optional*): names of the dimensions that all layers share, in the order of
            `Architecture.shared`, each with the size that a shape has that does not name it. The vocabulary, the last
            of them, is left out where no term has it.
    """

    terms: Mapping[Monomial, float]
    shared: Mapping[str, int | None]

    def __init__(self, terms: Mapping[Monomial, float], shared: Mapping[str, int | None] | None = None):
        object.__setattr__(self, "terms", {_ordered(names): value for names, value in terms.items()})
        named = dict(shared or {"hidden_size": None})
        if not any(VOCABULARY.name in names for names in self.terms):
            named.pop(VOCABULARY.name, None)
        object.__setattr__(self, "shared", named)

    def __hash__(self) -> int:
        return hash((frozenset(self.terms.items()), tuple(self.shared.items())))

    def __call__(self, sized: Shape | SubnetConfig) -> float:
        shape = sized if isinstance(sized, Shape) else sized.shape
        prices = self.prices(tuple([getattr(shape, name) for name in self._names]))
        cost, layers = prices.model, None
        for name, price in prices.entries.items():
            sizes = getattr(shape, name)
            layers = len(sizes)
            cost += price * sum(sizes)
        return cost + prices.layer * (layers or shape.num_hidden_layers)

    def prices(self, frame: Frame) -> Prices:
        """The cost where the shared dimensions have these sizes."""
        found = self._prices.get(frame)
        if found is None:
            found = self._prices[frame] = self._price(frame)
        return found

    def __mul__(self, factor: float) -> "Polynomial":
        return self.with_coefficients(value * factor for value in self.terms.values())

    def with_coefficients(self, coefficients: Iterable[float]) -> "Polynomial":
        """The same terms with other coefficients."""
        return replace(self, terms=dict(zip(self.terms, coefficients, strict=True)))

    @property
    def is_exact(self) -> bool:
        """Whether costs are whole numbers, which are counted without rounding."""
        return all(isinstance(coefficient, int) for coefficient in self.terms.values())

    def of_text(self, tokens_per_byte: Mapping[int, float], vocab_size: int) -> "TextPolynomial":
        """The cost of a byte of text, where this one is that of a token.

        Args:
            tokens_per_byte (`Mapping[int, float]`): tokens for each byte of text, by the size of the vocabulary.
            vocab_size (`int`): entries of the super-network's vocabulary.
        """
        return TextPolynomial(self, vocab_size, dict(tokens_per_byte))

    def to_dict(self) -> dict[str, Any]:
        """The polynomial, for JSON."""
        return {"terms": {" * ".join(names): value for names, value in self.terms.items()}, "shared": self.shared}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Polynomial":
        terms = {tuple(names.split(" * ")) if names else (): value for names, value in values["terms"].items()}
        return cls(terms, values["shared"])

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.shared)

    @cached_property
    def _prices(self) -> dict[Frame, Prices]:
        return {}

    def _price(self, frame: Frame) -> Prices:
        sizes: dict[str, Any] = {
            name: whole if size is None else size
            for (name, whole), size in zip(self.shared.items(), frame, strict=False)  # a frame may have tokens, too
        }
        prices: dict[str | None, float] = {}
        for names, coefficient in self.terms.items():
            scope = names[-1] if names and names[-1] in _LAYER_SCOPES else None
            shared = names if scope is None else names[:-1]
            prices[scope] = prices.get(scope, 0) + coefficient * math.prod(sizes[name] for name in shared)
        model, layer = prices.pop(None, 0), prices.pop(LAYERS.name, 0)
        return Prices(model, layer, {name: price for name, price in prices.items() if name is not None})


class TextPolynomial(Polynomial):
    """A cost of a byte of text: a polynomial for each size of the vocabulary; use `Polynomial.of_text`.

    Args:
        of_token (`Polynomial`): cost of a token.
        whole (`int`): size of the whole vocabulary.
        tokens_per_byte (`dict[int, float]`): tokens for each byte of text, by the size of the vocabulary.
    """

    tokens_per_byte: dict[int, float]

    def __init__(self, of_token: Polynomial, whole: int, tokens_per_byte: dict[int, float]):
        super().__init__(of_token.terms, of_token.shared)
        object.__setattr__(self, "shared", {**self.shared, VOCABULARY.name: whole})
        object.__setattr__(self, "tokens_per_byte", tokens_per_byte)

    def __hash__(self) -> int:
        return hash((super().__hash__(), tuple(self.tokens_per_byte.items())))

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self.tokens_per_byte == getattr(other, "tokens_per_byte", None)

    @property
    def is_exact(self) -> bool:
        return False

    def _price(self, frame: Frame) -> Prices:
        size = self.shared[VOCABULARY.name] if frame[-1] is None else frame[-1]
        if size not in self.tokens_per_byte:
            raise BinError(
                f"tokens_per_byte has no number for a vocabulary of {size} tokens, only for "
                f"{', '.join(map(str, self.tokens_per_byte))}; give one for each size of the space, the whole one "
                "included"
            )
        prices, factor = super()._price(frame), self.tokens_per_byte[size]
        entries = {name: factor * price for name, price in prices.entries.items()}
        return Prices(factor * prices.model, factor * prices.layer, entries)


def parameter_polynomial(config: "PreTrainedConfig", embeddings: bool = True) -> Polynomial:
    """Parameters as a polynomial of the sizes.

    Args:
        config (`PreTrainedConfig`): configuration of the super-network.
        embeddings (`bool`, *optional*, defaults to `True`): whether to count weights along the vocabulary or positions.
    """
    return _polynomial(_counted(config), _own if embeddings else _own_without_embeddings)


def flops_polynomial(config: "PreTrainedConfig", sequence_length: int) -> Polynomial:
    """FLOPs of a forward pass, per token of sequences of `sequence_length`, as a polynomial of the sizes.

    A multiplication and an addition are two FLOPs; attention is counted over the whole sequence, masked or not, as
    PyTorch's `FlopCounterMode` counts it. Norms, activations and softmax are not counted.
    """
    scores = 2 * 2 * sequence_length  # queries by keys, and weights by values
    return _polynomial(_counted(config), _multiplied, scores)


def kv_cache_polynomial(config: "PreTrainedConfig", bytes_per_value: int = 2) -> Polynomial:
    """Bytes of keys and values that generation keeps for each token of context, as a polynomial of the sizes."""
    return _polynomial(_counted(config), _nothing, 0, 2 * bytes_per_value)


def _own(weight: Weight, is_shared: bool) -> int:
    return int(not is_shared)


def _own_without_embeddings(weight: Weight, is_shared: bool) -> int:
    return int(not is_shared and not weight.is_looked_up)


def _multiplied(weight: Weight, is_shared: bool) -> int:
    return 2 * weight.is_matmul


def _nothing(weight: Weight, is_shared: bool) -> int:
    return 0


_Counted = tuple[str, tuple[bool, ...], tuple[tuple[str, int], ...]]


def _counted(config: "PreTrainedConfig") -> _Counted:
    """Everything that a count depends on: architecture, its conditions, and sizes that a subnet may leave unnamed."""
    architecture = get_architecture(config)
    layers = layer_configs(config)
    sizes = architecture.read_sizes(config if layers is None else layers[0])
    return (
        config.model_type,
        tuple([bool(getattr(config, name)) for name in architecture.conditions]),
        tuple([(d.name, size) for d, size in sizes.items() if d.is_optional or not d.is_sliced]),
    )


@lru_cache(maxsize=1024)
def _polynomial(counted: _Counted, weigh: Callable[[Weight, bool], int], heads: int = 0, keys: int = 0) -> Polynomial:
    """Sum over weights of their sizes times `weigh`, and over layers of channels of all heads and of all keys."""
    model_type, conditions, known_sizes = counted
    architecture, known = get_architecture(model_type), dict(known_sizes)
    holds = dict(zip(architecture.conditions, conditions, strict=True))
    terms: dict[Monomial, int] = {}

    def add(axes: Iterable[Axis], in_layer: bool, times: int) -> None:
        factors = [factor for axis in axes for factor in axis.factors]
        names = [factor.name for factor in factors if isinstance(factor, Dimension) and factor.is_sliced]
        if in_layer and not any(name in _LAYER_SCOPES for name in names):
            names.append(LAYERS.name)
        fixed = (known[f.name] if isinstance(f, Dimension) else f for f in factors if _is_fixed(f))
        monomial = _ordered(names)
        terms[monomial] = terms.get(monomial, 0) + times * math.prod(fixed)

    for weight in architecture.weights:
        if weight.exists_if is None or holds[weight.exists_if]:
            add(weight.axes, weight.in_layer, weigh(weight, weight.shared_if is not None and holds[weight.shared_if]))
    add((architecture.heads,), True, heads)
    add((architecture.keys,), True, keys)
    counted_terms = {monomial: size for monomial, size in terms.items() if size}
    return Polynomial(counted_terms, {d.name: known.get(d.name) for d in architecture.shared})


def _is_fixed(factor: Dimension | int) -> bool:
    return not isinstance(factor, Dimension) or not factor.is_sliced


def _ordered(names: Iterable[str]) -> Monomial:
    """Names of shared dimensions, then the one that belongs to layers, of which there is one at most."""
    ordered = tuple(sorted(names, key=_PLACES.__getitem__))
    if sum(name in _LAYER_SCOPES for name in ordered) > 1:
        raise AssertionError(f"no cost is a product of two sizes of a layer, got {' * '.join(ordered)}")
    return ordered
