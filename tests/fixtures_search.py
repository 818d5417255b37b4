"""Sizes to search without a model, a bin of their subnets, and comparisons of searches."""

import dataclasses
from types import SimpleNamespace

import pytest

from hf_whittle import ParameterBin, SearchSpace, SubnetConfig
from hf_whittle.cost import Polynomial

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
SECONDS = Polynomial(
    {
        (): 2e-3,
        ("hidden_size",): 1e-5,
        ("num_hidden_layers",): 5e-4,
        ("hidden_size", "num_hidden_layers"): 2e-6,
        ("num_attention_heads",): 1e-4,
        ("hidden_size", "num_attention_heads"): 1e-6,
        ("intermediate_size",): 3e-7,
        ("hidden_size", "intermediate_size"): 1e-8,
    },
    shared={"hidden_size": None, "head_dim": 8},
)
"""A latency of subnets of `CONFIG`."""
FEW = SearchSpace.from_config(
    CONFIG,
    hidden_size=range(8, 17, 8),
    num_hidden_layers=range(1, 3),
    num_attention_heads=range(2, 3),
    intermediate_size=range(8, 9),
)
"""A space that a search exhausts."""
ALL_OF_FEW = {SubnetConfig(c, n, 2, 8) for c in (8, 16) for n in (1, 2)}


def assert_same_search(found, expected):
    """Check that candidates are equal and fitnesses close, since kernels depend on where weights lie in memory."""
    for ours, theirs in zip(found.evaluations, expected.evaluations, strict=True):
        assert dataclasses.replace(ours, fitness=0) == dataclasses.replace(theirs, fitness=0)
        assert ours.fitness == pytest.approx(theirs.fitness, rel=1e-5)


class StopsAt:
    """A fitness that is interrupted at one of its evaluations and otherwise looks like the one it wraps."""

    def __init__(self, fitness, stop_at):
        self._fitness, self._left = fitness, stop_at

    def __getattr__(self, name):
        return getattr(self._fitness, name)

    def __call__(self, subnet, share=1.0):
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._fitness(subnet, share)
