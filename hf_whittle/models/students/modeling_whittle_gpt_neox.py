"""GPT-NeoX students whose layers may differ: stock modules, each built from its own layer's configuration.

This file and the configuration beside it travel with a published student, so they import only torch, transformers
and each other.
"""

from torch import nn
from transformers import GPTNeoXForCausalLM, GPTNeoXModel, GPTNeoXPreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXAttention,
    GPTNeoXLayer,
    GPTNeoXMLP,
    GPTNeoXRotaryEmbedding,
)

from .configuration_whittle_gpt_neox import WhittleGPTNeoXConfig


class WhittleGPTNeoXAttention(GPTNeoXAttention):
    """GPT-NeoX attention whose heads are `num_attention_heads * head_dim` channels wide, for any hidden size."""

    def __init__(self, config: WhittleGPTNeoXConfig, layer_idx: int):
        nn.Module.__init__(self)
        self.config = config
        self.head_size = config.head_dim
        self.attention_dropout = config.attention_dropout
        rope_parameters = config.rope_parameters or {}
        self.rotary_ndims = int(self.head_size * rope_parameters.get("partial_rotary_factor", 1.0))
        self.scaling = self.head_size**-0.5
        self.is_causal = True
        self.layer_idx = layer_idx

        width = config.per_layer_config[layer_idx].num_attention_heads * config.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, 3 * width, bias=config.attention_bias)
        self.dense = nn.Linear(width, config.hidden_size, bias=config.attention_bias)


class WhittleGPTNeoXLayer(GPTNeoXLayer):
    """A GPT-NeoX layer with its own number of heads and neurons."""

    def __init__(self, config: WhittleGPTNeoXConfig, layer_idx: int):
        nn.Module.__init__(self)
        self.use_parallel_residual = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_dropout = nn.Dropout(config.hidden_dropout)
        self.post_mlp_dropout = nn.Dropout(config.hidden_dropout)
        self.attention = WhittleGPTNeoXAttention(config, layer_idx)
        self.mlp = GPTNeoXMLP(config.per_layer_config[layer_idx])


class WhittleGPTNeoXPreTrainedModel(GPTNeoXPreTrainedModel):
    config: WhittleGPTNeoXConfig
    config_class = WhittleGPTNeoXConfig
    _no_split_modules = ["WhittleGPTNeoXLayer"]
    _can_record_outputs = {"hidden_states": WhittleGPTNeoXLayer, "attentions": WhittleGPTNeoXAttention}

    def save_pretrained(self, *args, **kwargs):
        """Save with an `auto_map` for all auto classes; arguments as in `PreTrainedModel`."""
        module = __name__.rpartition(".")[2]
        self.config.auto_map = {
            "AutoConfig": f"{WhittleGPTNeoXConfig.__module__.rpartition('.')[2]}.WhittleGPTNeoXConfig",
            "AutoModel": f"{module}.WhittleGPTNeoXModel",
            "AutoModelForCausalLM": f"{module}.WhittleGPTNeoXForCausalLM",
        }
        super().save_pretrained(*args, **kwargs)


class WhittleGPTNeoXModel(WhittleGPTNeoXPreTrainedModel, GPTNeoXModel):
    def __init__(self, config: WhittleGPTNeoXConfig):
        GPTNeoXPreTrainedModel.__init__(self, config)
        self.config = config
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.emb_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([WhittleGPTNeoXLayer(config, index) for index in range(config.num_hidden_layers)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary_emb = GPTNeoXRotaryEmbedding(config=config.per_layer_config[0])  # type: ignore[arg-type]
        self.gradient_checkpointing = False
        self.post_init()


class WhittleGPTNeoXForCausalLM(WhittleGPTNeoXPreTrainedModel, GPTNeoXForCausalLM):
    """A student that stock GPT-NeoX cannot hold."""

    # The stock plans shard heads that are all alike.
    _tp_plan = None  # type: ignore[assignment]
    _pp_plan = None  # type: ignore[assignment]

    def __init__(self, config: WhittleGPTNeoXConfig):
        GPTNeoXPreTrainedModel.__init__(self, config)
        self.gpt_neox = WhittleGPTNeoXModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.register_load_state_dict_pre_hook(_read_file_name)
        self.post_init()

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

# A saved student carries these files, and loads with `trust_remote_code=True` where hf_whittle is not installed.
WhittleGPTNeoXConfig.register_for_auto_class()
WhittleGPTNeoXModel.register_for_auto_class("AutoModel")
WhittleGPTNeoXForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["WhittleGPTNeoXForCausalLM", "WhittleGPTNeoXModel", "WhittleGPTNeoXPreTrainedModel"]
