"""Configurations of tiny models of every architecture, and subnets drawn from them without a search space."""

from random import Random

import torch
from transformers import StableLmConfig, StableLmForCausalLM

from hf_whittle.architectures.dimensions import CHANNELS, HEAD_CHANNELS, LAYERS, VOCABULARY
from hf_whittle.subnet import Shape, SubnetConfig

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
_SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
SETTINGS = {
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": 5},
    "qwen2": {"num_key_value_heads": 2, **_SLIDING},
    "qwen3": {**_GROUPED, **_SLIDING},
    "gpt2": {"n_inner": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0, "init_std": 0.3},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.5},
    "gemma3_text": {**_GROUPED, "sliding_window": 5, "sliding_window_pattern": 3, "query_pre_attn_scalar": 12},
}
"""Settings of a tiny model of an architecture beside `TINY`; two queries for each key-value head, where grouped."""

ALL_ROTATED = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
STRETCHED = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
VARIANTS = {
    "parallel": {},
    "sequential": {"use_parallel_residual": False},
    "tied": {"tie_word_embeddings": True},
    "no attention bias": {"attention_bias": False},
    "all channels rotated": {"rope_parameters": ALL_ROTATED},
    "eager": {"attn_implementation": "eager"},
}
"""Settings in which models of GPT-NeoX differ."""

OTHERS = {
    "llama": {"model_type": "llama"},
    "llama tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama scaled rotation": {"model_type": "llama", "rope_parameters": LLAMA3},
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "gpt2": {"model_type": "gpt2"},
    "opt": {"model_type": "opt"},
    "opt untied": {"model_type": "opt", "tie_word_embeddings": False, "enable_bias": False},
    "cohere": {"model_type": "cohere"},
    "cohere head norms": {"model_type": "cohere", "use_qk_norm": True, "attention_bias": True},
    "cohere untied": {"model_type": "cohere", "tie_word_embeddings": False, "attn_implementation": "eager"},
    "gemma3": {"model_type": "gemma3_text"},
    "gemma3 untied": {"model_type": "gemma3_text", "tie_word_embeddings": False, "attn_implementation": "eager"},
}
"""Settings in which models of the other architectures differ."""

ALL_VARIANTS = {**VARIANTS, **OTHERS}


def settings_of(model_type="gpt_neox", **changes):
    """Keyword arguments of the configuration of a tiny model."""
    return {**TINY, **SETTINGS.get(model_type, {}), **changes}


def draw_subnet(source, seed, granularity="fine", layer_wise=True, names_optional=None, names_tokens=False):
    """Draw a subnet of any size, of any architecture.

    Args:
        source (`PreTrainedConfig` or `Shape`): what it is drawn from.
        seed (`int`): seed of the draw.
        granularity (`str`): `"coarse"` keeps first entries, `"fine"` any.
        layer_wise (`bool`): whether each layer draws entries of its own. If not, all layers of `source` must be alike.
        names_optional (`bool`, *optional*): whether to draw optional dimensions, too; otherwise they are kept whole. By
            default each is drawn half of the time.
        names_tokens (`bool`): whether to draw tokens, too; otherwise the vocabulary is kept whole.
    """
    rng = Random(seed)
    shape = source if isinstance(source, Shape) else Shape.from_config(source)

    def some(dimension, size):
        units = rng.randint(1, size // dimension.unit)
        kept = range(units) if granularity == "coarse" else sorted(rng.sample(range(size // dimension.unit), units))
        return [dimension.unit * unit + place for unit in kept for place in range(dimension.unit)]

    layers = some(LAYERS, shape.num_hidden_layers)
    kept = {LAYERS: layers, CHANNELS: some(CHANNELS, shape.hidden_size)}
    for dimension in shape.dimensions[1:]:
        if dimension is VOCABULARY:
            if names_tokens:
                kept[dimension] = some(dimension, shape.size(dimension))
        elif dimension.is_optional:
            if names_optional or (names_optional is None and rng.random() < 0.5):
                kept[dimension] = some(dimension, shape.size(dimension))
        elif layer_wise:
            kept[dimension] = [some(dimension, shape.size(dimension, layer)) for layer in layers]
        else:
            kept[dimension] = [some(dimension, shape.size(dimension))] * len(layers)
    return SubnetConfig(**{dimension.name: entries for dimension, entries in kept.items()})


def draw_stock_subnet(config, seed, granularity="fine"):
    """Draw a subnet that a stock class can hold."""
    from hf_whittle.models.student import fits_stock

    rng = Random(seed)
    while True:
        subnet = draw_subnet(config, rng.random(), granularity, layer_wise=False)
        subnet = subnet.replaced({HEAD_CHANNELS: None})
        for number in rng.sample(range(1, config.hidden_size + 1), config.hidden_size):
            channels = number if granularity == "coarse" else sorted(rng.sample(range(config.hidden_size), number))
            candidate = subnet.replaced({CHANNELS: channels})
            if fits_stock(config, candidate):
                return candidate


def make_other(vocab_size, **changes):
    """A tiny model of an architecture without a table."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(3)
    return StableLmForCausalLM(StableLmConfig(vocab_size=vocab_size, **{**sizes, **heads, **changes}))
