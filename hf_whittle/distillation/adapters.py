"""Adapters of a student, trained instead of its weights."""

import copy
from typing import Any

from ..architectures.registry import get_architecture, has_architecture
from .config import DistillationConfig


def layer_matrices(config: Any) -> set[str]:
    """Names of the modules of a layer that are matrices, of a configuration whose architecture has a table."""
    weights = get_architecture(config).weights
    return {weight.module.rpartition(".")[2] for weight in weights if weight.in_layer and weight.is_matmul}


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
        config.target_modules = layer_matrices(model.config)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()  # else no gradient would reach the adapters through frozen embeddings
    return get_peft_model(model, config)
