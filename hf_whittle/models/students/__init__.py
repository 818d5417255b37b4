"""Students that no stock class can hold; the other files here travel with them, without the rest of hf_whittle."""

import importlib
from functools import lru_cache
from typing import Any, NamedTuple

from ...architectures.table import Architecture


class StudentClasses(NamedTuple):
    """Classes of a student.

    Args:
        config (`type`): of its configuration.
        model (`type`): of the model without a head.
        causal (`type`): of the model for causal language modeling.
    """

    config: Any
    model: Any
    causal: Any


@lru_cache
def student_classes(architecture: Architecture) -> StudentClasses:
    """The classes of an architecture's students, imported when first asked for."""
    modeling = importlib.import_module(f"{__name__}.modeling_whittle_{architecture.model_type}")
    prefix = f"Whittle{architecture.prefix}"
    return StudentClasses(
        student_config_class(architecture),
        getattr(modeling, f"{prefix}Model"),
        getattr(modeling, f"{prefix}ForCausalLM"),
    )


def student_config_class(architecture: Architecture) -> Any:
    """The first of these alone, which does not import torch."""
    configuration = importlib.import_module(f"{__name__}.configuration_whittle_{architecture.model_type}")
    return getattr(configuration, f"Whittle{architecture.prefix}Config")


def stock_class(name: str) -> Any:
    """A class of `transformers`, by its name."""
    return getattr(importlib.import_module("transformers"), name)
