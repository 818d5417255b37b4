"""`torch.compile` of a super-network: what compiling a subnet takes, and how many tokens it must read to pay that back.

SmolLM2-135M's widths with six of its layers, in single precision on one thread. Each of a few coarse subnets is
activated and reads 8 blocks of 256 tokens, first in the super-network as it is, then in the compiled one: its first
batch, which compiles, and later ones. The third subnet shows whether shapes that became dynamic spare the compilation.
"""

import time
from typing import Any

import torch
from transformers import LlamaConfig

from hf_whittle import LlamaSuperNetForCausalLM, SubnetConfig

from .measuring import time_in_turn

SUBNETS = (
    SubnetConfig(576, 6, num_key_value_heads=2, intermediate_size=1024),
    SubnetConfig(480, 5, num_key_value_heads=3, intermediate_size=768),
    SubnetConfig(512, 4, num_key_value_heads=2, intermediate_size=(512, 768, 1024, 1280)),
    SubnetConfig(576, 6, num_key_value_heads=2, intermediate_size=1024),
)
"""The last is the first again."""
BLOCKS, LENGTH = 8, 256


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, num_hidden_layers=6, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, tie_word_embeddings=True,
    )  # fmt: skip
    supernet = LlamaSuperNetForCausalLM(config).eval()
    compiled: Any = torch.compile(supernet)
    input_ids = torch.randint(0, config.vocab_size, (BLOCKS, LENGTH))
    return {"blocks": [BLOCKS, LENGTH], "subnets": [_compare(supernet, compiled, each, input_ids) for each in SUBNETS]}


def _compare(supernet: Any, compiled: Any, subnet: SubnetConfig, input_ids: torch.Tensor) -> dict[str, Any]:
    def read(model: Any) -> torch.Tensor:
        return model(input_ids=input_ids, use_cache=False).logits

    with torch.inference_mode(), supernet.active_subnet(subnet):
        started = time.perf_counter()
        difference = (read(compiled) - read(supernet)).abs().max().item()
        first = time.perf_counter() - started
        seconds = time_in_turn({"eager": lambda: read(supernet), "compiled": lambda: read(compiled)})
    gain = seconds["eager"] - seconds["compiled"]
    compiling = max(0.0, first - seconds["eager"] - seconds["compiled"])  # about 0 where nothing was compiled
    return {
        "seconds_of_a_batch": seconds,
        "ratio": seconds["compiled"] / seconds["eager"],
        "seconds_to_compile": compiling,
        "tokens_to_pay_back": None if gain <= 0 else round(compiling / gain * input_ids.numel()),
        "max_difference_of_logits": difference,
    }
