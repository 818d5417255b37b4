"""Facts of a training: its arguments, its curve, what it ran on."""

import math
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers

from .. import __version__

if TYPE_CHECKING:
    from transformers import TrainerState


_REPORTED_ARGUMENTS = (
    "alpha", "beta", "temperature", "divergence", "jsd_weight", "hidden_weight", "hidden_loss", "learning_rate",
    "lr_scheduler_type", "train_batch_size",
    "gradient_accumulation_steps", "world_size", "max_steps", "seed", "bf16",
)  # fmt: skip


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
