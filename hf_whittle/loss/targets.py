"""What a teacher says about rows of tokens: everything, through its output matrix, or some entries of it.

Shapes: `N` rows (tokens), `V` entries of the vocabulary, `K` entries given for a row, `C` channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

NEVER = -1e4
"""Logit of an entry that the teacher does not have; its probability is 0 in any precision."""


@dataclass(frozen=True)
class Head:
    """An output matrix: logits are `states @ weight.T + bias`.

    Args:
        weight (`torch.Tensor`): `(V, C)`.
        bias (`torch.Tensor`, *optional*): `(V,)`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Entries of the vocabulary."""
        return self.weight.shape[0]

    def first(self, size: int) -> "Head":
        """The head of the first `size` entries."""
        return self if size >= self.size else Head(self.weight[:size], None if self.bias is None else self.bias[:size])


@dataclass(frozen=True)
class DenseTargets:
    """The teacher's whole distribution, from states and its output matrix, or from logits at hand.

    Args:
        states (`torch.Tensor`): `(N, C)`, or logits `(N, V)` without a head.
        head (`Head`, *optional*): the teacher's output matrix.
    """

    states: torch.Tensor
    head: Head | None = None

    def __len__(self) -> int:
        return len(self.states)

    def cast(self, dtype: torch.dtype) -> "DenseTargets":
        """The same with an output matrix of another type, which is then that of the multiplication."""
        if self.head is None:
            return self
        bias = None if self.head.bias is None else self.head.bias.to(dtype)
        return DenseTargets(self.states, Head(self.head.weight.to(dtype), bias))

    def logits(self, rows: torch.Tensor, size: int, temperature: float = 1.0) -> torch.Tensor:
        """Logits of some rows divided by the temperature, in a tensor of their own, `(n, size)`.

        Entries beyond the teacher's vocabulary get `NEVER`; a larger one is cut, as its last entries belong to no
        token.
        """
        states = self.states[rows.to(self.states.device)]
        if self.head is None:
            logits = states[:, :size] / temperature
        else:
            head = self.head.first(size)
            logits = (states / temperature).to(head.weight) @ head.weight.T
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

    With `tail`, the probability that is left over is compared with the student's of all other entries together, as one
    entry: KL of the two distributions with those entries merged, never above the whole one. Without, the probabilities
    given sum to 1 by themselves, as frequencies of samples do; an entry may occur more than once.

    Args:
        ids (`torch.Tensor`): `(N, K)`, `int64`.
        probabilities (`torch.Tensor`): `(N, K)`, single precision.
        tail (`bool`): whether what is left to 1 is that of the other entries.
        entropy (`torch.Tensor`, *optional*): `(N,)`, of the whole distribution in nats, where the given entries do not
            tell it; makes the value of the divergence, not its gradient, right.
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
