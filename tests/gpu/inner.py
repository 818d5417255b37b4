"""Names that hf_whittle keeps in inner modules, imported here and nowhere else in this folder."""

from hf_whittle.distillation.fused import fused_distillation_loss
from hf_whittle.distillation.losses import DIVERGENCES, IGNORED, LossWeights, naive_distillation_loss
from hf_whittle.distillation.targets import DenseTargets, Head, SparseTargets
from hf_whittle.errors import WeightsError
from hf_whittle.evaluation import cross_entropy
from hf_whittle.importance import CRITERIA, LAYER_CRITERIA

__all__ = [
    "CRITERIA",
    "DIVERGENCES",
    "IGNORED",
    "LAYER_CRITERIA",
    "DenseTargets",
    "Head",
    "LossWeights",
    "SparseTargets",
    "WeightsError",
    "cross_entropy",
    "fused_distillation_loss",
    "naive_distillation_loss",
]
