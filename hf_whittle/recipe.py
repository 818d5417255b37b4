"""Recipes: one YAML file that says what `hf-whittle run` does, checked key by key."""

import dataclasses
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .checks import check_integers
from .cost.bins import Bin, FlopsBin, KVCacheBin, ParameterBin, WeightBytesBin
from .errors import RecipeError
from .files.paths import expanded, is_local
from .files.text import write_text
from .files.yaml import as_yaml, read_yaml
from .healing.config import HealingConfig
from .search import ALGORITHMS, AdditiveSearchConfig, SearchConfig
from .typed_values import parse, parse_values

if typing.TYPE_CHECKING:
    from .distillation.config import DistillationConfig

FITNESSES = (
    "perplexity", "kl", "healed-perplexity", "probe", "staged",
    "magnitude", "importance", "gradient-norm", "snip", "synflow", "jacobian-covariance",
)  # fmt: skip
STAGES = ("perplexity", "healed-perplexity", "probe")
"""The fitnesses of a staged one, for the shares of its algorithm in their order."""
RECIPE_FILE = "recipe.yaml"
TRAINING_DEFAULTS: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 0.04,
    "eval_on_start": True,
    "save_steps": 0.1,
    "save_total_limit": 1,
    "logging_steps": 0.02,
    "include_num_input_tokens_seen": "all",
    "lr_scheduler_type": "cosine",
    "report_to": "none",
}


