"""Rank the best subnets of a search by what a short distillation makes of them."""

import copy
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import kendalltau, spearmanr
from tqdm.auto import tqdm
from transformers import PrinterCallback, set_seed

from ..data.batches import READ_COLUMNS
from ..errors import OutputError
from ..extraction.extraction import extract_subnet
from ..files.text import read_json, write_json
from ..fingerprints import checkpoint_fingerprint, model_fingerprint
from ..models.weights import check_plain_weights
from ..processes import lock_in_first
from ..search.result import SearchResult
from ..subnet import SubnetConfig
from .config import DistillationConfig
from .trainer import DistillationTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from ..models.supernet import SuperNetModel

RERANK_FILE = "rerank.json"
_DEFINING = (
    "alpha", "beta", "temperature", "divergence", "jsd_weight", "hidden_weight", "hidden_loss", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "max_steps", "train_batch_size",
    "gradient_accumulation_steps", "seed", "bf16", "fp16", "optim", "max_grad_norm",
)  # fmt: skip


@dataclass(frozen=True)
class Reranked:
    """A subnet, its fitness before training and its student's perplexity after a short one."""

    subnet: SubnetConfig
    fitness: float
    perplexity: float


@dataclass(frozen=True)
class Reranking:
    """Probes from the lowest perplexity after training to the highest, and how well fitness told their order.

    Args:
        probes (`list[Reranked]`): the best first.
        tokens (`int`): training tokens of all probes together.
    """

    probes: list[Reranked]
    tokens: int

    @property
    def best(self) -> SubnetConfig:
        """The subnet of lowest perplexity after training."""
        return self.probes[0].subnet

    @property
    def kendall_tau(self) -> float:
        """Rank correlation of fitness with perplexity after training; 1 if both order the subnets alike."""
        return float(kendalltau([p.fitness for p in self.probes], [p.perplexity for p in self.probes]).statistic)

    @property
    def spearman_rho(self) -> float:
        """Spearman's rank correlation of the same."""
        return float(spearmanr([p.fitness for p in self.probes], [p.perplexity for p in self.probes]).statistic)


def rerank(
    supernet: "SuperNetModel",
    result: SearchResult,
    args: DistillationConfig,
    train_dataset: "Dataset",
    eval_dataset: "Dataset",
    *,
    top_k: int = 5,
    teacher_model: "PreTrainedModel | str | os.PathLike[str] | None" = None,
    progress: bool = True,
) -> Reranking:
    """Extract the best subnets of a search, train each for a short while, and rank them by held-out perplexity.

    Students start as they were sliced; `Probe` is a fitness that can start from healed ones.

    All of them see the same blocks in the same order. Each probe is on disk in `args.output_dir` when it is done; the
    same call goes on after an interruption.

    Args:
        supernet (`SuperNetModel`): the super-network that was searched.
        result (`SearchResult`): of the search.
        args (`DistillationConfig`): of a probe; `max_steps` says how short it is.
        train_dataset (`datasets.Dataset`): blocks to train on.
        eval_dataset (`datasets.Dataset`): held-out blocks to rank by.
        top_k (`int`, *optional*, defaults to 5): subnets to probe.
        teacher_model (`PreTrainedModel`, `str` or `Path`, *optional*): the teacher; the super-network by default.
        progress (`bool`, *optional*, defaults to `True`): whether to show a bar.

    Raises:
        ValueError: if `top_k` is below 2 or `args.max_steps` is not set.
        OutputError: if `args.output_dir` holds probes of other subnets or settings, cannot be written, or another
            process is writing it.
    """
    if top_k < 2:
        raise ValueError(f"top_k must be at least 2, since a single subnet has no rank; got {top_k}")
    if args.max_steps <= 0:
        raise ValueError("args.max_steps says how many steps a probe takes; set it above 0")
    check_plain_weights(supernet)
    subnets = result.top(top_k)
    if len(subnets) < 2:
        raise ValueError(f"the search found {len(subnets)} subnets; at least 2 are needed to rank them")
    fitness = {answer.subnet: answer.fitness for answer in result.answers}
    settings = {
        "supernet": model_fingerprint(supernet),
        "training": {name: str(getattr(args, name)) for name in _DEFINING},
        "teacher": _teacher(supernet, teacher_model) if args.has_teacher else None,
        "data": [_told(blocks) for blocks in (train_dataset, eval_dataset)],
    }
    path = Path(str(args.output_dir)) / RERANK_FILE
    known: dict[str, dict[str, Any]] = {}
    with lock_in_first(path.parent):
        if path.is_file():
            before = read_json(path)
            if before["settings"] != settings:
                raise OutputError(f"{path} holds probes of another model, text or training; choose another output_dir")
            known = before["probes"]
        for subnet in tqdm(subnets, desc="rerank", unit="probe", disable=not progress):
            if subnet.digest not in known:
                perplexity, tokens = _probe(supernet, subnet, args, train_dataset, eval_dataset, teacher_model)
                known[subnet.digest] = {"subnet": subnet.to_dict(), "perplexity": perplexity, "tokens": tokens}
                if args.process_index == 0:
                    write_json(path, {"settings": settings, "probes": known})
    probes = [Reranked(subnet, fitness[subnet], known[subnet.digest]["perplexity"]) for subnet in subnets]
    tokens = sum(known[subnet.digest]["tokens"] for subnet in subnets)
    return Reranking(sorted(probes, key=lambda probe: probe.perplexity), tokens)


def _teacher(supernet: "SuperNetModel", teacher: "PreTrainedModel | str | os.PathLike[str] | None") -> str:
    return (
        checkpoint_fingerprint(teacher)
        if isinstance(teacher, str | os.PathLike)
        else model_fingerprint(teacher or supernet)
    )


def _told(blocks: "Dataset") -> dict[str, Any]:
    """What tells a dataset of blocks from others."""
    digest = hashlib.blake2b(digest_size=8)
    names = sorted(set(READ_COLUMNS) & set(blocks.column_names))
    for row in blocks.select_columns(names).with_format("numpy"):
        for name in names:
            digest.update(f"{name}{len(row[name])}".encode() + np.asarray(row[name], dtype=np.int64).tobytes())
    return {"blocks": len(blocks), "contents": digest.hexdigest()}


def _probe(
    supernet: "SuperNetModel",
    subnet: SubnetConfig,
    args: DistillationConfig,
    train_dataset: "Dataset",
    eval_dataset: "Dataset",
    teacher_model: "PreTrainedModel | str | os.PathLike[str] | None",
) -> tuple[float, int]:
    """Held-out perplexity of a subnet's student after training, and the tokens that took."""
    args = copy.copy(args)
    args.save_strategy = args.eval_strategy = args.logging_strategy = "no"
    args.load_best_model_at_end, args.disable_tqdm, args.report_to = False, True, []
    args.include_num_input_tokens_seen = "all"
    set_seed(args.seed)
    trainer = DistillationTrainer(
        model=extract_subnet(supernet, subnet),
        teacher_model=(teacher_model or supernet) if args.has_teacher else None,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    perplexity = trainer.evaluate()["eval_perplexity"]
    return perplexity, int(trainer.state.num_input_tokens_seen)
