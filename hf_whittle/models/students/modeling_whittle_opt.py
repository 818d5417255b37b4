"""OPT students whose layers may differ.

Attention is not the stock one, whose heads have `hidden_size // num_attention_heads` channels.
"""

import copy

from torch import nn
from transformers import OPTForCausalLM, OPTModel, OPTPreTrainedModel
from transformers.models.opt.modeling_opt import OPTAttention, OPTDecoder, OPTDecoderLayer

from .configuration_whittle_opt import WhittleOPTConfig
from .whittle_modeling import WhittleForCausalLM, WhittleModel, WhittlePreTrainedModel


class WhittleOPTAttention(OPTAttention):
    """OPT attention whose heads are `num_attention_heads * head_dim` channels wide, for any hidden size."""

    def __init__(self, config: WhittleOPTConfig, layer_idx: int):
        filled = copy.copy(config)
        filled.hidden_size = width = config.num_attention_heads * int(config.head_dim or 0)
        super().__init__(filled, layer_idx=layer_idx)
        self.config = config
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, width, bias=config.enable_bias))
        self.out_proj = nn.Linear(width, config.hidden_size, bias=config.enable_bias)


class WhittleOPTDecoderLayer(OPTDecoderLayer):
    """An OPT layer with such attention."""

    def __init__(self, config: WhittleOPTConfig, layer_idx: int):
        one_head = copy.copy(config)
        one_head.num_attention_heads = 1  # of any size
        super().__init__(one_head, layer_idx)
        self.self_attn = WhittleOPTAttention(config, layer_idx)


class WhittleOPTDecoder(WhittleModel, OPTDecoder):
    config: WhittleOPTConfig
    layer_class = WhittleOPTDecoderLayer
    _no_split_modules = ["WhittleOPTDecoderLayer"]


class WhittleOPTModel(WhittlePreTrainedModel, OPTModel):
    config: WhittleOPTConfig
    _no_split_modules = ["WhittleOPTDecoderLayer"]

    def __init__(self, config: WhittleOPTConfig):
        OPTPreTrainedModel.__init__(self, config)
        self.decoder = WhittleOPTDecoder(config)
        self.post_init()


class WhittleOPTForCausalLM(WhittleForCausalLM, OPTForCausalLM):
    """A student that stock OPT cannot hold."""

    config: WhittleOPTConfig
    model_class = WhittleOPTModel
    _no_split_modules = ["WhittleOPTDecoderLayer"]


__all__ = ["WhittleOPTForCausalLM", "WhittleOPTModel"]
