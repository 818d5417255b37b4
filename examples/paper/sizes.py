"""Sizes of the experiments: how long they train, and on how many seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Size:
    """Size of the experiments; a step reads 8 blocks of 256 tokens.

    Args:
        name (`str`): its name on the command line.
        device (`str`): device of the models.
        steps (`tuple[int, ...]`): training budgets of the headline's key arms.
        other_steps (`tuple[int, ...]`): those of its other arms.
        bracketed (`int`): longest budget whose learning rates are bracketed for the key arms; any other but the
            shortest takes the best rate of the budget before.
        seeds (`int`): seeds of the headline's key arms; those after the first take its rates.
        test_blocks (`int`): test blocks of a module at most.
        rate_blocks (`int`): search blocks that learning rates are picked on.
        evaluations (`int`): evaluations of the paper's search; its own number is 5,050.
        additive (`Mapping`): settings of the additive search, those of the demo.
        repeats (`int`): seeds of the smaller experiments.
        healing_steps (`tuple[int, ...]`): budgets of the experiment on healing.
        calibration (`tuple[int, ...]`): calibration tokens there.
        subnets (`int`): subnets of the study of fitnesses.
        study_steps (`tuple[int, ...]`): its budgets.
        healing_tokens (`int`): calibration tokens elsewhere.
        search_teraflops (`float`): cost of each whole search.
        population (`int`): first candidates of the evolutions among them.
        whole_steps (`int`): training of the students of whole searches.
        space_evaluations (`int`): evaluations in each space and bin.
        ways_steps (`int`): training of the experiments on distillation, teachers and downstream tasks.
        teacher_steps (`int`): training of the smaller teacher.
        spread (`int`): subnets across the whole range of sizes.
        questions (`int`): most questions of a downstream task.
        shapes (`tuple[str, ...]`): channels and layers of further stock models of random weights.
    """

    name: str
    device: str = "cpu"
    steps: tuple[int, ...] = (80, 320, 1280, 5120)
    other_steps: tuple[int, ...] = (80, 320)
    bracketed: int = 80
    seeds: int = 3
    test_blocks: int = 4
    rate_blocks: int = 64
    evaluations: int = 500
    additive: Mapping[str, Any] = field(default_factory=lambda: {"generations": 5})
    repeats: int = 3
    healing_steps: tuple[int, ...] = (8, 32, 128)
    calibration: tuple[int, ...] = (2_560, 8_192, 24_576, 98_304)
    subnets: int = 24
    study_steps: tuple[int, ...] = (32,)
    healing_tokens: int = 24_576
    search_teraflops: float = 2.0
    population: int = 40
    whole_steps: int = 128
    space_evaluations: int = 250
    ways_steps: int = 32
    teacher_steps: int = 320
    spread: int = 30
    questions: int = 100
    shapes: tuple[str, ...] = ("80 x 7", "112 x 3")


SIZES = {
    size.name: size
    for size in (
        Size("cpu"),
        Size(
            "gpu",
            device="cuda",
            steps=(80, 320, 1280, 5120, 8640),
            other_steps=(80, 320, 1280),
            bracketed=5120,
            test_blocks=64,
            rate_blocks=256,
            evaluations=5050,
            repeats=5,
            healing_steps=(8, 32, 128, 512),
            subnets=40,
            study_steps=(32, 128),
            space_evaluations=1000,
            ways_steps=320,
            teacher_steps=1280,
            questions=500,
        ),
        Size(
            "tiny",
            steps=(1, 2),
            other_steps=(1,),
            bracketed=1,
            seeds=2,
            test_blocks=1,
            rate_blocks=1,
            evaluations=4,
            additive={
                "generations": 0,
                "head_options": 1,
                "neuron_options": 1,
                "channel_options": 1,
                "score_share": 0.1,
            },
            repeats=1,
            healing_steps=(1,),
            calibration=(2_560,),
            subnets=2,
            study_steps=(1,),
            healing_tokens=2_560,
            search_teraflops=0.1,
            population=2,
            whole_steps=1,
            space_evaluations=4,
            ways_steps=1,
            teacher_steps=1,
            spread=2,
            questions=2,
            shapes=("80 x 7",),
        ),
    )
}
