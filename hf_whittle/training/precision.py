"""Precision of weights that are trained."""

import torch
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

_WHAT_TO_DO = "load it with dtype=torch.float32, and set bf16=True or fp16=True for mixed precision"


def check_precision(model: nn.Module, name: str) -> None:
    """Find out whether an optimizer can change the trained weights of a model; warn if it loses small updates.

    Args:
        model (`nn.Module`): the model.
        name (`str`): what it is, such as `"student"`.

    Raises:
        ValueError: if weights are in float16, whose smallest numbers gradients and updates fall below.
    """
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if torch.float16 in dtypes:
        raise ValueError(
            f"the {name}'s weights are in float16, in which an optimizer loses small updates; {_WHAT_TO_DO}"
        )
    if torch.bfloat16 in dtypes:
        logger.warning(
            f"The {name}'s weights are in bfloat16, in which an optimizer loses updates below 1/256 of a weight; "
            f"{_WHAT_TO_DO}"
        )
