"""Oracles of the fused distillation loss, with its signature: the plain formula, and the loss of liger-kernel."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

import hf_whittle.training.loss_in_head
from hf_whittle.loss.divergences import IGNORED, DistillationLoss, LossWeights, naive_distillation_loss
from hf_whittle.loss.fused import fused_distillation_loss

_WEIGHT_OF_TEACHER = {"forward_kl": 0.0, "reverse_kl": 1.0}


def naive_loss(hidden_states, head, targets, labels, weights=None, chunk_size=None):
    """The plain formula on the logits of all rows at once."""
    logits = hidden_states if head is None else F.linear(hidden_states, head.weight, head.bias)
    rows = torch.arange(len(logits), device=logits.device)
    teacher = logits.detach() if targets is None else targets.logits(rows, logits.shape[-1]).to(logits.device)
    return naive_distillation_loss(logits, teacher, labels, weights or LossWeights())


def liger_loss(hidden_states, head, targets, labels, weights=None, chunk_size=1024):
    """The chunked loss of liger-kernel; compiled on a GPU.

    It has forward and reverse KL and Jensen-Shannon, reads hidden states and output matrices of both models, and
    cannot pad a teacher's smaller vocabulary.
    """
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

    weights = weights or LossWeights()
    teacher = targets.head.first(head.size)
    rows = (labels != IGNORED).nonzero()[:, 0]
    number = max(len(rows), 1)
    mean, soft, hard = LigerFusedLinearJSDFunction.apply(
        hidden_states[rows].to(head.weight.dtype),
        head.weight,
        targets.hidden_states[rows.to(targets.hidden_states.device)].to(head.weight),
        teacher.weight.to(head.weight),
        labels[rows],
        head.bias,
        teacher.bias,
        weights.alpha,
        weights.beta * weights.temperature**2,
        _WEIGHT_OF_TEACHER.get(weights.divergence, weights.jsd_weight),
        IGNORED,
        weights.temperature,
        hidden_states.is_cuda,
        chunk_size,
        True,
    )
    return DistillationLoss(mean * number, hard.detach() * number, soft.detach() * number, (labels != IGNORED).sum())


LOSSES = {"fused": fused_distillation_loss, "naive": naive_loss, "liger": liger_loss}


@contextlib.contextmanager
def loss_of_trainers(name):
    """Inside the block, `DistillationTrainer` trains with one of `LOSSES`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_whittle.training.loss_in_head, "fused_distillation_loss", LOSSES[name])
        yield
