"""A search of a tiny super-network, the same on one process and on several, its weights whole or sharded.

torchrun --nproc-per-node 2 search_in_processes.py FOLDER [sharded | failing | different]
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from fixtures_processes import print_at_exit_whether_the_group_was_ended
from fixtures_training import BIN, make_blocks, make_supernet
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_whittle import AdditiveSearchConfig, MultiFidelityConfig, SearchSpace, search_subnets
from hf_whittle.fitness.perplexity import Perplexity

CONFIGS = {
    "additive": AdditiveSearchConfig(generations=2, sizes=[6, 3, 2], answers=3, levels=6, channel_options=3),
    "multi-fidelity": MultiFidelityConfig(generations=2, sizes=[7, 3, 1], initial=2),
}


class Failing(Perplexity):
    """Fails in one process."""

    def __call__(self, subnet, share=1.0):
        if PartialState().process_index == 1:
            raise RuntimeError("out of luck")
        return super().__call__(subnet, share)


def shard(supernet):
    """FSDP2, as accelerate applies it on accelerators; it does not on a CPU."""
    mesh = init_device_mesh("cpu", (2,))
    for layer in list(supernet.gpt_neox.layers):
        fully_shard(layer, mesh=mesh)
    fully_shard(supernet, mesh=mesh)


def search(folder, supernet, fitness=Perplexity, granularity="fine", text=2):
    space = SearchSpace.from_config(supernet.config, granularity, layer_wise=True)
    measured = fitness(supernet, make_blocks(7, seed=text), batch_size=2)
    for name, config in CONFIGS.items():
        search_subnets(supernet, space, bin=BIN, fitness=measured, config=config, output_dir=Path(folder) / name)


def main(folder, kind=""):
    supernet = make_supernet(hidden_dropout=0.0)
    if kind == "sharded":
        PartialState(cpu=True)
        shard(supernet)
    text = PartialState(cpu=True).process_index if kind == "different" else 2
    search(folder, supernet, Failing if kind == "failing" else Perplexity, text=text)
    assert torch.distributed.is_initialized()


if __name__ == "__main__":
    print_at_exit_whether_the_group_was_ended()
    main(*sys.argv[1:])
