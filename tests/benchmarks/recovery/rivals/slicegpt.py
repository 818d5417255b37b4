"""SliceGPT: principal components of hidden states instead of kept channels (arXiv 2401.15024).

Norms are folded into the matrices that read them; one that subtracts the mean is made one that does not by centering
everything that is added to the hidden states. Then each block gets an orthogonal basis `Q`: the principal components of
the hidden states before its norm, on calibration text that comes from the sliced blocks before it, as in the authors'
code (the paper's text has them after the norm). The last components are deleted. The residual passes from block to
block by `Q_before^T Q_after`, which adds a square matrix of the components to each block, one to a layer where
attention and MLP stand side by side. Embedding and output matrix get bases of their own, so that they are not tied.

By default the output matrix is not sliced, as in the authors' code: it reads all components of the last basis.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hf_whittle.architectures.dimensions import CHANNELS
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.architectures.table import Weight
from hf_whittle.cost import num_parameters
from hf_whittle.models.weights import all_weights
from hf_whittle.subnet import SubnetConfig

from ..passes import Stream, head_of, layers_of, module_of, writers
from .cut import Cut

KNOWN = ("llama", "gpt_neox")


class ScalelessNorm(nn.Module):
    """Divides by the root mean square over all channels, of which some components may be deleted."""

    def __init__(self, channels: int, epsilon: float):
        super().__init__()
        self.channels, self.epsilon = channels, epsilon

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mean_square = hidden_states.square().sum(-1, keepdim=True) / self.channels
        return hidden_states * (mean_square + self.epsilon).rsqrt()


class RotatedLayer(nn.Module):
    """A layer whose residual passes through a matrix at each block.

    Args:
        attention (`nn.Module`): attention.
        mlp (`nn.Module`): the MLP, which reads the hidden states before attention if that stands beside it.
        norm (`nn.Module`): the norm before either.
        is_parallel (`bool`): whether attention and MLP stand side by side.
    """

    def __init__(self, attention: nn.Module, mlp: nn.Module, norm: nn.Module, is_parallel: bool):
        super().__init__()
        self.attention, self.mlp, self.norm, self.is_parallel = attention, mlp, norm, is_parallel
        self.shortcuts = nn.ParameterList()

    def attend(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.attention(hidden_states=self.norm(hidden_states), **arguments)[0]

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        attended = hidden_states @ self.shortcuts[0] + self.attend(hidden_states, **arguments)
        if self.is_parallel:
            return attended + self.mlp(self.norm(hidden_states))
        return attended @ self.shortcuts[1] + self.mlp(self.norm(attended))


def recover(cut: Cut) -> Any:
    """Delete as many components as the subnet deletes channels."""
    return slice_model(cut, cut.subnet.shape.hidden_size, slices_head=False)


def recover_at_size(cut: Cut) -> Any:
    """Delete as many components as makes the result no larger than the subnet's student, those of the head too."""
    config = cut.teacher.config
    size = num_parameters(config, cut.subnet)
    kept = max(kept for kept in range(1, config.hidden_size + 1) if parameters(config, kept) <= size)
    return slice_model(cut, kept, slices_head=True)


def parameters(config: Any, kept: int) -> int:
    """Parameters of a model with `kept` components, those of the head sliced too."""
    weights = [weight for weight in get_architecture(config).weights if weight.exists(config)]
    norms = [weight for weight in weights if weight.module in {other.norm for other in weights}]
    head = head_of(config)
    plain = num_parameters(config, SubnetConfig.full(config).replaced({CHANNELS: kept}))
    of_norms = kept * sum(config.num_hidden_layers if weight.in_layer else 1 for weight in norms)
    untied = config.vocab_size * kept if head.is_shared(config) else 0
    head_bias = config.vocab_size * any(weight.name == f"{head.norm}.bias" for weight in norms)
    blocks = config.num_hidden_layers * (1 if get_architecture(config).is_parallel(config) else 2)
    return plain - of_norms + untied + head_bias + blocks * kept**2


@torch.no_grad()
def slice_model(cut: Cut, kept: int, slices_head: bool) -> Any:
    """A copy of the teacher that has `kept` components in place of its channels."""
    config = cut.teacher.config
    if config.model_type not in KNOWN:
        raise ValueError(f"SliceGPT is written here for {' and '.join(KNOWN)}, got a {config.model_type}")
    model = copy.deepcopy(cut.teacher)
    fold_norms(model)
    replace_layers(model)
    stream, layers = Stream(model, cut.calibration), layers_of(model)
    basis = principal(stream.states, kept)
    embedding = model.get_input_embeddings()
    embedding.weight = nn.Parameter(embedding.weight @ basis)
    stream.states = [states @ basis for states in stream.states]
    for number in range(len(layers)):
        is_full = number == len(layers) - 1 and not slices_head
        basis = slice_layer(model, number, stream, basis, None if is_full else kept)
    read([module_of(model, head_of(config))], basis)
    return model


