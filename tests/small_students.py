"""Students of tiny models of every architecture, whose layers differ."""

import torch

from hf_whittle import SubnetConfig
from hf_whittle.architectures.dimensions import HEADS
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.models.slicing import slice_weights, student_model


def uneven_subnet_of(config):
    """Layers of 2, all and 1 key-value heads, each head with 6 of its 8 channels, and a hidden size of 22."""
    has_heads = HEADS in get_architecture(config).dimensions
    every = config.num_attention_heads if has_heads else config.num_key_value_heads
    heads = "num_attention_heads" if has_heads else "num_key_value_heads"
    return SubnetConfig(
        hidden_size=[*range(20), 25, 31],
        num_hidden_layers=[0, 2, 4],
        intermediate_size=[40, [*range(3, 50, 2)], 64],
        head_dim=[0, 1, 4, 5, 6, 7],
        **{heads: [[0, every - 1], every, [1]]},
    )


def student_of(supernet, subnet):
    """The student of a subnet, from memory."""
    weights = slice_weights(supernet.state_dict(), supernet.config, subnet)
    return student_model(supernet.config, subnet, weights, torch.float32)
