"""A recipe drafted for a teacher, a size and this machine: bin, batch, precision and lengths, checked by its plan."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from ..cost.bins import ParameterBin
from ..cost.counts import num_parameters
from ..errors import BinError, RecipeError
from ..evaluation.batches import ON_CPU
from ..recipe.recipe import Recipe
from ..recipe.sections import SpaceSection
from ..run.inputs import load_config
from ..run.search_inputs import make_space_of
from .devices import Device
from .facts import Plan, Problem, StagePlan
from .planning import plan_recipe

WIDTHS = (0.03, 0.06, 0.12)
"""Half widths of a bin, as shares of its middle, of which the first that can be reached is taken."""
HOURS = 8.0
"""Most hours of the student's training."""
TOKENS_PER_PARAMETER = 20
"""Most training tokens for each parameter of the student."""
SHARE = 0.8
"""Share of the device's memory that a plan may take; a process takes more than its tensors."""
_LONGEST_BLOCK, _FEWEST_STEPS, _SMALLEST_STEP, _ROUNDS = 1024, 500, 4096, 6
_FASTER = 1.1  # times that mixed precision must be faster to be worth its rounding
_BY_SIZE = ((5e6, 2e-3, 4096), (50e6, 1e-3, 16384), (250e6, 6e-4, 65536), (1e9, 3e-4, 131072), (math.inf, 2e-4, 262144))
"""Largest student, and its learning rate and tokens of a step; those of Pythia's sizes, and of the demo's."""


@dataclass(frozen=True)
class Draft:
    """A drafted recipe.

    Args:
        values (`dict`): its keys and values.
        plan (`Plan`): its plan on this machine.
        teacher (`int`): parameters of the teacher.
        target (`int`): parameters of the student that were asked for.
    """

    values: dict[str, Any]
    plan: Plan
    teacher: int
    target: int


def draft_recipe(
    teacher: str,
    output_dir: str,
    data: dict[str, Any],
    *,
    parameters: float | None = None,
    ratio: float = 0.4,
    device: Device | None = None,
) -> Draft:
    """Draft a recipe.

    Args:
        teacher (`str`): a folder, or a name on the Hub.
        output_dir (`str`): folder of the results.
        data (`dict`): keys of the section `data` that name the text.
        parameters (`float`, *optional*): parameters of the student.
        ratio (`float`, *optional*, defaults to 0.4): the same as a share of the teacher's, without `parameters`.
        device (`Device`, *optional*): the device; this machine, which is measured for some seconds, by default.

    Raises:
        BinError: if no student of that size can be made; it says which can.
        RecipeError: if the size is none, or not below the teacher's.
        CheckpointError, ArchitectureError: if the teacher cannot be read, or its architecture has no table.
    """
    config = load_config(teacher)
    total = num_parameters(config)
    target = _target(total, parameters, ratio)
    size = min(_LONGEST_BLOCK, config.max_position_embeddings)
    rate, step = next((rate, step) for most, rate, step in _BY_SIZE if target <= most)
    values: dict[str, Any] = {
        "teacher": teacher,
        "output_dir": output_dir,
        "data": {**data, "block_size": size},
        "bin": _bin(config, target),
        "search": {"fitness": "perplexity"},
        "training": {"max_steps": 1000, **_batch(step, size), "learning_rate": rate},
        "baseline": False,
    }
    plan = plan_recipe(Recipe.from_dict(values), device)
    device = replace(plan.device, memory=int(SHARE * plan.device.memory))
    if device.bf16 > _FASTER * device.fp32:
        values["training"]["bf16"] = True
    _set_lengths(values, plan.stage("student"), plan.stage("search"), device, step)
    return Draft(values, _fitting(values, device), total, target)


def _target(total: int, parameters: float | None, ratio: float) -> int:
    """Parameters to aim at."""
    if parameters is None and not 0 < ratio < 1:
        raise RecipeError(f"the ratio of the student to its teacher must lie between 0 and 1, got {ratio:g}")
    target = ratio * total if parameters is None else parameters
    if not 1 <= target < total:
        raise RecipeError(
            f"a student must have fewer parameters than its teacher, which has {total:,}; got {target:,.0f}"
        )
    return round(target)


