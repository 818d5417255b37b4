"""Candidates a second of a random search on the demo's teacher, for `search.py` to launch on several processes."""

import os
import time
from importlib import resources
from pathlib import Path

import torch

from hf_whittle import GPTNeoXSuperNetForCausalLM, ParameterBin, RandomSearchConfig, SearchSpace, search_subnets
from hf_whittle.fitness.perplexity import Perplexity

if __name__ == "__main__":
    teacher = Path(str(resources.files("hf_whittle"))) / "demo" / "teacher"
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    blocks = torch.randint(1, 2048, (16, 256), generator=torch.Generator().manual_seed(0))
    space = SearchSpace.from_config(supernet.config, layer_wise=True)
    fitness, bin = Perplexity(supernet, blocks, batch_size=4), ParameterBin(800_000, 880_000)
    search_subnets(None, space, bin=bin, fitness=fitness, config=RandomSearchConfig(evaluations=8), progress=False)
    started = time.perf_counter()
    config = RandomSearchConfig(evaluations=160, num_draws=80, seed=1)
    search_subnets(None, space, bin=bin, fitness=fitness, config=config, progress=False)
    if os.environ.get("RANK", "0") == "0":
        print("per second", 160 / (time.perf_counter() - started))
