"""Mistral students whose layers may differ."""

from transformers import MistralForCausalLM, MistralModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRotaryEmbedding

from .configuration_whittle_mistral import WhittleMistralConfig
from .whittle_modeling import WhittleForCausalLM, WhittleModel, WhittleRotaryEmbedding


class WhittleMistralRotaryEmbedding(WhittleRotaryEmbedding, MistralRotaryEmbedding):
    pass


class WhittleMistralModel(WhittleModel, MistralModel):
    config: WhittleMistralConfig
    layer_class = MistralDecoderLayer
    rotary_class = WhittleMistralRotaryEmbedding


class WhittleMistralForCausalLM(WhittleForCausalLM, MistralForCausalLM):
    """A student that stock Mistral cannot hold."""

    config: WhittleMistralConfig
    model_class = WhittleMistralModel


__all__ = ["WhittleMistralForCausalLM", "WhittleMistralModel"]
