"""Qwen2 students whose layers may differ."""

from transformers import Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from .configuration_whittle_qwen2 import WhittleQwen2Config
from .whittle_modeling import WhittleForCausalLM, WhittleModel, WhittleRotaryEmbedding


class WhittleQwen2RotaryEmbedding(WhittleRotaryEmbedding, Qwen2RotaryEmbedding):
    pass


class WhittleQwen2Model(WhittleModel, Qwen2Model):
    config: WhittleQwen2Config
    layer_class = Qwen2DecoderLayer
    rotary_class = WhittleQwen2RotaryEmbedding


class WhittleQwen2ForCausalLM(WhittleForCausalLM, Qwen2ForCausalLM):
    """A student that stock Qwen2 cannot hold."""

    config: WhittleQwen2Config
    model_class = WhittleQwen2Model


__all__ = ["WhittleQwen2ForCausalLM", "WhittleQwen2Model"]
