"""Llama students whose layers may differ."""

from transformers import LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from .configuration_whittle_llama import WhittleLlamaConfig
from .whittle_modeling import WhittleForCausalLM, WhittleModel, WhittleRotaryEmbedding


class WhittleLlamaRotaryEmbedding(WhittleRotaryEmbedding, LlamaRotaryEmbedding):
    pass


class WhittleLlamaModel(WhittleModel, LlamaModel):
    config: WhittleLlamaConfig
    layer_class = LlamaDecoderLayer
    rotary_class = WhittleLlamaRotaryEmbedding


class WhittleLlamaForCausalLM(WhittleForCausalLM, LlamaForCausalLM):
    """A student that stock Llama cannot hold."""

    config: WhittleLlamaConfig
    model_class = WhittleLlamaModel


__all__ = ["WhittleLlamaForCausalLM", "WhittleLlamaModel"]
