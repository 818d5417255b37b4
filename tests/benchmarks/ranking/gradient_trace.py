"""TraceNAS's gradient-trace proxy (arXiv 2602.02891) as a fitness."""

import math
import re
from collections import defaultdict

import torch

from hf_whittle import SubnetConfig
from hf_whittle.architectures.dimensions import CHANNELS, NEURONS
from hf_whittle.evaluation import evaluating
from hf_whittle.fitness.base import TokenFitness
from hf_whittle.subnet import Shape

from .training import bfloat16

SubBlock = tuple[int, str]
"""A layer of the super-network, and `attention` or `mlp`."""


class GradientTrace(TokenFitness):
    """Negative sparsity-weighted correlation of a subnet's gradients with those of the full super-network.

    With the gradient `g` of the mean cross-entropy on the tokens with respect to the matrices of an attention or an MLP
    of a kept layer, which is 0 where the subnet has no weights, the proxy is

        sum over kept sub-blocks of r * pearson(g of the subnet, g of the full super-network),

    where `r` is the share of its parameters that the subnet keeps of the sub-block. The paper takes the gradients of
    adapters of rank 64 to save memory. Here they are those of the matrices themselves, which rank perplexity best in
    its Table 6 (rho 0.955 against 0.930). It reads 16 sequences, as ours does; the length matters little there.

    Args:
        supernet, blocks, batch_size: as in `TokenFitness`.
        autocast (`bool`, *optional*, defaults to `False`): whether matrix products run in bfloat16.
    """

    name = "gradient trace"
    passes = 3

    def __init__(self, *args, autocast: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self._autocast = autocast
        self._base: dict[float, dict[SubBlock, torch.Tensor]] = {}

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        if share not in self._base:
            self._base[share] = self._gradients(SubnetConfig.full(self.supernet.full_config), share)
        found = self._gradients(subnet, share)
        retained = retained_shares(subnet, Shape.from_config(self.supernet.full_config))
        return -sum(kept * pearson(found[block], self._base[share][block]) for block, kept in retained.items())

    def _gradients(self, subnet: SubnetConfig, share: float) -> dict[SubBlock, torch.Tensor]:
        """Gradients of the matrices of each sub-block, flat, in the super-network's shape."""
        input_ids = self.input_ids[self.rows(share)]
        named = [
            (block, parameter) for name, parameter in self.supernet.named_parameters() if (block := sub_block(name))
        ]
        parameters = [parameter for _, parameter in named if parameter.ndim > 1]
        blocks = [block for block, parameter in named if parameter.ndim > 1]
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        with self.supernet.active_subnet(subnet), evaluating(self.supernet), torch.enable_grad():
            for batch in input_ids.split(self.batch_size):
                batch = batch.to(self.supernet.device)
                with bfloat16(self._autocast):
                    loss = self.supernet(input_ids=batch, labels=batch, use_cache=False).loss
                found = torch.autograd.grad(loss * len(batch) / len(input_ids), parameters, allow_unused=True)
                for total, gradient in zip(totals, found, strict=True):
                    if gradient is not None:  # layers that are left out have none
                        total += gradient
        flat: dict[SubBlock, list[torch.Tensor]] = defaultdict(list)
        for block, total in zip(blocks, totals, strict=True):
            flat[block].append(total.flatten())
        return {block: torch.cat(parts) for block, parts in flat.items()}


def sub_block(name: str) -> SubBlock | None:
    """The sub-block that a parameter belongs to, by its name."""
    layer = re.search(r"\.(\d+)\.", name)
    return None if layer is None else (int(layer[1]), "mlp" if ".mlp." in name else "attention")


def retained_shares(subnet: SubnetConfig, full: Shape) -> dict[SubBlock, float]:
    """Share of the parameters of each kept sub-block that a subnet keeps."""
    shape = subnet.shape.filled(full)
    shares: dict[SubBlock, float] = {}
    for index, layer in enumerate(subnet.layers):
        most = full.of_layer(layer)
        kept = {dimension: size / most[dimension] for dimension, size in shape.of_layer(index).items()}
        shares[layer, "mlp"] = kept[CHANNELS] * kept[NEURONS]
        shares[layer, "attention"] = math.prod(kept.values()) / kept[NEURONS]
    return shares


def pearson(first: torch.Tensor, second: torch.Tensor) -> float:
    """Correlation of two vectors; 0 where one of them is constant."""
    first, second = (vector.double() - vector.double().mean() for vector in (first, second))
    norms = (first.norm() * second.norm()).item()
    return (first @ second).item() / norms if norms else 0.0
