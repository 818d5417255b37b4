"""Zero-cost proxies: guesses of a subnet's quality from its weights, or from a few gradients.

Each is a `Fitness` that any search can minimize: where more is better, it is the negative. They are experimental since
none ranks random draws as perplexity does: one is at chance, the others rank them in reverse. The figures are Kendall's
tau with perplexity (`docs/results.md`), where perplexity on a quarter of the tokens has 0.95.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface

from ..cost.counts import flops_per_token, num_parameters
from ..errors import WhittleError
from ..evaluation import evaluating
from ..evaluation.batches import blocks_for
from ..fingerprints import model_fingerprint
from ..fitness.base import Fitness, TokenFitness
from ..models.placement import is_sharded
from ..models.weights import all_weights, check_plain_weights
from ..subnet import Kept, SubnetConfig, indices

if TYPE_CHECKING:
    from ..importance.scores import ImportanceScores
    from ..models.supernet import SuperNetModel


def _check_whole(supernet: "SuperNetModel", name: str) -> None:
    check_plain_weights(supernet)
    if is_sharded(supernet):
        raise WhittleError(f"{name} needs the whole model in each process; use perplexity or kl for a sharded one")


class WeightMagnitude(Fitness):
    """Negative sum of the absolute weights of a subnet's matrices (arXiv 2510.07227). Experimental: tau -0.18.

    Args:
        supernet (`SuperNetModel`): the super-network.
    """

    name = "magnitude"

    def __init__(self, supernet: "SuperNetModel"):
        _check_whole(supernet, self.name)
        self.supernet = supernet
        self._magnitudes = copy.deepcopy(supernet)  # a super-network too, so that it is sliced alike
        with torch.no_grad():
            for parameter in self._magnitudes.parameters():
                parameter.abs_()

    @torch.no_grad()
    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        with self._magnitudes.active_subnet(subnet):
            return -sum(part.double().sum().item() for part in self._magnitudes.weights_in_use())

    def tokens(self, share: float = 1.0) -> int:
        return 0

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return num_parameters(self.supernet.full_config, subnet)

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "model": model_fingerprint(self.supernet)}


class RetainedImportance(Fitness):
    """Negative mean share of importance retained in each dimension that a subnet names. Experimental: tau -0.25.

    Of a dimension that layers have of their own, it is the mean over all layers of the super-network; layers that are
    left out retain nothing.

    Args:
        scores (`ImportanceScores`): scores of the super-network; a negative one counts as 0.
    """

    name = "importance"

    def __init__(self, scores: "ImportanceScores"):
        self.scores = scores

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        shares = []
        for dimension in subnet.dimensions:
            kept, scores = subnet.kept(dimension), self.scores.of(dimension)
            if dimension.per_layer:
                of_layers = zip(subnet.layers, kept, strict=True)
                shares.append(sum(_retained(entries, scores[layer]) for layer, entries in of_layers) / len(scores))
            else:
                shares.append(_retained(kept, scores))
        return -sum(shares) / len(shares)

    def tokens(self, share: float = 1.0) -> int:
        return 0

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "scores": self.scores.settings}


def _retained(kept: Kept, scores: Any) -> float:
    positive = scores.clip(min=0)
    return float(positive[list(indices(kept))].sum() / (positive.sum() or 1.0))


def _at_a_time(proxy: TokenFitness) -> int:
    """Blocks in a batch, all logits of which are in memory."""
    return proxy.batch_size or blocks_for(proxy.supernet, proxy.input_ids.shape[1], in_chunks=False)


class _GradientProxy(TokenFitness):
    """A proxy computed from the gradient of the loss on all tokens."""

    passes = 3

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        _check_whole(self.supernet, self.name)
        input_ids = self.input_ids[self.rows(share)]
        parameters = list(self.supernet.parameters())
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        with (
            self.supernet.active_subnet(subnet),
            evaluating(self.supernet),
            _all_need_gradients(self.supernet),
            torch.enable_grad(),
        ):
            for batch in input_ids.split(_at_a_time(self)):
                batch = batch.to(self.supernet.device)
                loss = self.supernet(input_ids=batch, labels=batch, use_cache=False).loss * len(batch) / len(input_ids)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                for total, gradient in zip(gradients, found, strict=True):
                    if gradient is not None:  # weights outside of the slice have none
                        total += gradient
        return -self._score(parameters, gradients)

    @abstractmethod
    def _score(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> float:
        """Score parameters by their gradients; the higher, the better."""


@contextmanager
def _all_need_gradients(model: nn.Module) -> Iterator[None]:
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    model.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


class GradientNorm(_GradientProxy):
    """Negative Euclidean norm of the gradient (arXiv 2101.08134). Experimental: tau -0.64."""

    name = "gradient-norm"

    def _score(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> float:
        return math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))


class Snip(_GradientProxy):
    """Negative sum over the weights of |weight x gradient| (SNIP, arXiv 1810.02340). Experimental: tau -0.65."""

    name = "snip"

    def _score(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> float:
        pairs = zip(parameters, gradients, strict=True)
        return sum((parameter.detach() * gradient).double().abs().sum().item() for parameter, gradient in pairs)


class Synflow(Fitness):
    """Negative logarithm of the synaptic flow (SynFlow, arXiv 2006.05467). Experimental: tau -0.33.

    The flow is the sum of weight x gradient in a network of absolute weights, in which norms pass on their inputs. The
    input is a vector of ones in place of the embedding of a single token, for which attention only passes on values.
    Without gates, the sum equals the output R times the number of weights on a path. It needs no text, but a copy of
    the super-network in `float64`, since R grows exponentially with depth.

    Args:
        supernet (`SuperNetModel`): the super-network.
    """

    name = "synflow"

    def __init__(self, supernet: "SuperNetModel"):
        _check_whole(supernet, self.name)
        self.supernet = supernet
        self._linear = copy.deepcopy(supernet).double().eval().requires_grad_(True)
        self._linear.set_attn_implementation(_VALUES)
        with torch.no_grad():
            for parameter in self._linear.parameters():
                parameter.abs_()

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        parameters = list(self._linear.parameters())
        with self._linear.active_subnet(subnet), _norms_pass_on(self._linear), torch.enable_grad():
            ones = torch.ones(1, 1, subnet.shape.hidden_size, dtype=torch.float64, device=self._linear.device)
            output = self._linear(inputs_embeds=ones, use_cache=False).logits.sum()
            gradients = torch.autograd.grad(output, parameters, allow_unused=True)
        pairs = zip(parameters, gradients, strict=True)
        flow = sum((p.detach() * g).sum().item() for p, g in pairs if g is not None)
        return -math.log(flow) if 0 < flow < math.inf else math.inf

    def tokens(self, share: float = 1.0) -> int:
        return 1

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return 6 * num_parameters(self.supernet.full_config, subnet)

    @property
    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "model": model_fingerprint(self.supernet)}


def _pass_on_values(module: nn.Module, query: Any, key: Any, value: torch.Tensor, *_: Any, **__: Any) -> Any:
    """Attention of a single token; queries of the same key-value head read the same values."""
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2), None


_VALUES = "hf_whittle_values"
AttentionInterface.register(_VALUES, _pass_on_values)


@contextmanager
def _norms_pass_on(model: "SuperNetModel") -> Iterator[None]:
    names = [weight.module.format(layer=layer) for weight, layer in all_weights(model.full_config) if weight.is_norm]
    norms = map(model.get_submodule, names)
    hooks = [norm.register_forward_hook(lambda module, inputs, output: inputs[0]) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class JacobianCovariance(TokenFitness):
    """Likeness of the gradients of blocks with respect to embeddings (arXiv 2006.04647). Experimental: tau -0.04.

    With the eigenvalues v of the correlation matrix of these gradients, a row for each block, it is
    `sum(log(v) + 1 / v)`, the negative of the published score. It needs at least two blocks.
    """

    name = "jacobian-covariance"

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        """FLOPs of a forward pass, and of a backward pass to the embeddings without the gradients of the matrices."""
        config, length = self.supernet.full_config, self.input_ids.shape[1]
        whole, matrices = (flops_per_token(config, subnet, sequence_length=size) for size in (length, 0))
        return self.tokens(share) * (3 * whole - matrices)

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        _check_whole(self.supernet, self.name)
        jacobians = []
        with self.supernet.active_subnet(subnet), evaluating(self.supernet), torch.enable_grad():
            for batch in self.input_ids[self.rows(share)].split(_at_a_time(self)):
                embeddings = self.supernet.get_input_embeddings()(batch.to(self.supernet.device)).detach()
                embeddings.requires_grad_()
                output = self.supernet(inputs_embeds=embeddings, use_cache=False).logits.sum()
                jacobians.append(torch.autograd.grad(output, embeddings)[0].flatten(1))
        correlation = torch.corrcoef(torch.cat(jacobians).double())
        if correlation.ndim == 0 or not correlation.isfinite().all():
            return math.inf
        values = torch.linalg.eigvalsh(correlation) + 1e-5
        return (values.log() + 1 / values).sum().item()