@dataclass
class DataSection:
    """The text: a dataset of the Hub or on disk, files, or text that is on every machine."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Name on the Hub, a local folder, or `python-standard-library`."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    split: str = field(default="train", metadata={"help": "Split of the dataset; `train[:1%]` takes a part."})
    files: list[str] | None = field(
        default=None,
        metadata={"help": "Text files, a document each, or tables with a column of text; or patterns of them."},
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    document_column: str | None = field(
        default=None, metadata={"help": "Column that names a document, to hold out by; the text itself by default."}
    )
    block_size: int = field(default=1024, metadata={"help": "Tokens in a block."})
    search_fraction: float = field(default=0.01, metadata={"help": "Share of the documents the search is held on."})
    test_fraction: float = field(default=0.01, metadata={"help": "Share of the documents results are reported on."})
    search_tokens: int = field(default=65536, metadata={"help": "Most tokens a candidate is evaluated on."})
    test_tokens: int = field(default=262144, metadata={"help": "Most tokens an evaluation of training reads."})
    calibration_tokens: int = field(default=131072, metadata={"help": "Most training tokens that healing fits to."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize."})

    def __post_init__(self) -> None:
        if self.dataset is not None:
            self.dataset = expanded(self.dataset)
        if self.files is not None:
            self.files = [expanded(path) for path in self.files]
        check_integers(self, {"block_size": 2, "search_tokens": 1, "test_tokens": 1, "calibration_tokens": 1})
        if self.num_proc is not None:
            check_integers(self, {"num_proc": 1})
        for name in ("search_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")


@dataclass
class BinSection:
    """The interval of a cost that the student must lie in: parameters, or any other."""

    low: float
    high: float
    cost: Literal["parameters", "parameters_without_embeddings", "flops", "weight_bytes", "kv_cache_bytes"] = field(
        default="parameters",
        metadata={"help": "What is counted: FLOPs and cache bytes of a token, weights and cache in 16 bits."},
    )

    def __post_init__(self) -> None:
        self.to_bin(1)

    def to_bin(self, block_size: int) -> Bin:
        """The bin, for blocks of `block_size` tokens."""
        bins: dict[str, Callable[[], Bin]] = {
            "parameters": lambda: ParameterBin(self.low, self.high),
            "parameters_without_embeddings": lambda: ParameterBin(self.low, self.high, embeddings=False),
            "flops": lambda: FlopsBin(self.low, self.high, sequence_length=block_size),
            "weight_bytes": lambda: WeightBytesBin(self.low, self.high),
            "kv_cache_bytes": lambda: KVCacheBin(self.low, self.high),
        }
        return bins[self.cost]()


@dataclass
class SpaceSection:
    """The search space; sizes are `[from, to, step]`, `to` included."""

    granularity: Literal["coarse", "fine"] = "coarse"
    layer_wise: bool = True
    stock_only: bool = False
    hidden_size: list[int] | None = None
    num_hidden_layers: list[int] | None = None
    num_attention_heads: list[int] | None = None
    intermediate_size: list[int] | None = None
    importance: Literal["magnitude", "activation", "taylor"] | None = field(
        default=None, metadata={"help": "Criterion by which a fine-grained space chooses entries; see importance.py."}
    )
    temperature: float = field(default=0.1, metadata={"help": "How far such a choice may stray from the scores."})

    def __post_init__(self) -> None:
        self.ranges()
        if self.importance and self.granularity == "coarse":
            raise ValueError("importance needs granularity: fine, a coarse space always keeps the first entries")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number from 0, got {self.temperature}")

    def ranges(self) -> dict[str, range]:
        """The sizes given, as ranges."""
        ranges = {}
        for name, sizes in vars(self).items():
            if isinstance(sizes, list):
                if len(sizes) != 3 or sizes[2] < 1:
                    raise ValueError(f"{name} must be [from, to, step] with a step of at least 1, got {sizes}")
                ranges[name] = range(sizes[0], sizes[1] + 1, sizes[2])
        return ranges


@dataclass
class SearchSection:
    """The search; in YAML, the settings of the algorithm stand beside its name."""

    algorithm: SearchConfig = field(
        default_factory=AdditiveSearchConfig, metadata={"help": f"One of {', '.join(sorted(ALGORITHMS))}."}
    )
    fitness: Literal[FITNESSES] = field(  # type: ignore[valid-type]
        default="healed-perplexity",
        metadata={"help": "What is minimised; perplexity is the paper's. See fitness.py, healing and proxies.py."},
    )
    batch_size: int = field(default=16, metadata={"help": "Blocks evaluated at a time."})
    probe: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "Fields of `ProbeConfig`; alpha, beta, temperature and learning_rate default to those of training."
        },
    )

    def __post_init__(self) -> None:
        check_integers(self, {"batch_size": 1})
        if self.probe and self.fitness not in ("probe", "staged"):
            raise ValueError(f"probe has no effect with fitness: {self.fitness}; use fitness: probe or staged")
        if self.fitness == "staged":
            self._check_stages()

    def _check_stages(self) -> None:
        shares = getattr(self.algorithm, "shares", None)
        if shares is None:
            fields = {name: dataclasses.fields(config) for name, config in sorted(ALGORITHMS.items())}
            staged = [name for name, items in fields.items() if "shares" in (item.name for item in items)]
            raise ValueError(
                f"fitness: staged needs an algorithm that evaluates on shares of the tokens, {' or '.join(staged)}; "
                f"{self.algorithm.name} evaluates on all of them"
            )
        if len(shares) != len(STAGES):
            raise ValueError(
                f"fitness: staged takes {', '.join(STAGES)} for the shares, which must then be {len(STAGES)}, got "
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
            parsed["score_share"] = shares[min(1, len(shares) - 1)]  # healed: replacements are too many to probe
        try:
            return cls(**{**own, "algorithm": algorithm(**parsed)})
        except ValueError as error:
            raise RecipeError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "algorithm": self.algorithm.name, **dataclasses.asdict(self.algorithm)}


@dataclass
class Recipe:
    """What `hf-whittle run` does.

    Args:
        teacher (`str`): checkpoint the student learns from: a name on the Hub or a local folder.
        output_dir (`str`): folder of the results.
        data (`DataSection`): the text.
        bin (`BinSection`): parameters of the student.
        supernet (`str`, *optional*): checkpoint the student is cut from; the teacher by default.
        space (`SpaceSection`): the search space.
        search (`SearchSection`): the search.
        training (`dict`): fields of `DistillationConfig`.
        teacher_store (`str`, *optional*): folder that `hf-whittle store-logits` wrote for this recipe; the student
            learns from it instead of the running teacher.
        heal (`bool` or `HealingConfig`, *optional*, defaults to `True`): whether and how to heal the student before
            it is trained; in YAML, `true` or a mapping.
        baseline (`bool` or `dict`, *optional*, defaults to `False`): whether to train the same architecture from random
            initialization on the same tokens too; a mapping has the fields of `DistillationConfig` in which that
            training differs, such as the learning rate that is best for it.
    """

    teacher: str
    output_dir: str
    data: DataSection
    bin: BinSection
    supernet: str | None = None
    space: SpaceSection = field(default_factory=SpaceSection)
    search: SearchSection = field(default_factory=SearchSection)
    training: dict[str, Any] = field(default_factory=dict)
    teacher_store: str | None = None
    heal: bool | HealingConfig = True
    baseline: bool | dict[str, Any] = False

    def __post_init__(self) -> None:
        self.teacher, self.output_dir = expanded(self.teacher), expanded(self.output_dir)
        self.supernet = None if self.supernet is None else expanded(self.supernet)
        self.teacher_store = None if self.teacher_store is None else expanded(self.teacher_store)
        if self.heal is True:
            self.heal = HealingConfig()

    @classmethod
    def load(cls, path: str | Path, **overrides: Any) -> "Recipe":
        """Read a recipe from a YAML file.

        Args:
            path (`str` or `Path`): the file.
            overrides: top-level keys that replace those of the file.

        Raises:
            RecipeError: if a key is unknown (naming the nearest valid one), missing or of the wrong type.
        """
        values = read_yaml(path)
        return cls.from_dict(values | {name: value for name, value in overrides.items() if value is not None})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Check a mapping and make it a recipe; errors as for `load`."""
        recipe = parse(cls, values, "")
        sources = [recipe.data.dataset, recipe.data.files]
        if sum(source is not None for source in sources) != 1:
            raise RecipeError("data: give either dataset or files")
        for name in ("load_best_model_at_end", "save_only_model"):
            if recipe.training.get(name):
                raise RecipeError(f"training.{name}: a run publishes its last step and goes on exactly; leave it out")
        for name in recipe.training:
            if name == "push_to_hub" or str(name).startswith("hub_"):
                raise RecipeError(
                    f"training.{name}: a run is published when it is done, by `hf-whittle push`, which takes the token "
                    "of `hf auth login` or HF_TOKEN; leave it out"
                )
        recipe.training = parse_values(_training_hints(), recipe.training, "training")
        recipe._check_training("training", {})
        if isinstance(recipe.baseline, dict):
            recipe.baseline = parse_values(_training_hints(), recipe.baseline, "baseline")
            for name in ("beta", "hidden_weight", "load_best_model_at_end", "save_only_model"):
                if name in recipe.baseline:
                    raise RecipeError(
                        f"baseline.{name}: a baseline learns from text alone, to its last step; leave it out"
                    )
            recipe._check_training("baseline", recipe.baseline)
        return recipe

    def _check_training(self, where: str, overrides: dict[str, Any]) -> None:
        try:
            self.training_arguments(self.output_dir, **overrides)
        except Exception as error:  # of transformers, accelerate or a library that is missing
            raise RecipeError(f"{where}: {' '.join(str(error).split()) or repr(error)}") from error

    def training_arguments(self, folder: str | Path, **overrides: Any) -> "DistillationConfig":
        """`DistillationConfig` of a training into a folder: the defaults of a run, the recipe's values, overrides."""
        import torch

        from .distillation.config import DistillationConfig

        values = {**TRAINING_DEFAULTS, "use_cpu": not torch.cuda.is_available(), **self.training, **overrides}
        args = DistillationConfig(**values, output_dir=str(folder))
        for name in ("eval_steps", "save_steps", "logging_steps"):
            value = getattr(args, name)
            if args.max_steps > 0 and value is not None and value < 1:  # else they seem to differ from a checkpoint's
                setattr(args, name, math.ceil(args.max_steps * value))
        return args

    def to_dict(self) -> dict[str, Any]:
        values = {**dataclasses.asdict(self), "search": self.search.to_dict()}
        if isinstance(self.heal, HealingConfig):
            values["heal"]["ridge"] = list(self.heal.ridge)
        return values

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, every value spelled out."""
        write_text(path, as_yaml(self.to_dict()))


def publishable(path: str | Path) -> str:
    """A recipe's file, as YAML in which paths of this machine are their last name, after `./`.

    It need not be one that can be run here.

    Raises:
        RecipeError: if it is no recipe.
    """
    values = _without_absolute_paths(read_yaml(path))
    data = values.get("data")
    data = data if isinstance(data, dict) else {}
    for section, key in ((values, "teacher"), (values, "supernet"), (data, "dataset")):
        if isinstance(section.get(key), str) and is_local(section[key]):
            section[key] = _last_name(section[key])
    for name in ("output_dir", "teacher_store"):
        if isinstance(values.get(name), str):
            values[name] = _last_name(values[name])
    if isinstance(data.get("files"), list):
        data["files"] = [_last_name(str(pattern)) for pattern in data["files"]]
    return as_yaml(values)


def _last_name(path: str) -> str:
    return f"./{Path(path).expanduser().resolve().name}"


def _without_absolute_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_absolute_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_absolute_paths(each) for each in value]
    return _last_name(value) if isinstance(value, str) and (Path(value).is_absolute() or value[:2] == "~/") else value


def _training_hints() -> dict[str, Any]:
    """Types of the keys of `training`: the fields of `DistillationConfig` but for those a run sets itself."""
    from .distillation.config import DistillationConfig

    hints = typing.get_type_hints(DistillationConfig)
    set_by_run = {"output_dir", "disable_tqdm"}
    names = [item.name for item in dataclasses.fields(DistillationConfig) if item.init]
    return {name: hints[name] for name in names if name not in set_by_run}


def _parse_probe(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check fields of `ProbeConfig`."""
    from .fitness.probe import ProbeConfig

    parsed = parse_values(typing.get_type_hints(ProbeConfig), values, where)
    try:
        ProbeConfig(**parsed)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error
    return parsed
