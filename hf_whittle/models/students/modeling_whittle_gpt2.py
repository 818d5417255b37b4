"""GPT-2 students whose layers may differ.

Attention is not the stock one, whose heads have `hidden_size // num_attention_heads` channels.
"""

import copy

from transformers import GPT2LMHeadModel, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention, GPT2Block

from .configuration_whittle_gpt2 import WhittleGPT2Config
from .whittle_modeling import WhittleForCausalLM, WhittleModel


class WhittleGPT2Attention(GPT2Attention):
    """GPT-2 attention whose heads are `num_attention_heads * head_dim` channels wide, for any hidden size."""

    def __init__(self, config: WhittleGPT2Config, layer_idx: int):
        filled = copy.copy(config)
        filled.hidden_size = width = config.num_attention_heads * config.head_dim
        super().__init__(filled, layer_idx=layer_idx)
        self.config = config
        linear = type(self.c_attn)
        self.c_attn, self.c_proj = linear(3 * width, config.hidden_size), linear(config.hidden_size, width)


class WhittleGPT2Block(GPT2Block):
    """A GPT-2 layer with such attention."""

    def __init__(self, config: WhittleGPT2Config, layer_idx: int):
        one_head = copy.copy(config)
        one_head.num_attention_heads = 1  # of any size
        super().__init__(one_head, layer_idx)
        self.attn = WhittleGPT2Attention(config, layer_idx)


class WhittleGPT2Model(WhittleModel, GPT2Model):
    config: WhittleGPT2Config
    layer_class = WhittleGPT2Block
    layers_name = "h"
    _no_split_modules = ["WhittleGPT2Block"]


class WhittleGPT2ForCausalLM(WhittleForCausalLM, GPT2LMHeadModel):
    """A student that stock GPT-2 cannot hold."""

    config: WhittleGPT2Config
    model_class = WhittleGPT2Model
    _no_split_modules = ["WhittleGPT2Block"]


__all__ = ["WhittleGPT2ForCausalLM", "WhittleGPT2Model"]
