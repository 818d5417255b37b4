"""A smooth fitness that a surrogate can learn, and draws to compare with."""

import math
from random import Random

from fixtures_search import BIN, CONFIG

from hf_whittle import SearchSpace

SPACE = SearchSpace.from_config(CONFIG, "fine", layer_wise=True)


def toy_fitness(subnet, layers=5):
    """Prefers wide models, and late layers with few heads and many neurons."""
    shape = subnet.shape
    value = 2 * (1 - shape.hidden_size / 32)
    for layer, heads, neurons in zip(subnet.layers, shape.num_attention_heads, shape.intermediate_size, strict=True):
        late = (layer + 1) / layers
        value += (heads / 4 - 0.25 - neurons / 64 * late) / layers
    return math.exp(value)


def drawn(number, seed, space=SPACE, bin=BIN):
    rng = Random(seed)
    return [space.sample(rng, bin) for _ in range(number)]
