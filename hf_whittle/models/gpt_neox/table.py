"""The table of GPT-NeoX: which axis of which weight runs along which dimension."""

from ..architecture import Architecture, Axis, Dimension, Weight

_VOCABULARY = Axis(Dimension.VOCABULARY)
_CHANNELS = Axis(Dimension.CHANNELS)
_HEADS = Axis(Dimension.HEADS, heads_wide=True)
_QKV = Axis(Dimension.HEADS, block=3, heads_wide=True)  # query, key and value of head 0, then of head 1, and so on
_NEURONS = Axis(Dimension.NEURONS)

_LAYER = "gpt_neox.layers.{layer}."

ARCHITECTURE = Architecture(
    layers="gpt_neox.layers",
    parallel_if="use_parallel_residual",
    weights=(
        Weight("gpt_neox.embed_in.weight", (_VOCABULARY, _CHANNELS)),
        Weight(_LAYER + "input_layernorm.weight", (_CHANNELS,)),
        Weight(_LAYER + "input_layernorm.bias", (_CHANNELS,)),
        Weight(
            _LAYER + "attention.query_key_value.weight",
            (_QKV, _CHANNELS),
            is_matmul=True,
            norm=_LAYER + "input_layernorm",
        ),
        Weight(_LAYER + "attention.query_key_value.bias", (_QKV,), exists_if="attention_bias"),
        Weight(_LAYER + "attention.dense.weight", (_CHANNELS, _HEADS), is_matmul=True),
        Weight(_LAYER + "attention.dense.bias", (_CHANNELS,), exists_if="attention_bias"),
        Weight(_LAYER + "post_attention_layernorm.weight", (_CHANNELS,)),
        Weight(_LAYER + "post_attention_layernorm.bias", (_CHANNELS,)),
        Weight(
            _LAYER + "mlp.dense_h_to_4h.weight",
            (_NEURONS, _CHANNELS),
            is_matmul=True,
            norm=_LAYER + "post_attention_layernorm",
        ),
        Weight(_LAYER + "mlp.dense_h_to_4h.bias", (_NEURONS,)),
        Weight(_LAYER + "mlp.dense_4h_to_h.weight", (_CHANNELS, _NEURONS), is_matmul=True),
        Weight(_LAYER + "mlp.dense_4h_to_h.bias", (_CHANNELS,)),
        Weight("gpt_neox.final_layer_norm.weight", (_CHANNELS,)),
        Weight("gpt_neox.final_layer_norm.bias", (_CHANNELS,)),
        Weight(
            "lm_head.weight",
            (_VOCABULARY, _CHANNELS),
            is_matmul=True,
            shared_if="tie_word_embeddings",
            file_name="embed_out.weight",
            norm="gpt_neox.final_layer_norm",
        ),
    ),
)
