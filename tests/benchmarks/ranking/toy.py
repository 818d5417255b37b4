"""The study on toy teachers: subnets that no fitness has filtered, of the demo's teacher and of a deeper one."""

from functools import partial

import torch

from hf_whittle import SearchSpace
from hf_whittle.data import documents_fingerprint, load_documents
from hf_whittle.evaluation import as_input_ids

from ..demo import run_of
from .settings import Material, Setting

TRAIN_BLOCKS, CALIBRATION_BLOCKS = 1024, 512


def load(teacher: str) -> Material:
    run = run_of(teacher)
    dataset = run.recipe.data.dataset
    ids = {name: as_input_ids(blocks, run.supernet.config.vocab_size) for name, blocks in run.blocks.items()}
    order = torch.randperm(len(ids["train"]), generator=torch.Generator().manual_seed(0))
    train, calibration = ids["train"][order][: TRAIN_BLOCKS + CALIBRATION_BLOCKS].split(TRAIN_BLOCKS)
    return Material(
        run.supernet,
        train=train,
        calibration=calibration,
        search=ids["search"],
        fitness=ids["search"],
        test=ids["test"],
        text_sha256=documents_fingerprint(lambda: load_documents(dataset), dataset=dataset),
    )


def spaces(material: Material) -> dict[str, SearchSpace]:
    return {
        granularity: SearchSpace.from_config(material.supernet.config, granularity=granularity, layer_wise=True)
        for granularity in ("coarse", "fine")
    }


def setting(teacher: str) -> Setting:
    return Setting(
        name=teacher,
        load=partial(load, teacher),
        spaces=spaces,
        near_good=False,
        subnets=10,
        bins=((0.5, 0.525), (0.3, 0.315)),
        budgets=(32_768, 131_072),
        rates=(
            (2e-3,),
            (2e-3,),
        ),  # within 1% of the best for a healed start and a sliced one on 65,536 and 262,144 tokens
        batch_size=8,
        healing_tokens=(24_576, 98_304),
        probes=(4, 16),
        starts=("sliced", "healed"),
        by_space=True,
        eval_batch_size=16,
        autocast=False,
    )


TOY = (setting("wide"), setting("deep"))
