"""Facts of a training: its arguments, its curve, its environment."""

import platform
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
import transformers

from .. import __version__
from ..evaluation import perplexity
from ..models.placement import device_name
from .facts import CurvePoint, Environment, TrainingArgumentFacts, TrainingFacts

if TYPE_CHECKING:
    from transformers import TrainerState


def training_facts(
    args: Any, state: "TrainerState", *, is_whole: bool, has_ended: bool = True, of_bytes: bool = False
) -> TrainingFacts:
    """Facts of a training that its `Trainer` knows.

    Args:
        args (`TrainingArguments`): its arguments.
        state (`TrainerState`): its state.
        is_whole (`bool`): whether it was not interrupted, so that its log holds the time of all of it.
        has_ended (`bool`, *optional*, defaults to `True`): whether it has ended, so that the best weights are loaded
            if the arguments ask for them.
        of_bytes (`bool`, *optional*, defaults to `False`): whether to keep bits per byte beside perplexities.
    """
    seconds = next((row["train_runtime"] for row in reversed(state.log_history) if "train_runtime" in row), None)
    has_best = has_ended and args.load_best_model_at_end and state.best_global_step
    return TrainingFacts(
        steps=state.global_step,
        best_step=state.best_global_step if has_best else None,
        tokens=state.num_input_tokens_seen or None,
        curve=training_curve(state, of_bytes),
        arguments=_argument_facts(args, state),
        environment=environment(args.device),
        seconds=(seconds or None) if is_whole else None,
    )


def _argument_facts(args: Any, state: "TrainerState") -> TrainingArgumentFacts:
    known = {field.name: getattr(args, field.name, None) for field in fields(TrainingArgumentFacts)}
    known["max_steps"] = state.max_steps
    known["lr_scheduler_type"] = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    return TrainingArgumentFacts(**known)


def training_curve(state: "TrainerState", of_bytes: bool = False) -> tuple[CurvePoint, ...]:
    """Held-out perplexity at each evaluation, with the steps and the tokens (if they are counted) until then."""
    rows: dict[Any, Any] = {row["step"]: row for row in state.log_history if "eval_loss" in row}
    return tuple(
        CurvePoint(
            step=step,
            tokens=row.get("num_input_tokens_seen"),
            perplexity=row.get("eval_perplexity", perplexity(row["eval_loss"])),
            bits_per_byte=row.get("eval_bits_per_byte") if of_bytes else None,
        )
        for step, row in rows.items()
    )


def environment(device: torch.device) -> Environment:
    """Versions and hardware of a stage."""
    return Environment(
        hf_whittle=__version__,
        transformers=transformers.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        hardware=device_name(device),
    )
