"""Tiny models of every architecture, trained for seconds, for tests of what only holds for trained models."""

import argparse
from functools import lru_cache
from pathlib import Path

import torch
from small_models import OTHERS, settings_of
from transformers import AutoConfig, AutoModelForCausalLM

TRAINED = {
    "parallel": {},
    "sequential": {"use_parallel_residual": False},
    **{name: OTHERS[name] for name in ("llama", "llama tied", "qwen3", "gemma3", "gemma3 untied", "cohere untied")},
}
"""Settings of each, beside `small_models.TINY`."""


@lru_cache
def train(name):
    """A stock model trained for seconds on Python source, some of that source, and other source."""
    source = torch.frombuffer(bytearray(Path(argparse.__file__).read_bytes()[:98_304]), dtype=torch.uint8).long() % 128
    blocks = source.view(-1, 32)[torch.randperm(3072, generator=torch.Generator().manual_seed(0))]
    changes = {"model_type": "gpt_neox", "vocab_size": 128, "num_hidden_layers": 4, "initializer_range": 0.02}
    changes |= TRAINED[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(changes["model_type"], **settings_of(**changes))
    model = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for batch in blocks[:1920].split(32):
        model(batch, labels=batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), blocks[:256], blocks[2944:]
