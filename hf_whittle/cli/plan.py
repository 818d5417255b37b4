"""`hf-whittle plan`: what a recipe takes, before it is run."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from .output import Outcome, add_json, aligned

if TYPE_CHECKING:
    from ..plan.facts import Plan, StagePlan

HELP = "Tell the parameters, tokens, FLOPs, memory, disk and hours of each stage of a recipe, before it is run."
EXAMPLE = "hf-whittle plan recipe.yaml --device h100"
INTERRUPTED = "nothing was written"

_COSTS = ("", "parameters", "tokens", "FLOPs", "time", "memory", "disk")
_PARTS = ("weights", "optimizer", "gradients", "moments", "activations", "logits", "evaluation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file; see examples/recipes")
    parser.add_argument("--device", help="device to plan for, as listed in docs/costs.md (default: a100-80gb)")
    parser.add_argument("--utilization", type=float, help="share of its peak that the device reaches (default: 0.35)")
    parser.add_argument("--measure", action="store_true", help="measure this machine for some seconds, and plan for it")
    parser.add_argument(
        "--subnet", help="subnet.json of the student, or a folder with one (default: the costliest of the bin)"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes of a launcher, each on such a device (default: 1)"
    )
    parser.add_argument("--read-text", action="store_true", help="tokenize the text and count it, as the run will")
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    from transformers.utils import logging

    from ..errors import WhittleError
    from ..plan import plan_recipe
    from ..plan.planning import DEVICE
    from ..recipe.recipe import Recipe
    from .extract import read_subnet

    if options.measure and (options.device or options.utilization is not None):
        raise WhittleError("--measure finds the speed of this machine; leave out --device and --utilization")
    logging.disable_progress_bar()
    recipe = Recipe.load(options.recipe, **options.keys)
    plan = plan_recipe(
        recipe,
        None if options.measure else options.device or DEVICE,
        utilization=options.utilization,
        subnet=None if options.subnet is None else read_subnet(options.subnet),
        read_text=options.read_text,
        processes=options.processes,
    )
    return Outcome(plan.to_dict(), summary(plan))


def summary(plan: "Plan") -> str:
    """Make tables of a plan."""
    which = "" if plan.is_student_known else "at most "
    origin = " that is given" if plan.supernet is None else f", from a super-network of {plan.supernet:,}"
    device, others = plan.device, _other_devices(plan)
    devices = device.name if plan.processes == 1 else f"{plan.processes} devices of {device.name}"
    lines = [
        f"A student of {which}{plan.student:,} parameters{origin}, on {devices}",
        f"({_rates(plan)}; {device.source})",
        "",
        *_table([_COSTS, *map(_costs, plan.stages), _total(plan)]),
        "",
        "Memory by purpose, not all of it at the same time:",
        "",
        *_memory(plan.stages),
    ]
    if others:
        lines += ["", "Time in all on other devices: " + ", ".join(others)]
    for problem in plan.problems:
        lines += ["", f"{problem.stage} needs {_bytes(problem.needed)}, {device.name} has {_bytes(problem.available)}:"]
        lines += [f"  - {change}" for change in problem.changes]
    if not plan.problems:
        lines += ["", f"Every stage fits into the {_bytes(plan.device.memory)} of {device.name}."]
    return "\n".join([*lines, *plan.notes])


def _rates(plan: "Plan") -> str:
    device = plan.device
    rates = ", ".join(f"{getattr(device, name) / 1e12:.3g} TFLOP/s in {name}" for name in ("bf16", "fp32"))
    return rates if device.utilization == 1 else f"{device.utilization:.0%} of {rates}"


def _costs(stage: "StagePlan") -> tuple[str, ...]:
    flops = f"{'<= ' if stage.is_bound else ''}{stage.flops:.2e}"
    if stage.likely_flops is not None:
        flops = f"{stage.likely_flops:.1e} {flops}"
    name = stage.name if stage.evaluations is None else f"{stage.name}, {stage.evaluations:,} subnets"
    return (
        name,
        "" if stage.parameters is None else f"{stage.parameters:,}",
        f"{stage.tokens:,}",
        flops,
        time_in_words(stage.hours or 0),
        _bytes(stage.memory.peak),
        _bytes(stage.disk) if stage.disk else "",
    )


def _total(plan: "Plan") -> tuple[str, ...]:
    peak = max(stage.memory.peak for stage in plan.stages)
    return ("in all", "", "", "", time_in_words(plan.hours), _bytes(peak), _bytes(plan.disk))


def _memory(stages: tuple["StagePlan", ...]) -> list[str]:
    used = [name for name in _PARTS if any(getattr(stage.memory, name) for stage in stages)]
    rows = [(stage.name, *(_part(stage, name) for name in used)) for stage in stages]
    return _table([("", *used), *rows])


def _part(stage: "StagePlan", name: str) -> str:
    size = getattr(stage.memory, name)
    return _bytes(size) if size else ""


def _other_devices(plan: "Plan") -> list[str]:
    from ..plan.devices import DEVICES, UTILIZATION

    share = plan.device.utilization if plan.device.name in DEVICES else UTILIZATION
    others = [replace(each, utilization=share) for name, each in DEVICES.items() if name != plan.device.name]
    return [f"{each.name} {time_in_words(sum(stage.hours_on(each) for stage in plan.stages))}" for each in others]


def time_in_words(hours: float) -> str:
    """Hours in words."""
    for unit, size in (("days", 24), ("h", 1), ("min", 1 / 60)):
        if hours >= (2 if unit == "days" else 1) * size:
            return f"{hours / size:,.1f} {unit}"
    return f"{3600 * hours:.2g} s"


def _bytes(size: float) -> str:
    from ..plan.advice import in_words

    return in_words(size)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    header, *lines = [line.rstrip() for line in aligned(rows)]
    return [header, "-" * len(header), *lines]
