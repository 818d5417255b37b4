"""Kinds of models and calls that hypothesis draws from, and the four search spaces."""

from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from small_models import LLAMA3

BOTH = [False, True]
SEEDS = st.integers(0, 2**16)


# Models


@dataclass(frozen=True, eq=False)
class Kind:
    """An architecture, and settings in which models of it may differ."""

    model_type: str
    changes: dict[str, Any]

    @property
    def is_eager(self):
        return self.changes["attn_implementation"] == "eager"


LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
DEFAULT = {"rope_type": "default", "rope_theta": 500.0}
ROTATED = [0.25, 0.5, 0.75, 1.0, 0.0]  # 0.25 and 0.5 of 6 channels are an odd number, which the stock model rounds up
DECODER = {
    "attn_implementation": ["sdpa", "eager"],
    "tie_word_embeddings": BOTH,
    "rope_parameters": [DEFAULT, LINEAR, LLAMA3],
    "num_attention_heads, num_key_value_heads": [(4, 2), (4, 1), (2, 2), (6, 2)],
    "hidden_size": [32, 24],
}
CHOICES = {
    "gpt_neox": {
        "attn_implementation": ["sdpa", "eager"],
        "use_parallel_residual": BOTH,
        "tie_word_embeddings": BOTH,
        "attention_bias": BOTH,
        "hidden_size, num_attention_heads": [(24, 4), (32, 4), (32, 2)],
        "rope_parameters": [
            {**rope, "partial_rotary_factor": rotated} for rope in (DEFAULT, LINEAR) for rotated in ROTATED
        ],
    },
    "llama": {**DECODER, "attention_bias": BOTH, "mlp_bias": BOTH, "head_dim": [8, 6]},
    "mistral": {**DECODER, "head_dim": [8, 6], "sliding_window": [None, 3]},
    "qwen2": {**DECODER, "num_attention_heads, num_key_value_heads": [(4, 2), (4, 1)], "use_sliding_window": BOTH},
    "qwen3": {**DECODER, "attention_bias": BOTH, "head_dim": [8, 6], "use_sliding_window": BOTH},
    "cohere": {
        **DECODER,
        "num_attention_heads, num_key_value_heads": [(4, 2), (4, 1)],
        "attention_bias": BOTH,
        "use_qk_norm": BOTH,
    },
    "gemma3_text": {
        **DECODER,
        "rope_parameters": [{"full_attention": LINEAR, "sliding_attention": DEFAULT}, None],
        "num_attention_heads, num_key_value_heads": [(4, 2), (4, 1), (2, 2)],
        "attention_bias": BOTH,
        "head_dim": [8, 6],
        "sliding_window_pattern": [2, 4],
        "final_logit_softcapping": [None, 3.0],
    },
    "gpt2": {
        "attn_implementation": ["sdpa", "eager"],
        "tie_word_embeddings": BOTH,
        "hidden_size, num_attention_heads": [(24, 4), (32, 4), (32, 2)],
        "scale_attn_weights": BOTH,
    },
    "opt": {
        "attn_implementation": ["sdpa", "eager"],
        "tie_word_embeddings": BOTH,
        "hidden_size, word_embed_proj_dim": [(24, 24), (32, 32)],
        "enable_bias": BOTH,
    },
}
"""By architecture, values of its settings; names with a comma are those of settings that go together."""

CONSTANT = {"num_hidden_layers": 4, "attention_dropout": 0.2}
CONSTANTS = {
    "gpt_neox": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "hidden_dropout": 0.1},
    "gemma3_text": {"hidden_activation": "gelu_new", "rms_norm_eps": 1e-3, "query_pre_attn_scalar": 12},
    "cohere": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "logit_scale": 0.3},
    "gpt2": {"activation_function": "gelu", "layer_norm_epsilon": 1e-3, "embd_pdrop": 0.1, "attn_pdrop": 0.2},
    "opt": {"activation_function": "gelu", "dropout": 0.1},
}
"""Settings that are no defaults, so that a student that loses one fails. Dropout only matters in training mode."""


