"""Moments of a super-network: time and memory of gathering them, and of healing a candidate from them."""

from functools import partial
from typing import Any

import torch
from transformers import GPTNeoXConfig, LlamaConfig

from hf_whittle import SubnetConfig
from hf_whittle.architectures.dimensions import NEURONS
from hf_whittle.compat.transformers import no_init_weights
from hf_whittle.cost import num_parameters
from hf_whittle.evaluation import cross_entropy
from hf_whittle.fitness.healed import HealedPerplexity
from hf_whittle.healing.from_moments import student_healed_from
from hf_whittle.healing.moments_cost import blocks_in_batch, peak_bytes
from hf_whittle.healing.supernet_moments import SupernetMoments
from hf_whittle.models.source import Source
from hf_whittle.models.supernets import supernet_class

from .measuring import peak_memory, time_in_turn


def neox(size: int, layers: int, heads: int) -> Any:
    """The shapes of a Pythia."""
    return GPTNeoXConfig(
        hidden_size=size, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * size
    )


SHAPES = {
    "Pythia-160M": neox(768, 12, 12),
    "SmolLM2-135M": LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        vocab_size=49152, tie_word_embeddings=True,
    ),
    "Pythia-1.4B": neox(2048, 24, 16),
    "Pythia-6.9B": neox(4096, 32, 32),
}  # fmt: skip
TIMED, MEASURED = ("Pythia-160M", "SmolLM2-135M"), "Pythia-1.4B"
MEMORY = 10.0  # gigabytes for the moments of `MEASURED`, with which all of it takes less than 20
TOKENS, BLOCK_SIZE = 4096, 256


def supernet_of(name: str) -> Any:
    """A super-network of these shapes with small random weights."""
    config = SHAPES[name]
    with no_init_weights():
        supernet = supernet_class(config.model_type)(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in supernet.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    supernet.tie_weights()
    return supernet.eval()


def text(config: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, config.vocab_size, (TOKENS // BLOCK_SIZE, BLOCK_SIZE), generator=generator)


def candidate(config: Any) -> SubnetConfig:
    """Two of three layers, with three quarters of their neurons."""
    layers = [layer for layer in range(config.num_hidden_layers) if layer % 3 != 1]
    return SubnetConfig.full(config).with_layers(layers).replaced({NEURONS: config.intermediate_size * 3 // 4})


@torch.no_grad()
def timed(name: str) -> dict[str, Any]:
    """Seconds of gathering beyond the forward pass, and of healing, relative to reading the same tokens."""
    supernet = supernet_of(name)
    ids, subnet = text(supernet.config), candidate(supernet.config)
    moments = SupernetMoments(supernet, ids, 8, progress=False)
    source = Source(supernet.state_dict(), supernet.full_config, supernet.device)

    def evaluate() -> None:
        with supernet.active_subnet(subnet):
            cross_entropy(supernet, ids, 8)

    def forward() -> None:
        for batch in ids.split(8):
            supernet.base_model(input_ids=batch, use_cache=False)

    def read() -> None:
        cross_entropy(supernet, ids, 8)

    seconds = time_in_turn(
        {
            "forward": forward,
            "read": read,
            "gather": lambda: SupernetMoments(supernet, ids, 8, progress=False),
            "evaluate": evaluate,
            "heal": lambda: student_healed_from(moments, source, subnet),
        },
        repeats=3,
    )
    return {
        "tokens": TOKENS,
        "gathering_beyond_the_forward_pass_of_layers": round(seconds["gather"] / seconds["forward"] - 1, 2),
        "gathering_beyond_it_against_reading_the_tokens": round(
            (seconds["gather"] - seconds["forward"]) / seconds["read"], 2
        ),
        "healing_a_candidate_against_evaluating_it": round(seconds["heal"] / seconds["evaluate"], 2),
        "moments_megabytes": round(moments.bytes / 1e6),
    }


def _prepare(name: str) -> Any:
    return supernet_of(name)


def _heal_one(supernet: Any) -> None:
    ids = text(supernet.config)
    HealedPerplexity(supernet, ids[:2], ids, batch_size=4, memory=MEMORY)(candidate(supernet.config))


def estimated(name: str, max_gap: int) -> dict[str, float]:
    """Gigabytes by the estimate that is checked before gathering, on blocks of 1,024 tokens."""
    config, length = SHAPES[name], 1024
    weights = 4 * num_parameters(config) / 1e9
    moments = peak_bytes(config, length * blocks_in_batch(config, length), max_gap) / 1e9
    return {"weights": round(weights, 1), "moments": round(moments, 1), "together": round(weights + moments, 1)}


def measure() -> dict[str, Any]:
    torch.set_num_threads(1)
    supernet = SHAPES[MEASURED]
    batch = BLOCK_SIZE * min(4, blocks_in_batch(supernet, BLOCK_SIZE))
    return {
        "timed": {name: timed(name) for name in TIMED},
        "one candidate": {
            "model": MEASURED,
            "weights_gigabytes": round(4 * num_parameters(supernet) / 1e9, 1),
            "moments_allowed_gigabytes": MEMORY,
            "moments_estimated_gigabytes": round(peak_bytes(supernet, batch, 1) / 1e9, 1),
            "student_gigabytes": round(4 * num_parameters(supernet, candidate(supernet)) / 1e9, 1),
            "peak_beyond_weights_gigabytes": round(peak_memory(partial(_prepare, MEASURED), _heal_one) / 1e3, 1),
        },
        "estimated": {name: {f"max_gap {gap}": estimated(name, gap) for gap in (1, 2)} for name in SHAPES},
    }
