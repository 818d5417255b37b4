"""Model cards made of what a run measured; what is not known is left out."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data import STANDARD_LIBRARY
from ..files import read_json, write_text
from ..recipe import Recipe
from ..subnet import SubnetConfig, count

TEMPLATE = "model_card.md.jinja"
_FITNESSES = {
    "kl": "mean divergence, in nats a token, of its predictions from the teacher's",
    "healed-perplexity": "perplexity after linear fits to what the super-network computes, which put back part of what "
    "slicing took away",
    "probe": "perplexity of its student after {steps} steps of training",
    "staged": "perplexity of its student after {steps} steps of training, among those that perplexity as sliced and "
    "then healed had not weeded out",
    "importance": "negative share of {criterion} importance retained",
    "magnitude": "negative sum of absolute weights",
    "gradient-norm": "negative norm of the gradient",
    "snip": "negative sum of absolute products of weights and gradients",
    "synflow": "negative logarithm of synaptic flow",
    "jacobian-covariance": "likeness of the gradients of different blocks",
}
"""What a search minimised, in words; perplexity needs none."""
TAGS = ("hf_whittle", "subnetwork", "arxiv:2510.07227")


class SubnetModelCardData(ModelCardData):
    """Metadata of a whittled student, as the Hub reads it.

    Args:
        base_model (`str` or `list[str]`, *optional*): repositories of the super-network and of the teacher.
        parameters (`int`, *optional*): parameters of the student.
        kwargs: as for `huggingface_hub.ModelCardData`.
    """

    def __init__(self, *, base_model: str | list[str] | None = None, parameters: int | None = None, **kwargs: Any):
        kwargs.setdefault("library_name", "transformers")
        kwargs.setdefault("pipeline_tag", "text-generation")
        kwargs.setdefault("tags", [*TAGS])
        super().__init__(base_model=base_model, **kwargs)
        self.parameters = parameters

    def _to_dict(self, data_dict: dict[str, Any]) -> None:
        super()._to_dict(data_dict)
        data_dict.pop("parameters", None)

    @classmethod
    def from_run(cls, recipe: Recipe, results: dict[str, Any]) -> "SubnetModelCardData":
        """Metadata of a run of a recipe."""
        checkpoints = dict.fromkeys(name for name in (recipe.supernet, recipe.teacher) if name and is_hub_name(name))
        dataset = recipe.data.dataset if recipe.data.dataset and is_hub_name(recipe.data.dataset) else None
        measured = EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "text",
            dataset_name=dataset or "local files",
            metric_type="perplexity",
            metric_value=round(results["student"]["curve"][-1]["perplexity"], 4),
        )
        tags = [*TAGS]
        if results["student"]["flops_per_token"]["teacher"]:
            tags.append("knowledge-distillation")
        return cls(
            tags=tags,
            base_model=list(checkpoints) or None,
            parameters=results["student"]["parameters"],
            datasets=[dataset] if dataset and dataset != STANDARD_LIBRARY else None,
            model_name=Path(recipe.output_dir).resolve().name,
            eval_results=[measured],
        )


def write_card(folder: Path, recipe: Recipe, results: dict[str, Any]) -> None:
    """Render `README.md` into a folder that holds the student and its pictures."""
    template = resources.files(__package__).joinpath(TEMPLATE)
    with resources.as_file(template) as path:
        card = ModelCard.from_template(
            SubnetModelCardData.from_run(recipe, results),
            template_path=str(path),
            title=re.sub(r"[^\w.\- ]+", "-", Path(recipe.output_dir).resolve().name),
            recipe=_without_paths(recipe),
            counted=recipe.bin.to_bin(recipe.data.block_size).of,
            layers=_layer_rows(SubnetConfig.from_dict(results["search"]["subnet"])),
            channels=count(SubnetConfig.from_dict(results["search"]["subnet"]).hidden_size),
            is_stock=_is_stock(folder),
            minimised=_minimised(recipe),
            number=_number,
            code=_code,
            **results,
        )
    write_text(folder / "README.md", str(card))


def _without_paths(recipe: Recipe) -> dict[str, Any]:
    """The recipe with folders of this machine shown by their last name."""
    values = recipe.to_dict()
    for section, key in ((values, "teacher"), (values, "supernet"), (values["data"], "dataset")):
        if section[key] and not is_hub_name(section[key]):
            section[key] = Path(section[key]).name
    values["data"]["files"] = [Path(pattern).name for pattern in values["data"]["files"] or ()]
    return values


def is_hub_name(name: str) -> bool:
    """Whether a name is one of the Hub rather than a path on this machine."""
    return not Path(name).exists() and not name.startswith((".", "/", "~"))


def _layer_rows(subnet: SubnetConfig) -> list[tuple[int, int, int, int]]:
    """For each layer of the student: its number, the layer it was cut from, heads, neurons."""
    sizes = zip(subnet.layers, subnet.num_attention_heads, subnet.intermediate_size, strict=True)
    return [(i, layer, count(heads), count(neurons)) for i, (layer, heads, neurons) in enumerate(sizes)]


def _minimised(recipe: Recipe) -> str:
    """What the search minimised, in words; nothing for perplexity."""
    from ..distillation.probe import ProbeConfig

    steps = recipe.search.probe.get("steps", ProbeConfig.steps)
    criterion = recipe.space.importance or "activation"
    return _FITNESSES.get(recipe.search.fitness, "").format(steps=steps, criterion=criterion)


def _is_stock(folder: Path) -> bool:
    return "auto_map" not in read_json(folder / "config.json")


def _number(value: float) -> str:
    """A number as a person reads it: three digits and a unit where it is large."""
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _code(text: object) -> str:
    """Text of a user as a Markdown code span that nothing in it can end."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`"
    while fence in line:
        fence += "`"
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"
