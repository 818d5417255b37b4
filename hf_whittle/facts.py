"""What is known of a student, section by section, as `results.json` holds it: facts of its making, nothing else."""

import math
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

from . import __version__
from .search.result import SearchResult
from .subnet import SubnetConfig

if TYPE_CHECKING:
    from transformers import TrainerState

_REPORTED_ARGUMENTS = (
    "alpha", "beta", "temperature", "divergence", "jsd_weight", "hidden_weight", "hidden_loss", "learning_rate",
    "lr_scheduler_type", "train_batch_size",
    "gradient_accumulation_steps", "world_size", "max_steps", "seed", "bf16",
)  # fmt: skip


def search_facts(result: SearchResult, subnet: SubnetConfig | None = None) -> dict[str, Any]:
    """What a search was asked, what it cost and what it found.

    Args:
        result (`SearchResult`): the search.
        subnet (`SubnetConfig`, *optional*): what was made a student, if not the best.
    """
    settings, best = result.settings, result.best_evaluation
    chosen = best if subnet is None else next((each for each in result.answers if each.subnet == subnet), None)
    algorithm, fitness, space = settings["algorithm"], settings["fitness"], settings["space"]
    minimised: dict[str, Any] = {"name": fitness["name"], "value": best.fitness}
    if chosen is None or chosen.subnet != best.subnet:
        minimised["of_student"] = None if chosen is None else chosen.fitness
    stages = [fitness, *fitness.get("stages", {}).values()]
    for stage in stages:
        if "steps" in stage:
            minimised["steps"] = stage["steps"]
        if "scores" in stage:
            minimised["criterion"] = stage["scores"]["criterion"]
    of_space = {name: space[name] for name in ("granularity", "layer_wise")}
    if "importance" in space:
        of_space["importance"] = space["importance"]["criterion"]
    return {
        "algorithm": algorithm["name"],
        **({"seed": algorithm["seed"]} if "seed" in algorithm else {}),
        "space": of_space,
        "bins": [{name: bin[name] for name in ("cost", "low", "high")} for bin in settings["bins"]],
        "fitness": minimised,
        "evaluations": len(result.evaluations),
        "tokens_per_evaluation": max(evaluation.tokens for evaluation in result.evaluations),
        "tokens": result.tokens,
        "flops": result.flops,
        **({"perplexity": best.fitness} if fitness["name"] == "perplexity" else {}),
        "subnet": best.subnet.to_dict(),
        "parameters": best.parameters,
    }


def training_facts(args: Any, state: "TrainerState", *, is_whole: bool, has_ended: bool = True) -> dict[str, Any]:
    """What a `Trainer` knows of its training.

    Args:
        args (`TrainingArguments`): its arguments.
        state (`TrainerState`): its state.
        is_whole (`bool`): whether the training was not interrupted, so that its log holds the time of all of it.
        has_ended (`bool`, *optional*, defaults to `True`): whether it has, so that the best weights are loaded where
            they are asked for.
    """
    curve = training_curve(state)
    seconds = next((row["train_runtime"] for row in reversed(state.log_history) if "train_runtime" in row), None)
    arguments = {name: getattr(args, name) for name in _REPORTED_ARGUMENTS if hasattr(args, name)}
    arguments["max_steps"] = state.max_steps
    arguments["lr_scheduler_type"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return {
        "steps": state.global_step,
        **({"best_step": state.best_global_step} if has_ended and _loads_best(args, state) else {}),
        **({"tokens": state.num_input_tokens_seen} if state.num_input_tokens_seen else {}),
        **({"curve": curve} if curve else {}),
        "arguments": arguments,
        "environment": environment(args.device),
        **({"seconds": seconds} if is_whole and seconds else {}),
    }


def training_curve(state: "TrainerState") -> list[dict[str, Any]]:
    """Held-out perplexity at each evaluation, with the steps and the tokens (where they are counted) until then."""
    rows = {row["step"]: row for row in state.log_history if "eval_loss" in row}
    return [
        {
            "step": step,
            **({"tokens": row["num_input_tokens_seen"]} if "num_input_tokens_seen" in row else {}),
            "perplexity": row.get("eval_perplexity", math.exp(min(row["eval_loss"], 700))),
        }
        for step, row in rows.items()
    ]


def _loads_best(args: Any, state: "TrainerState") -> bool:
    return bool(args.load_best_model_at_end and state.best_global_step)


def final_perplexity(student: dict[str, Any]) -> float | None:
    """Perplexity of the weights that a training left, of its facts; `None` if it was not measured at that step."""
    step = student.get("best_step", student.get("steps"))
    return next((point["perplexity"] for point in student.get("curve", ()) if point["step"] == step), None)


def to_match(results: dict[str, Any]) -> dict[str, Any] | None:
    """Tokens and FLOPs the student and the baseline need to reach the baseline's final perplexity.

    A run has reached it at the first evaluation that is at or below it. The student's FLOPs are those of the search, of
    healing where there was some, of its own training and of the teacher's forward passes; what it did not reach is
    left out. `None` if the baseline diverged, so that there is nothing to match.
    """
    target = results["baseline"]["curve"][-1]["perplexity"]
    tokens = {}
    for name in ("student", "baseline"):
        reached = [point["tokens"] for point in results[name]["curve"] if point["perplexity"] <= target]
        tokens[name] = reached[0] if reached else None
    if tokens["baseline"] is None:
        return None
    per_token = {name: results[name]["flops_per_token"] for name in tokens}
    facts: dict[str, Any] = {
        "perplexity": target,
        "baseline_tokens": tokens["baseline"],
        "baseline_flops": tokens["baseline"] * per_token["baseline"]["student"],
    }
    if tokens["student"] is not None:
        parts = {
            "search": results["search"]["flops"],
            **({"healing": results["healing"]["flops"]} if "healing" in results else {}),
            "training": tokens["student"] * per_token["student"]["student"],
            "teacher": tokens["student"] * per_token["student"]["teacher"],
        }
        facts |= {"student_tokens": tokens["student"], "student_flops": parts}
        facts["flops_ratio"] = facts["baseline_flops"] / sum(parts.values())
        if tokens["student"]:
            facts["tokens_ratio"] = facts["baseline_tokens"] / tokens["student"]
    return facts


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware of a stage."""
    on_gpu = device.type == "cuda"
    hardware = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return {
        "hf_whittle": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": hardware,
    }


def points(curve: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """`(tokens, perplexity)` of a curve, for a picture; none where tokens were not counted."""
    return [(point["tokens"], point["perplexity"]) for point in curve if "tokens" in point]
