"""Adapters of a student, trained instead of its weights."""

import copy
from typing import Any

from ..models.architecture import has_architecture
from .config import DistillationConfig

LORA_TARGETS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
"""Every matrix of a GPT-NeoX layer, for adapters whose configuration names none."""


def with_adapters(model: Any, config: Any, args: DistillationConfig) -> Any:
    """Add adapters to a model, on all matrices of its layers unless the `PeftConfig` names others.

    Raises:
        ImportError: if peft is not installed.
    """
    try:
        from peft import get_peft_model
    except ImportError as error:
        raise ImportError("peft_config needs peft: pip install 'hf_whittle[adapters]'") from error
    if getattr(config, "target_modules", None) is None and has_architecture(model.config):
        config = copy.copy(config)
        config.target_modules = set(LORA_TARGETS)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient would reach the adapters through frozen embeddings
    return get_peft_model(model, config)
