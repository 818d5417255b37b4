"""Names that hf_whittle keeps in inner modules, imported here and nowhere else in this folder."""

from hf_whittle.evaluation import cross_entropy
from hf_whittle.importance.scores import CRITERIA, LAYER_CRITERIA
from hf_whittle.loss.divergences import DIVERGENCES, IGNORED, LossWeights, naive_distillation_loss
from hf_whittle.loss.fused import fused_distillation_loss
from hf_whittle.loss.targets import DenseTargets, Head, SparseTargets

__all__ = [
    "CRITERIA",
    "DIVERGENCES",
    "IGNORED",
    "LAYER_CRITERIA",
    "DenseTargets",
    "Head",
    "LossWeights",
    "SparseTargets",
    "cross_entropy",
    "fused_distillation_loss",
    "naive_distillation_loss",
]