def fold_norms(model: Any) -> None:
    """Fold every norm into the matrices that read it; center what is written where norms subtract the mean."""
    config = model.config
    untie(model, head_of(config))
    for weight, layer in all_weights(config):
        if weight.norm is None:
            continue
        norm, linear = model.get_submodule(weight.norm.format(layer=layer)), module_of(model, weight, layer)
        if getattr(norm, "bias", None) is not None:
            bias = linear.weight @ norm.bias
            linear.bias = nn.Parameter(bias if linear.bias is None else linear.bias + bias)
        linear.weight.mul_(norm.weight)
    if get_architecture(config).norms.kind == "layer":
        center(model.get_input_embeddings().weight, 1)
        for weight, layer in itertools.product(writers(config), range(config.num_hidden_layers)):
            linear = module_of(model, weight, layer)
            center(linear.weight, 0)
            if linear.bias is not None:
                center(linear.bias, 0)


def replace_layers(model: Any) -> None:
    """Replace norms and layers by those that can be sliced."""
    config, layers = model.config, layers_of(model)
    norm = ScalelessNorm(config.hidden_size, get_architecture(config).norms.epsilon(config))
    put(model, str(head_of(config).norm), norm)
    for layer in range(len(layers)):
        attention, mlp = (model.get_submodule(name.format(layer=layer)) for name in blocks_of(config))
        layers[layer] = RotatedLayer(attention, mlp, norm, get_architecture(config).is_parallel(config))


def untie(model: Any, head: Weight) -> None:
    """Give the output matrix memory of its own."""
    matrix = module_of(model, head)
    matrix.weight = nn.Parameter(matrix.weight.clone())


def put(model: Any, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def center(weight: torch.Tensor, dim: int) -> None:
    weight.sub_(weight.mean(dim, keepdim=True))


def blocks_of(config: Any) -> list[str]:
    """Names of attention and of the MLP."""
    return [writer.module.rpartition(".")[0] for writer in writers(config)]


def slice_layer(model: Any, number: int, stream: Stream, basis: torch.Tensor, kept: int | None) -> torch.Tensor:
    """Rotate and slice a layer whose inputs are in `basis`, and give the basis of its outputs."""
    layer = layers_of(model)[number]

    def attended(states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return states @ basis.T + layer.attend(states, **arguments)

    def written(states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return states @ basis.T + layer.mlp(layer.norm(states))

    def both(states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return attended(states, **arguments) + layer.mlp(layer.norm(states))

    (attention_readers, attention_writer), (mlp_readers, mlp_writer) = sides(layer.attention), sides(layer.mlp)
    read(attention_readers, basis)
    if layer.is_parallel:
        read(mlp_readers, basis)
        return advance(layer, stream, both, basis, kept, [attention_writer, mlp_writer])
    basis = advance(layer, stream, attended, basis, basis.shape[1], [attention_writer])
    read(mlp_readers, basis)
    return advance(layer, stream, written, basis, kept, [mlp_writer])


def sides(block: nn.Module) -> tuple[list[nn.Linear], nn.Linear]:
    """The matrices of attention or an MLP that read hidden states, and the one that writes them."""
    *readers, writer = (module for module in block.modules() if isinstance(module, nn.Linear))
    return readers, writer


def advance(
    layer: RotatedLayer,
    stream: Stream,
    block: Callable[..., torch.Tensor],
    basis: torch.Tensor,
    kept: int | None,
    written_by: list[nn.Linear],
) -> torch.Tensor:
    """Pass a block, whose outputs have all channels, and give the basis of these, in which it writes from now on."""
    outputs = list(stream.run(block))
    after = principal(outputs, kept)
    layer.shortcuts.append(nn.Parameter(basis.T @ after))
    for linear in written_by:
        linear.weight = nn.Parameter(after.T @ linear.weight)
        if linear.bias is not None:
            linear.bias = nn.Parameter(after.T @ linear.bias)
    stream.states = [states @ after for states in outputs]
    return after


def read(readers: list[nn.Linear], basis: torch.Tensor) -> None:
    """Let matrices read hidden states in a basis."""
    for linear in readers:
        linear.weight = nn.Parameter(linear.weight @ basis)


def principal(states: list[torch.Tensor], kept: int | None) -> torch.Tensor:
    """The first principal components of hidden states, all by default, `(channels, kept)`."""
    size = states[0].shape[-1]
    gram = torch.zeros(size, size, dtype=torch.float64)
    for batch in states:
        features = batch.flatten(0, 1).double()
        gram += features.T @ features
    return torch.linalg.eigh(gram).eigenvectors.flip(1)[:, :kept].float()
