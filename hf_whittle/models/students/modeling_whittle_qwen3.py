"""Qwen3 students whose layers may differ."""

from transformers import Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from .configuration_whittle_qwen3 import WhittleQwen3Config
from .whittle_modeling import WhittleForCausalLM, WhittleModel, WhittleRotaryEmbedding


class WhittleQwen3RotaryEmbedding(WhittleRotaryEmbedding, Qwen3RotaryEmbedding):
    pass


class WhittleQwen3Model(WhittleModel, Qwen3Model):
    config: WhittleQwen3Config
    layer_class = Qwen3DecoderLayer
    rotary_class = WhittleQwen3RotaryEmbedding


class WhittleQwen3ForCausalLM(WhittleForCausalLM, Qwen3ForCausalLM):
    """A student that stock Qwen3 cannot hold."""

    config: WhittleQwen3Config
    model_class = WhittleQwen3Model


__all__ = ["WhittleQwen3ForCausalLM", "WhittleQwen3Model"]
