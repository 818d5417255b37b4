"""Parameters, FLOPs and bytes of a subnet, in closed form."""

from typing import TYPE_CHECKING

from ..subnet import Shape, SubnetConfig
from .polynomial import flops_polynomial, kv_cache_polynomial, parameter_polynomial

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def num_parameters(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, embeddings: bool = True
) -> int:
    """Parameters of a subnet's student, or of the whole model if `subnet` is `None`.

    Equals `sum(p.numel() for p in student.parameters())`; tied embeddings are counted once.

    Args:
        config (`PreTrainedConfig`): configuration of the super-network.
        subnet (`SubnetConfig` or `Shape`, *optional*): the subnet, or the sizes of a student; a padded student has
            those of `padded_shape`.
        embeddings (`bool`, *optional*, defaults to `True`): whether to count input and output embeddings.
    """
    return int(parameter_polynomial(config, embeddings)(student_shape(config, subnet)))


def flops_per_token(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, sequence_length: int
) -> int:
    """FLOPs of a forward pass per token, in sequences of `sequence_length`; see `flops_polynomial`."""
    return int(flops_polynomial(config, sequence_length)(student_shape(config, subnet)))


def training_flops_per_token(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, sequence_length: int
) -> int:
    """FLOPs of a training step per token: a forward pass, and a backward pass that costs twice as much."""
    return 3 * flops_per_token(config, subnet, sequence_length=sequence_length)


def kv_cache_bytes_per_token(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, bytes_per_value: int = 2
) -> int:
    """Bytes of keys and values that generation keeps for each token of context."""
    return int(kv_cache_polynomial(config, bytes_per_value)(student_shape(config, subnet)))


def weight_bytes(
    config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None = None, *, bytes_per_value: float = 2
) -> int:
    """Bytes of the student's weights in memory, and on disk without a header of some kilobytes."""
    return int(bytes_per_value * num_parameters(config, subnet))


def student_shape(config: "PreTrainedConfig", subnet: SubnetConfig | Shape | None) -> Shape:
    """Sizes of a student, with those of optional dimensions that the subnet does not name."""
    full = Shape.from_config(config)
    if subnet is None:
        return full
    if isinstance(subnet, SubnetConfig):
        subnet.validate(full)
        subnet = subnet.shape
    return subnet.filled(full)
