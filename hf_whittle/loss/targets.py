"""Targets of distillation: the teacher's whole next-token distribution, or some of its entries.

Shapes: `N` rows (tokens), `V` entries of the vocabulary, `K` entries kept for a row, `C` channels.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..models.heads import Head, OutputLayer, head_of, in_place_of

NEVER = -1e4
"""Logit of an entry beyond the teacher's vocabulary; its probability is 0 in any precision."""


@dataclass(frozen=True)
class Restriction:
    """The entries of a teacher's vocabulary that its student has, and those whose probability is pushed to them.

    The probability of all other entries is left out, and the rest sums to 1 again.

    Args:
        kept (`torch.Tensor`): the teacher's entry for each of the student's, `(V_student,)`, `int64`.
        dropped (`torch.Tensor`, *optional*): other entries of the teacher, `(D,)`, `int64`.
        receivers (`torch.Tensor`, *optional*): the student's entry that each of these pushes its probability to,
            `(D,)`, `int64`.
    """

    kept: torch.Tensor
    dropped: torch.Tensor | None = None
    receivers: torch.Tensor | None = None

    @property
    def is_selection(self) -> bool:
        """Whether logits of the kept entries are all it takes."""
        return self.dropped is None or not len(self.dropped)

    def to(self, device: torch.device) -> "Restriction":
        """The same restriction on a device."""
        others = (None if part is None else part.to(device) for part in (self.dropped, self.receivers))
        return Restriction(self.kept.to(device), *others)

    @torch.no_grad()
    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of the student's entries, `(n, V_student)` in at least single precision, from all of the teacher's.

        The exponential of a logit is the sum of those of the entries that are kept as, or pushed to it.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        kept = logits[:, self.kept]
        if self.is_selection:
            return kept
        assert self.dropped is not None and self.receivers is not None
        pushed = logits[:, self.dropped]
        highest = torch.maximum(kept.amax(-1, keepdim=True), pushed.amax(-1, keepdim=True))
        sums = (kept - highest).exp_().index_add_(1, self.receivers, (pushed - highest).exp_())
        return torch.maximum(sums.log_() + highest, kept)  # a sum that underflows is at least its own entry


@dataclass(frozen=True)
class DenseTargets:
    """The teacher's whole distribution, as hidden states and an output matrix, or as logits.

    Args:
        hidden_states (`torch.Tensor`): last hidden states, `(N, C)`; logits `(N, V)` if there is no head.
        head (`Head`, *optional*): the teacher's output matrix.
        restriction (`Restriction`, *optional*): the student's part of the teacher's vocabulary, if it has another.
    """

    hidden_states: torch.Tensor
    head: Head | None = None
    restriction: Restriction | None = None

    def __len__(self) -> int:
        return len(self.hidden_states)

    def restricted(self, restriction: Restriction) -> "DenseTargets":
        """The same targets for a student with another vocabulary.

        Where a selection of entries is all it takes, the others are left out of the output matrix, or of the logits.
        """
        restriction = restriction.to(self.hidden_states.device)
        if not restriction.is_selection:
            return replace(self, restriction=restriction)
        if self.head is None:
            return DenseTargets(self.hidden_states[:, restriction.kept])
        return DenseTargets(self.hidden_states, self.head[restriction.kept])

    def cast(self, dtype: torch.dtype) -> "DenseTargets":
        """The same targets with the output matrix in another type, in which logits are then computed."""
        if self.head is None:
            return self
        bias = None if self.head.bias is None else self.head.bias.to(dtype)
        return replace(self, head=Head(self.head.weight.to(dtype), bias))

    def logits(self, rows: torch.Tensor, size: int, temperature: float = 1.0) -> torch.Tensor:
        """Logits of some rows divided by the temperature, in a new tensor `(n, size)`.

        A smaller vocabulary is padded with `NEVER`; a larger one is truncated, as its last entries are padding and
        belong to no token. A restriction comes before the temperature, as the student's distribution has it.
        """
        hidden_states = self.hidden_states[rows.to(self.hidden_states.device)]
        if self.restriction is not None:
            logits = self.restriction(self._of_head(hidden_states, self.head)).div_(temperature)[:, :size]
        elif self.head is None:
            logits = hidden_states[:, :size] / temperature
        else:
            logits = self._of_head(hidden_states, self.head.first(size), temperature)
        return (
            F.pad(logits, (0, size - logits.shape[-1]), value=NEVER / temperature)
            if logits.shape[-1] < size
            else logits
        )

    @staticmethod
    def _of_head(hidden_states: torch.Tensor, head: Head | None, temperature: float = 1.0) -> torch.Tensor:
        if head is None:
            return hidden_states
        logits = (hidden_states / temperature).to(head.weight) @ head.weight.T
        if head.bias is not None:
            logits += head.bias / temperature
        return logits


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
