"""FLOPs of any model."""

from typing import Any

from ..architectures.registry import has_architecture
from ..models.weights import full_config
from .counts import flops_per_token


def forward_flops_per_token(model: Any, sequence_length: int) -> int:
    """FLOPs per token of a forward pass of a `PreTrainedModel`; without a table, two for each parameter."""
    config = full_config(model)
    if has_architecture(config):
        return flops_per_token(config, sequence_length=sequence_length)
    return 2 * model.num_parameters(exclude_embeddings=True)
