"""Running a subnet inside the super-network against running the extracted student and the full model.

A Pythia-70M-shaped model cut to half its width and four of six layers; the subnet is activated and reads four batches
of 2 x 256 tokens, in single precision. `ratio_to_student` is 1 where the slice costs nothing extra.
"""

from random import Random
from typing import Any

import torch
from transformers import GPTNeoXConfig, PreTrainedModel

from hf_whittle import GPTNeoXSuperNetForCausalLM, SubnetConfig, extract_subnet
from hf_whittle.cost import num_parameters, parameter_polynomial

from .measuring import time_in_turn


def measure() -> dict[str, Any]:
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048
    )
    supernet = GPTNeoXSuperNetForCausalLM(config).eval()
    rng = Random(0)

    def some(kept: int, total: int) -> tuple[int, ...]:
        return tuple(sorted(rng.sample(range(total), kept)))

    subnets = {
        "coarse": SubnetConfig(256, 4, 4, 1024),
        "fine": SubnetConfig(
            some(256, 512), some(4, 6), tuple(some(4, 8) for _ in range(4)), tuple(some(1024, 2048) for _ in range(4))
        ),
    }
    return {name: _compare(supernet, subnet) for name, subnet in subnets.items()}


def _compare(supernet: GPTNeoXSuperNetForCausalLM, subnet: SubnetConfig) -> dict[str, Any]:
    student = extract_subnet(supernet, subnet)
    input_ids = torch.randint(0, supernet.config.vocab_size, (2, 256))

    def evaluate(model: PreTrainedModel) -> torch.Tensor:
        return [model(input_ids=input_ids).logits for _ in range(4)][-1]

    def evaluate_slice() -> torch.Tensor:
        with supernet.active_subnet(subnet):
            return evaluate(supernet)

    with torch.inference_mode():
        difference = (evaluate_slice() - evaluate(student)).abs().max().item()
        seconds = time_in_turn(
            {
                "slice": evaluate_slice,
                "student": lambda: evaluate(student),
                "full": lambda: evaluate(supernet),
            }
        )
        polynomial = parameter_polynomial(supernet.config)
        counting = time_in_turn(
            {
                "num_parameters": lambda: [num_parameters(supernet.config, subnet) for _ in range(100)],
                "polynomial": lambda: [polynomial(subnet) for _ in range(100)],
            }
        )
    return {
        "seconds": seconds,
        "ratio_to_student": seconds["slice"] / seconds["student"],
        "ratio_to_full": seconds["slice"] / seconds["full"],
        "max_difference_of_logits": difference,
        "microseconds_to_count_parameters": {name: value * 1e4 for name, value in counting.items()},
    }
