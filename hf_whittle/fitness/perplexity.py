"""Perplexity of a subnet on fixed tokens."""

from ..evaluation import cross_entropy, perplexity
from ..subnet import SubnetConfig
from .base import TokenFitness


class Perplexity(TokenFitness):
    """Perplexity of a super-network's subnets on fixed tokens: the paper's fitness."""

    name = "perplexity"
    may_be_offloaded = True

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        with self.supernet.active_subnet(subnet):
            return perplexity(cross_entropy(self.supernet, self.input_ids[self.rows(share)], self.batch_size))