def _kinds(model_type, number):
    """Kinds of an architecture: few enough to be built once each."""
    choices = CHOICES[model_type]
    constant = CONSTANT | CONSTANTS.get(model_type, {"hidden_act": "gelu_new", "rms_norm_eps": 1e-3})
    for values in Random(24).sample(list(product(*choices.values())), number):
        changes = {}
        for name, value in zip(choices, values, strict=True):
            names = name.split(", ")
            changes |= dict(zip(names, value if len(names) > 1 else [value], strict=True))
        yield Kind(model_type, constant | changes)


KINDS = {model_type: list(_kinds(model_type, 24 if model_type == "gpt_neox" else 8)) for model_type in CHOICES}


# Calls


class Call(NamedTuple):
    """Arguments of a call of a model."""

    rows: int
    padding: str
    positions: bool
    embeds: bool
    records: bool
    tokens: int
    seed: int

    @property
    def input_ids(self):
        return torch.randint(99, (self.rows, self.tokens), generator=torch.Generator().manual_seed(self.seed))

    @property
    def attention_mask(self):
        """Attention mask; with padding, the last two rows may lack tokens."""
        mask, rng = torch.ones(self.rows, self.tokens, dtype=torch.long), Random(self.seed)
        for row in mask[-2:]:
            missing = rng.randrange(self.tokens)
            if self.padding == "left":
                row[:missing] = 0
            elif self.padding == "right":
                row[self.tokens - missing :] = 0
        return mask

    def inputs(self, kind, hidden_size):
        """Keyword arguments of a forward pass through a model of this kind, with this many channels."""
        generator = torch.Generator().manual_seed(self.seed)
        inputs = {"input_ids": self.input_ids}
        if self.embeds:
            inputs = {"inputs_embeds": torch.randn(self.rows, self.tokens, hidden_size, generator=generator)}
        if self.padding != "none":
            inputs["attention_mask"] = self.attention_mask
        if self.positions:
            inputs["position_ids"] = torch.randint(64, (self.rows, self.tokens), generator=generator)
        if self.records:
            inputs |= {"output_hidden_states": True, "output_attentions": kind.is_eager}
        return inputs


def _calls(paddings, choices):
    """Calls padded in one of these ways; `choices` are those of giving positions, giving embeddings and recording."""
    forms = st.sampled_from(list(product([1, 3], paddings, choices, choices, choices)))
    return st.builds(lambda form, tokens, seed: Call(*form, tokens, seed), forms, st.integers(2, 12), SEEDS)


CALLS = _calls(["none", "left", "right"], BOTH)
PROMPTS = _calls(["none", "left"], [False])
TEXTS = _calls(["none"], [False]).map(lambda call: call.input_ids)


# Spaces of subnets

SPACES = {
    "coarse uniform": {"granularity": "coarse", "layer_wise": False},
    "coarse layer-wise": {"granularity": "coarse", "layer_wise": True},
    "fine uniform": {"granularity": "fine", "layer_wise": False},
    "fine layer-wise": {"granularity": "fine", "layer_wise": True},
    "stock only": {"granularity": "fine", "stock_only": True},
}
EVERY = [(model_type, space) for model_type in CHOICES for space in SPACES]
SOME = [
    ("gpt_neox", "fine layer-wise"),
    ("gpt_neox", "stock only"),
    ("llama", "coarse uniform"),
    ("llama", "fine layer-wise"),
    ("mistral", "fine uniform"),
    ("qwen2", "coarse layer-wise"),
    ("qwen3", "stock only"),
    ("qwen3", "fine layer-wise"),
    ("gemma3_text", "fine layer-wise"),
    ("gpt2", "fine layer-wise"),
    ("opt", "fine layer-wise"),
]
"""Pairs of architectures and spaces in which each of them is at least once."""