def _bin(config: PreTrainedConfig, target: int) -> dict[str, int]:
    """The narrowest bin around a number of parameters that some student lies in."""
    space = make_space_of(config, SpaceSection())
    bins = [ParameterBin(_rounded(target * (1 - width)), _rounded(target * (1 + width))) for width in WIDTHS]
    for bin in bins:
        try:
            space.reachable_pairs(bin)
        except BinError:
            if bin is bins[-1]:
                raise
        else:
            break
    return {"low": int(bin.low), "high": int(bin.high)}


def _rounded(number: float, digits: int = 3) -> int:
    """A number with so many digits that are not zeros."""
    return round(round(number, digits - 1 - math.floor(math.log10(number))))


def _batch(tokens: int, block_size: int) -> dict[str, int]:
    """The batch of a step of so many tokens."""
    blocks = _power_of_2(max(1, tokens // block_size))
    return {"per_device_train_batch_size": min(16, blocks), "gradient_accumulation_steps": max(1, blocks // 16)}


def _half(values: dict[str, Any], section: dict[str, Any]) -> int:
    """Half of the blocks that a section of a recipe runs at a time, at least one."""
    blocks: int = section.get("batch_size") or ON_CPU // values["data"]["block_size"]
    return max(1, blocks // 2)


def _power_of_2(number: float) -> int:
    """The largest power of 2 that is not above a number."""
    return 1 << max(0, math.floor(math.log2(max(1.0, number))))


def _set_lengths(values: dict[str, Any], student: StagePlan, search: StagePlan, device: Device, step: int) -> None:
    """Set the lengths of training, search and evaluations, so that none takes far more time than the others."""
    training, size = values["training"], values["data"]["block_size"]
    precision = "bf16" if training.get("bf16") else "fp32"
    hours_of_token = device.hours(student.flops / student.tokens, precision)
    tokens = min(TOKENS_PER_PARAMETER * (student.parameters or 0), HOURS / hours_of_token)
    while tokens / step < _FEWEST_STEPS and step > _SMALLEST_STEP:
        step //= 2
    training |= _batch(step, size)
    of_step = size * training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    training["max_steps"] = max(50, _rounded(tokens / of_step, 2))
    training["warmup_steps"] = max(1, training["max_steps"] // 20)
    read = of_step * training["max_steps"]
    values["data"]["test_tokens"] = min(262144, max(8192, _power_of_2(read / 50)))
    share = read * hours_of_token / 2 / (search.hours_on(device) or math.inf)
    values["data"]["search_tokens"] = min(65536, max(4096, _power_of_2(65536 * share)))
    if 65536 * share < 4096:
        values["search"]["generations"] = 10


def _fitting(values: dict[str, Any], device: Device) -> Plan:
    """Change a recipe until each of its stages fits on a device, as far as that can be; its plan."""
    for _ in range(_ROUNDS):
        plan = plan_recipe(Recipe.from_dict(values), device)
        before = copy.deepcopy(values)
        for problem in plan.problems:
            _relieve(values, problem)
        if values == before:
            return plan
    return plan_recipe(Recipe.from_dict(values), device)


def _relieve(values: dict[str, Any], problem: Problem) -> None:
    """Change what makes a stage smaller and costs least; nothing if that is done."""
    training, over = values["training"], problem.needed / problem.available
    batch = training["per_device_train_batch_size"]
    if problem.stage == "student" and batch > 1:
        fitting = max(1, min(batch // 2, _power_of_2(batch / over)))
        training["gradient_accumulation_steps"] *= batch // fitting
        training |= {"per_device_train_batch_size": fitting, "per_device_eval_batch_size": min(8, fitting)}
    elif problem.stage == "student" and "activation_checkpointing" not in training:
        training["activation_checkpointing"] = True
    elif problem.stage == "search" and values["search"].get("batch_size") != 1:
        values["search"]["batch_size"] = _half(values, values["search"])
    elif problem.stage == "healing" and values.get("heal", {}).get("batch_size") != 1:
        values["heal"] = {"batch_size": _half(values, values.get("heal", {}))}
    else:
        values["teacher_options"] = {"dtype": "bfloat16"}  # of the super-network, too, which is the same model
