"""Sections of a recipe: bin, space and search."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .. import experimental
from ..checks import check_integers
from ..cost.bins import Bin, FlopsBin, KVCacheBin, ParameterBin, WeightBytesBin
from ..errors import RecipeError
from ..fitness.registry import FITNESSES as OWN_FITNESSES
from ..fitness.registry import STAGES
from ..search.algorithms import ALGORITHMS as OWN_ALGORITHMS
from ..search.algorithms import AdditiveSearchConfig, SearchConfig
from .parsing import parse_values

ALGORITHMS: dict[str, type[SearchConfig]] = OWN_ALGORITHMS | experimental.ALGORITHMS
"""The settings of every search algorithm, by its name in a recipe."""
FITNESSES = OWN_FITNESSES | experimental.FITNESSES
"""How to make every fitness, by its name in a recipe."""
PROBING = ("probe", "staged")
"""Fitnesses that train probes."""
BITS_PER_BYTE = "bits-per-byte"
"""The fitness that compares subnets with different vocabularies, on documents."""


@dataclass
class BinSection:
    """The interval in which a cost of the student must lie: its parameters by default."""

    low: float
    high: float
    cost: Literal["parameters", "parameters_without_embeddings", "flops", "weight_bytes", "kv_cache_bytes"] = field(
        default="parameters",
        metadata={
            "help": "Cost to bound: FLOPs and cache bytes of a token, or of a byte of text with several "
            "space.vocab_sizes; weights and cache in 16 bits."
        },
    )

    def __post_init__(self) -> None:
        self.to_bin(1)

    @property
    def is_of_text(self) -> bool:
        """Whether the cost depends on how many tokens a text has."""
        return self.cost in ("flops", "kv_cache_bytes")

    def to_bin(self, block_size: int, tokens_per_byte: Mapping[int, float] | None = None) -> Bin:
        """The bin, for blocks of `block_size` tokens.

        Args:
            block_size (`int`): tokens of a block.
            tokens_per_byte (`Mapping[int, float]`, *optional*): tokens for each byte of text, by the size of the
                vocabulary, if costs are to be those of a byte.
        """
        of_text: dict[str, Any] = {"tokens_per_byte": tokens_per_byte}
        bins: dict[str, Callable[[], Bin]] = {
            "parameters": lambda: ParameterBin(self.low, self.high),
            "parameters_without_embeddings": lambda: ParameterBin(self.low, self.high, embeddings=False),
            "flops": lambda: FlopsBin(self.low, self.high, sequence_length=block_size, **of_text),
            "weight_bytes": lambda: WeightBytesBin(self.low, self.high),
            "kv_cache_bytes": lambda: KVCacheBin(self.low, self.high, **of_text),
        }
        return bins[self.cost]()


@dataclass
class SpaceSection:
    """The search space; sizes are `[from, to, step]`, with `to` included, of dimensions that the architecture has."""

    granularity: Literal["coarse", "fine"] = "coarse"
    layer_wise: bool = True
    stock_only: bool = False
    hidden_size: list[int] | None = None
    num_hidden_layers: list[int] | None = None
    num_attention_heads: list[int] | None = None
    num_key_value_heads: list[int] | None = field(
        default=None, metadata={"help": "Key-value heads of a layer, each kept with its queries, where it has these."}
    )
    num_key_value_groups: list[int] | None = field(
        default=None, metadata={"help": "Queries of each key-value head; all by default."}
    )
    head_dim: list[int] | None = field(default=None, metadata={"help": "Channels of each head; all by default."})
    intermediate_size: list[int] | None = None
    vocab_sizes: list[int] | None = field(
        default=None,
        metadata={
            "help": "Sizes of the vocabulary, as a plain list; all tokens by default. The run ranks the tokens by "
            "their use on training text, and needs fitness: bits-per-byte."
        },
    )
    importance: Literal["magnitude", "activation", "taylor"] | None = field(
        default=None,
        metadata={"help": "Criterion of a fine-grained space's choice of entries; see importance/scores.py."},
    )
    temperature: float = field(default=0.1, metadata={"help": "How far that choice may stray from the scores."})

    def __post_init__(self) -> None:
        self.ranges()
        if self.importance and self.granularity == "coarse":
            raise ValueError("importance needs granularity: fine, a coarse space always keeps the first entries")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number from 0, got {self.temperature}")
        sizes = self.vocab_sizes
        if sizes is not None and (not sizes or min(sizes) < 1 or len({*sizes}) < len(sizes)):
            raise ValueError(f"vocab_sizes must be different numbers of tokens, each at least 1, got {sizes}")

    def ranges(self) -> dict[str, range]:
        """The sizes given, as ranges."""
        ranges = {}
        for name, sizes in vars(self).items():
            if isinstance(sizes, list) and name != "vocab_sizes":
                if len(sizes) != 3 or sizes[2] < 1:
                    raise ValueError(f"{name} must be [from, to, step] with a step of at least 1, got {sizes}")
                ranges[name] = range(sizes[0], sizes[1] + 1, sizes[2])
        return ranges


@dataclass
class SearchSection:
    """The search; in YAML, the algorithm's settings are keys beside its name."""

    algorithm: SearchConfig = field(
        default_factory=AdditiveSearchConfig, metadata={"help": f"One of {', '.join(sorted(ALGORITHMS))}."}
    )
    fitness: Literal[tuple(FITNESSES)] = field(  # type: ignore[valid-type]
        default="perplexity",
        metadata={"help": "Fitness to minimize, the paper's by default. See fitness/ and experimental/."},
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "Blocks evaluated at a time; by default 4,096 tokens on a CPU, 16,384 on another device."},
    )
    probe: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "Fields of `ProbeConfig`; alpha, beta, temperature and learning_rate default to those of training."
        },
    )

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_integers(self, {"batch_size": 1})
        if self.probe and not self.has_probes:
            raise ValueError(f"probe has no effect with fitness: {self.fitness}; use fitness: probe or staged")
        if self.fitness == "staged":
            self._check_stages()

    @property
    def has_probes(self) -> bool:
        """Whether the fitness trains probes."""
        return self.fitness in PROBING

    def _check_stages(self) -> None:
        shares = getattr(self.algorithm, "shares", None)
        if shares is None:
            fields = {name: dataclasses.fields(config) for name, config in sorted(ALGORITHMS.items())}
            staged = [name for name, items in fields.items() if "shares" in (item.name for item in items)]
            raise ValueError(
                f"fitness: staged needs an algorithm that evaluates on shares of the tokens, {' or '.join(staged)}; "
                f"{self.algorithm.name} evaluates on all tokens"
            )
        if len(shares) != len(STAGES):
            raise ValueError(
                f"fitness: staged needs {len(STAGES)} shares, for {', '.join(STAGES)} in this order, got shares: "
                f"{shares}"
            )
        scored = getattr(self.algorithm, "score_share", 1.0)
        if scored not in shares:
            raise ValueError(f"score_share must be one of the shares {shares} with fitness: staged, got {scored}")

    @classmethod
    def parse(cls, values: Any, where: str) -> "SearchSection":
        """Make a section of a mapping that names an algorithm and its settings."""
        if not isinstance(values, dict):
            raise RecipeError(f"{where}: expected keys and values, got {values!r}")
        name = values.get("algorithm", AdditiveSearchConfig.name)
        if not isinstance(name, str) or name not in ALGORITHMS:
            raise RecipeError(f"{where}.algorithm: expected one of {', '.join(sorted(ALGORITHMS))}, got {name!r}")
        algorithm = ALGORITHMS[name]
        hints = typing.get_type_hints(cls) | {"algorithm": str} | typing.get_type_hints(algorithm)
        known = {item.name: hints[item.name] for item in (*dataclasses.fields(cls), *dataclasses.fields(algorithm))}
        parsed = parse_values(known, values, where)
        if "probe" in parsed:
            parsed["probe"] = _parse_probe(parsed["probe"], f"{where}.probe")
        own = {item.name: parsed.pop(item.name) for item in dataclasses.fields(cls) if item.name in parsed}
        if own.get("fitness") == "staged" and "score_share" in known and "score_share" not in parsed:
            shares = parsed.get("shares") or AdditiveSearchConfig().shares
            parsed["score_share"] = shares[min(1, len(shares) - 1)]  # healed: there are too many replacements to probe
        try:
            return cls(**{**own, "algorithm": algorithm(**parsed)})
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Values as in YAML."""
        return {**vars(self), "algorithm": self.algorithm.name, **dataclasses.asdict(self.algorithm)}


def _parse_probe(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check fields of `ProbeConfig`."""
    from ..fitness.probe import ProbeConfig

    parsed = parse_values(typing.get_type_hints(ProbeConfig), values, where)
    try:
        ProbeConfig(**parsed)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error
    return parsed
