"""Sizes to search without a model, and a bin among their subnets."""

from types import SimpleNamespace

from hf_whittle import ParameterBin

CONFIG = SimpleNamespace(
    model_type="gpt_neox",
    vocab_size=99,
    hidden_size=32,
    num_hidden_layers=5,
    num_attention_heads=4,
    intermediate_size=64,
    tie_word_embeddings=False,
    attention_bias=True,
)
BIN = ParameterBin(20_000, 22_000)
