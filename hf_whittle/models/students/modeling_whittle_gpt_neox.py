"""GPT-NeoX students whose layers may differ.

Attention is not the stock one, whose heads have `hidden_size // num_attention_heads` channels.
"""

from typing import Any

from torch import nn
from transformers import GPTNeoXForCausalLM, GPTNeoXModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXAttention,
    GPTNeoXLayer,
    GPTNeoXMLP,
    GPTNeoXRotaryEmbedding,
)

from .configuration_whittle_gpt_neox import WhittleGPTNeoXConfig
from .whittle_modeling import WhittleForCausalLM, WhittleModel, WhittleRotaryEmbedding


class WhittleGPTNeoXAttention(GPTNeoXAttention):
    """GPT-NeoX attention whose heads are `num_attention_heads * head_dim` channels wide, for any hidden size."""

    def __init__(self, config: Any, layer_idx: int):
        nn.Module.__init__(self)
        self.config = config
        self.head_size = config.head_dim
        self.attention_dropout = config.attention_dropout
        self.scaling = self.head_size**-0.5
        self.is_causal = True
        self.layer_idx = layer_idx

        width = config.num_attention_heads * config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * width, bias=config.attention_bias)
        self.dense = nn.Linear(width, config.hidden_size, bias=config.attention_bias)


class WhittleGPTNeoXLayer(GPTNeoXLayer):
    """A GPT-NeoX layer with such attention."""

    def __init__(self, config: Any, layer_idx: int):
        nn.Module.__init__(self)
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_dropout = nn.Dropout(config.hidden_dropout)
        self.post_mlp_dropout = nn.Dropout(config.hidden_dropout)
        self.attention = WhittleGPTNeoXAttention(config, layer_idx)
        self.mlp = GPTNeoXMLP(config)


class WhittleGPTNeoXRotaryEmbedding(WhittleRotaryEmbedding, GPTNeoXRotaryEmbedding):
    pass


class WhittleGPTNeoXModel(WhittleModel, GPTNeoXModel):
    config: WhittleGPTNeoXConfig
    layer_class = WhittleGPTNeoXLayer
    rotary_class = WhittleGPTNeoXRotaryEmbedding
    _no_split_modules = ["WhittleGPTNeoXLayer"]


class WhittleGPTNeoXForCausalLM(WhittleForCausalLM, GPTNeoXForCausalLM):
    """A student that stock GPT-NeoX cannot hold."""

    config: WhittleGPTNeoXConfig
    model_class = WhittleGPTNeoXModel
    _no_split_modules = ["WhittleGPTNeoXLayer"]

    def __init__(self, config: WhittleGPTNeoXConfig):
        super().__init__(config)
        self.register_load_state_dict_pre_hook(_read_file_name)

    def save_pretrained(self, *args, **kwargs):
        """Save tensors by their names in files of the Hub; arguments as in `PreTrainedModel`."""
        used = getattr(self, "_weight_conversions", None) or []
        patterns = {pattern for conversion in used for pattern in conversion.source_patterns}
        renamings = get_checkpoint_conversion_mapping("WhittleGPTNeoXForCausalLM")
        self._weight_conversions = [*used, *(one for one in renamings if patterns.isdisjoint(one.source_patterns))]
        super().save_pretrained(*args, **kwargs)


def _read_file_name(model, state_dict, prefix, *_):
    """Rename the output matrix if it has its name in files, as in state dicts of a `Trainer` that resumes."""
    if f"{prefix}embed_out.weight" in state_dict:
        state_dict[f"{prefix}lm_head.weight"] = state_dict.pop(f"{prefix}embed_out.weight")


# Pythia's files call the output matrix `embed_out`; transformers renames it by class name, and this class has another.
register_checkpoint_conversion_mapping(
    "WhittleGPTNeoXForCausalLM", get_checkpoint_conversion_mapping("GPTNeoXForCausalLM"), overwrite=True
)

__all__ = ["WhittleGPTNeoXForCausalLM", "WhittleGPTNeoXModel"]
