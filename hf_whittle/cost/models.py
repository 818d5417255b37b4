"""FLOPs of any model."""

from typing import TYPE_CHECKING

from ..models.architecture import has_architecture
from .counts import flops_per_token

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def forward_flops_per_token(model: "PreTrainedModel", sequence_length: int) -> int:
    """FLOPs of a forward pass; of a model without a table, two for each parameter."""
    config = getattr(model, "full_config", model.config)
    if has_architecture(config):
        return flops_per_token(config, sequence_length=sequence_length)
    return 2 * model.num_parameters(exclude_embeddings=True)
