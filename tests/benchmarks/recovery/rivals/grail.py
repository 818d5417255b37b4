"""GRAIL: the consumer's weights refitted to what is kept, by ridge regression (arXiv 2602.23795).

With `G` the Gram matrix of what an output projection reads, its kept inputs `k` reconstruct all of them by
`B = G[:, k] (G[k, k] + lambda I)^-1`, and `W <- W B`. `lambda` is a share of the mean of the diagonal of `G[k, k]`:
as good as 0, as in the authors' runs of language models. Layer by layer, as their code does it: both Gram matrices are
those of the uncut layer on hidden states that come from the recovered layers before it. Heads are recovered as single
inputs of the output projection of attention, as there. No parameters are added.
"""

from typing import Any

import torch

from hf_whittle.models.elastic import take
from hf_whittle.models.rows import KeptRows

from ..passes import Stream, layers_of, module_of, observed, writers
from .cut import Cut

RIDGE = 1e-9  # not 0, for neurons that are never active


def compensate(cut: Cut, student: Any) -> None:
    """Refit the output projections of a student."""
    config, stream = cut.teacher.config, Stream(student, cut.calibration)
    rows = KeptRows(config, cut.subnet)
    for position, layer in enumerate(cut.subnet.layers):
        whole = {weight.name: module_of(cut.teacher, weight, layer) for weight in writers(config)}
        grams = gram_matrices(stream, layers_of(cut.teacher)[layer], whole)
        for weight in writers(config):
            gram = grams[weight.name]
            kept = take(torch.arange(len(gram)), 0, rows(weight.inputs, position))
            refitted = whole[weight.name].weight.double() @ reconstruction(gram, kept, RIDGE)
            module_of(student, weight, position).weight.copy_(refitted)
        stream.states = list(stream.run(layers_of(student)[position]))


def gram_matrices(stream: Stream, layer: Any, modules: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Sums over tokens of the outer products of what modules of a layer read."""
    grams = dict.fromkeys(modules, torch.zeros((), dtype=torch.float64))
    with observed(modules) as seen:
        for _ in stream.run(layer):
            features = {name: seen[name].inputs.flatten(0, 1) for name in modules}
            grams = {name: gram + (features[name].T @ features[name]).double() for name, gram in grams.items()}
    return grams


def reconstruction(gram: torch.Tensor, kept: torch.Tensor, ridge: float) -> torch.Tensor:
    """The matrix that reconstructs all inputs from those that are kept, `(inputs, kept)`."""
    own = gram[kept][:, kept]
    own = own + ridge * own.diagonal().mean() * torch.eye(len(kept), dtype=gram.dtype)
    return torch.linalg.solve(own, gram[kept]).T
