"""Gemma 3 students whose layers may differ."""

from transformers import Gemma3ForCausalLM, Gemma3TextModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer, Gemma3RotaryEmbedding

from .configuration_whittle_gemma3_text import WhittleGemma3Config
from .whittle_modeling import WhittleForCausalLM, WhittleModel, WhittleRotaryEmbedding


class WhittleGemma3RotaryEmbedding(WhittleRotaryEmbedding, Gemma3RotaryEmbedding):
    pass


class WhittleGemma3Model(WhittleModel, Gemma3TextModel):
    config: WhittleGemma3Config
    layer_class = Gemma3DecoderLayer
    rotary_class = WhittleGemma3RotaryEmbedding

    def __init__(self, config: WhittleGemma3Config):
        super().__init__(config)
        if config.embed_scale is not None:
            self.embed_tokens.scalar_embed_scale = config.embed_scale
            self.embed_tokens.embed_scale.fill_(config.embed_scale)


class WhittleGemma3ForCausalLM(WhittleForCausalLM, Gemma3ForCausalLM):
    """A student that stock Gemma 3 cannot hold."""

    config: WhittleGemma3Config
    model_class = WhittleGemma3Model


__all__ = ["WhittleGemma3ForCausalLM", "WhittleGemma3Model"]
