"""Cohere students whose layers may differ."""

from transformers import CohereForCausalLM, CohereModel
from transformers.models.cohere.modeling_cohere import CohereDecoderLayer, CohereRotaryEmbedding

from .configuration_whittle_cohere import WhittleCohereConfig
from .whittle_modeling import WhittleForCausalLM, WhittleModel, WhittleRotaryEmbedding


class WhittleCohereRotaryEmbedding(WhittleRotaryEmbedding, CohereRotaryEmbedding):
    pairs_are_neighbours = True


class WhittleCohereModel(WhittleModel, CohereModel):
    config: WhittleCohereConfig
    layer_class = CohereDecoderLayer
    rotary_class = WhittleCohereRotaryEmbedding


class WhittleCohereForCausalLM(WhittleForCausalLM, CohereForCausalLM):
    """A student that stock Cohere cannot hold."""

    config: WhittleCohereConfig
    model_class = WhittleCohereModel

    def __init__(self, config: WhittleCohereConfig):
        super().__init__(config)
        self.logit_scale = config.logit_scale


__all__ = ["WhittleCohereForCausalLM", "WhittleCohereModel"]
