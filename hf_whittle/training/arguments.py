"""Check training arguments that would fail late or do harm in silence: numbers out of range, inverted metrics."""

from typing import Any

from transformers import TrainingArguments

from ..checks import check_integers, check_numbers, check_positive, check_shares

LOWER_IS_BETTER = ("loss", "perplexity", "cross_entropy", "search_fitness", "search_parameters")
"""Endings of names of metrics whose lowest value is best."""

_WHOLE = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0, "seed": 0,
}  # fmt: skip
_WHOLE_OR_NONE = {"eval_accumulation_steps": 1, "data_seed": 0, "save_total_limit": -1}  # -1 and 0 keep all
_AT_LEAST_0 = (
    "learning_rate", "weight_decay", "adam_epsilon", "warmup_steps", "eval_delay", "logging_steps", "save_steps",
)  # fmt: skip
_AT_LEAST_0_OR_NONE = ("neftune_noise_alpha", "eval_steps")
_SHARES = ("adam_beta1", "adam_beta2")


def check_arguments(args: TrainingArguments) -> None:
    """Check that numbers are in range, and set `greater_is_better` to `False` for metrics that are best when lowest.

    Call this before `TrainingArguments.__post_init__`, which sets it to `True` for every metric but a loss.

    Raises:
        ValueError: if a number is NaN or out of range, `greater_is_better` would keep the worst model, or labels are
            to be smoothed.
    """
    check_integers(args, _WHOLE)
    check_integers(args, {name: least for name, least in _WHOLE_OR_NONE.items() if getattr(args, name) is not None})
    check_numbers(args, *_AT_LEAST_0, *_given(args, _AT_LEAST_0_OR_NONE))
    by_steps = str(getattr(args.save_strategy, "value", args.save_strategy)) == "steps"
    by_epochs = args.max_steps == -1  # else num_train_epochs has no effect
    check_positive(args, *(["num_train_epochs"] if by_epochs else []), *(["save_steps"] if by_steps else []))
    check_shares(args, *_SHARES)
    if args.max_grad_norm is not None and not args.max_grad_norm >= 0:
        raise ValueError(f"max_grad_norm must be at least 0, got {args.max_grad_norm}")
    if not (args.max_steps == -1 or args.max_steps >= 1):
        raise ValueError(f"max_steps must be at least 1, or -1 for num_train_epochs, got {args.max_steps}")
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor must be 0, got {args.label_smoothing_factor}, as evaluation reports plain "
            "cross-entropy"
        )
    metric = args.metric_for_best_model
    if metric is not None and metric.endswith(LOWER_IS_BETTER):
        if args.greater_is_better:
            raise ValueError(
                f"greater_is_better=True would keep the model with the worst {metric}, whose lowest value is best; "
                "leave it out"
            )
        args.greater_is_better = False


def _given(args: Any, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if getattr(args, name) is not None]
