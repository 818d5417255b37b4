"""Targets of distillation: the teacher's whole next-token distribution, or some of its entries.

Shapes: `N` rows (tokens), `V` entries of the vocabulary, `K` entries kept for a row, `C` channels.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..models.heads import Head, OutputLayer, head_of, in_place_of

NEVER = -1e4
"""Logit of an entry beyond the teacher's vocabulary; its probability is 0 in any precision."""


@dataclass(frozen=True)
class DenseTargets:
    """The teacher's whole distribution, as hidden states and an output matrix, or as logits.

    Args:
        hidden_states (`torch.Tensor`): last hidden states, `(N, C)`; logits `(N, V)` if there is no head.
        head (`Head`, *optional*): the teacher's output matrix.
    """

    hidden_states: torch.Tensor
    head: Head | None = None

    def __len__(self) -> int:
        return len(self.hidden_states)

    def cast(self, dtype: torch.dtype) -> "DenseTargets":
        """The same targets with the output matrix in another type, in which logits are then computed."""
        if self.head is None:
            return self
        bias = None if self.head.bias is None else self.head.bias.to(dtype)
        return DenseTargets(self.hidden_states, Head(self.head.weight.to(dtype), bias))

    def logits(self, rows: torch.Tensor, size: int, temperature: float = 1.0) -> torch.Tensor:
        """Logits of some rows divided by the temperature, in a new tensor `(n, size)`.

        A smaller vocabulary is padded with `NEVER`; a larger one is truncated, as its last entries are padding and
        belong to no token.
        """
        hidden_states = self.hidden_states[rows.to(self.hidden_states.device)]
        if self.head is None:
            logits = hidden_states[:, :size] / temperature
        else:
            head = self.head.first(size)
            logits = (hidden_states / temperature).to(head.weight) @ head.weight.T
            if head.bias is not None:
                logits += head.bias / temperature
        return (
            F.pad(logits, (0, size - logits.shape[-1]), value=NEVER / temperature)
            if logits.shape[-1] < size
            else logits
        )


@dataclass(frozen=True)
class SparseTargets:
    """Some entries of the teacher's distribution at the temperature of the loss.

    With `tail`, all other entries are merged into one, in both distributions; the KL divergence of these is at most
    that of the whole distributions. Without `tail`, the given probabilities sum to 1, as frequencies of samples do, and
    an entry may occur more than once.

    Args:
        ids (`torch.Tensor`): `(N, K)`, `int64`.
        probabilities (`torch.Tensor`): `(N, K)`, single precision.
        tail (`bool`): whether the rest of the probability belongs to the other entries.
        entropy (`torch.Tensor`, *optional*): `(N,)`, entropy of the whole distribution in nats, if the entries given do
            not determine it; it corrects the value of the divergence and leaves its gradient as it is.
    """

    ids: torch.Tensor
    probabilities: torch.Tensor
    tail: bool
    entropy: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: torch.Tensor | slice) -> "SparseTargets":
        entropy = None if self.entropy is None else self.entropy[rows]
        return SparseTargets(self.ids[rows], self.probabilities[rows], self.tail, entropy)


Targets = DenseTargets | SparseTargets


def dense_targets(run: Callable[..., Any], layer: OutputLayer | None, **inputs: Any) -> DenseTargets:
    """Run a teacher on a batch; targets of all rows, from hidden states if it has an output layer, else from logits.

    Args:
        run (`Callable`): the teacher, or a wrapper of it.
        layer (`OutputLayer`, *optional*): its output layer, found by `output_layer`.
        inputs: arguments of its forward.
    """
    with contextlib.nullcontext() if layer is None else in_place_of(layer, lambda hidden_states: hidden_states):
        outputs = run(**inputs).logits.flatten(0, 1)
    return DenseTargets(outputs, None if layer is None else head_of(layer))
