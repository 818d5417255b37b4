"""What a search minimises: perplexity of a subnet on fixed tokens, or its divergence from a teacher."""

import contextlib
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from .architecture import has_architecture
from .code_fingerprint import fitness_settings
from .cost import flops_per_token
from .errors import DataError, VocabularyError
from .models.weights import at_hand, check_no_subnet, check_plain_weights, input_device, uncompiled
from .subnet import SubnetConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from .models.supernet import SuperNetModel


class Fitness(ABC):
    """What a search minimises: a function of a subnet, and what evaluating it costs."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        """The fitness of a subnet; the lower, the better.

        Args:
            subnet (`SubnetConfig`): the subnet.
            share (`float`, *optional*, defaults to 1.0): share of the tokens to read; a smaller share is part of a
                larger one, so that all subnets are compared on the same tokens.
        """

    @abstractmethod
    def tokens(self, share: float = 1.0) -> int:
        """Tokens read for one evaluation."""

    @abstractmethod
    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        """FLOPs of one evaluation."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What must be the same for two searches to give the same values."""

    @property
    def preparation(self) -> dict[str, int]:
        """Tokens and FLOPs of what was done once, before the first evaluation."""
        return {"tokens": 0, "flops": 0}

    @property
    def is_sharded(self) -> bool:
        """Whether all processes must evaluate a candidate together, since each holds a part of the model."""
        return False


class StagedFitness(Fitness):
    """A fitness for each share of the tokens: cheap ones weed candidates out, a dear one decides.

    A search that evaluates on shares of the tokens, as multi-fidelity evolution does, compares candidates within a
    share only; here each of its shares is another fitness, on all of that one's tokens. Any other search takes the
    last.

    Args:
        stages (`Mapping[float, Fitness]`): the fitness that stands for each share, ascending to 1.

    Raises:
        ValueError: if the shares do not ascend from above 0 to 1.
    """

    name = "staged"

    def __init__(self, stages: Mapping[float, Fitness]):
        self.stages = dict(stages)
        shares = list(self.stages)
        if not shares or shares != sorted(shares) or shares[0] <= 0 or shares[-1] != 1:
            raise ValueError(f"the shares of stages must ascend from above 0 to 1, got {shares}")

    def _stage(self, share: float) -> Fitness:
        if share not in self.stages:
            raise ValueError(
                f"the search evaluates on a share of {share} of the tokens, the stages are for {list(self.stages)}; "
                "give them the same shares"
            )
        return self.stages[share]

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        return self._stage(share)(subnet)

    def tokens(self, share: float = 1.0) -> int:
        return self._stage(share).tokens()

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        return self._stage(share).flops(subnet)

    @property
    def preparation(self) -> dict[str, int]:
        """What several stages share, as probes do the healing they start from, is counted once."""
        stages = {id(stage): stage for stage in self.stages.values()}
        found = (getattr(stage, "healing", None) for stage in stages.values())
        shared: list[Fitness] = [healing for healing in found if healing is not None]
        parts = {**stages, **{id(healing): healing for healing in shared}}
        return {
            name: sum(part.preparation[name] for part in parts.values())
            - sum(healing.preparation[name] for healing in shared)
            for name in ("tokens", "flops")
        }

    @property
    def is_sharded(self) -> bool:
        return any(stage.is_sharded for stage in self.stages.values())

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "stages": {str(share): fitness_settings(stage) for share, stage in self.stages.items()},
        }


class TokenFitness(Fitness):
    """A fitness measured on a fixed set of tokens: the same ones, in the same order, for every subnet.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.

    Raises:
        DataError: if there are no blocks.
        VocabularyError: if a token id is outside the model's vocabulary.
        WeightsError: if the super-network's weights are quantized, offloaded or adapted.
    """

    passes: ClassVar[int] = 1
    """Forward passes that evaluating costs; a backward pass counts as two."""

    def __init__(self, supernet: "SuperNetModel", blocks: "Dataset | torch.Tensor", batch_size: int = 16):
        check_plain_weights(supernet)
        self.supernet = supernet
        self.input_ids = as_input_ids(blocks, supernet.config.vocab_size)
        self.batch_size = batch_size
        self._order = torch.randperm(len(self.input_ids), generator=torch.Generator().manual_seed(0))

    def rows(self, share: float) -> torch.Tensor:
        """Indices of the blocks that make up a share of the tokens, at least one, ascending."""
        return self._order[: max(1, round(share * len(self._order)))].sort().values

    def tokens(self, share: float = 1.0) -> int:
        return len(self.rows(share)) * self.input_ids.shape[1]

    @property
    def is_sharded(self) -> bool:
        return is_sharded(self.supernet)

    def flops(self, subnet: SubnetConfig, share: float = 1.0) -> int:
        length = self.input_ids.shape[1]
        per_token = flops_per_token(self.supernet.full_config, subnet, sequence_length=length)
        return self.passes * self.tokens(share) * per_token

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "tokens": self.tokens(),
            "block_size": self.input_ids.shape[1],
            "data": fingerprint(self.input_ids),
            "model": model_fingerprint(self.supernet),
        }


class Perplexity(TokenFitness):
    """Perplexity of a super-network's subnets on fixed tokens: the paper's fitness."""

    name = "perplexity"

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        with self.supernet.active_subnet(subnet):
            return perplexity(cross_entropy(self.supernet, self.input_ids[self.rows(share)], self.batch_size))


class KLDivergence(TokenFitness):
    """Mean KL divergence, in nats a token, of a subnet's predictions from those of a teacher on fixed tokens.

    The teacher's log-probabilities are computed once and held in half precision, 2 bytes for each token and entry of
    the vocabulary.

    Args:
        supernet (`SuperNetModel`): the super-network.
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.
        teacher (`PreTrainedModel`, *optional*): with the same vocabulary; the full super-network by default.

    Raises:
        VocabularyError: if the teacher's vocabulary is another.
        SubnetError: if a subnet is active in the teacher.
    """

    name = "kl"

    def __init__(
        self,
        supernet: "SuperNetModel",
        blocks: "Dataset | torch.Tensor",
        batch_size: int = 16,
        teacher: "PreTrainedModel | None" = None,
    ):
        super().__init__(supernet, blocks, batch_size)
        teacher = teacher or supernet
        check_no_subnet(teacher)
        if teacher.config.vocab_size != supernet.config.vocab_size:
            raise VocabularyError(
                f"the teacher's vocabulary has {teacher.config.vocab_size} entries, that of the super-network "
                f"{supernet.config.vocab_size}; use a teacher with the same vocabulary"
            )
        self._teacher = model_fingerprint(teacher)
        self._teacher_flops = forward_flops_per_token(teacher, self.input_ids.shape[1])
        with evaluating(teacher):
            self._targets = torch.cat([_in_half(_logits(teacher, b)) for b in self.input_ids.split(batch_size)])

    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        rows = self.rows(share)
        targets = self._targets[rows]

        def divergence(start: int, logits: torch.Tensor) -> torch.Tensor:
            target = targets[start : start + len(logits)].to(logits.device).float()
            return F.kl_div(logits.float().log_softmax(-1), target, reduction="sum", log_target=True)

        with self.supernet.active_subnet(subnet):
            total = _sum_over_batches(self.supernet, self.input_ids[rows], self.batch_size, divergence)
        return total / (len(rows) * self.input_ids.shape[1])

    @property
    def preparation(self) -> dict[str, int]:
        return {"tokens": self.tokens(), "flops": self.tokens() * self._teacher_flops}

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "teacher": self._teacher}


def forward_flops_per_token(model: "PreTrainedModel", sequence_length: int) -> int:
    """FLOPs of a forward pass; of a model without a table, two for each parameter."""
    config = getattr(model, "full_config", model.config)
    if has_architecture(config):
        return flops_per_token(config, sequence_length=sequence_length)
    return 2 * model.num_parameters(exclude_embeddings=True)


def _in_half(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of logits, in half precision; those below its least number are as good as 0 all the same."""
    return logits.float().log_softmax(-1).clamp(min=-6e4).half().cpu()


def perplexity(loss: float) -> float:
    """Perplexity of a cross-entropy in nats per token; finite for any finite loss."""
    return math.exp(min(loss, 700.0))


def cross_entropy(model: "PreTrainedModel", input_ids: torch.Tensor, batch_size: int = 16) -> float:
    """Mean cross-entropy of next-token prediction.

    Args:
        model (`PreTrainedModel`): a causal language model; its training mode is restored.
        input_ids (`torch.Tensor`): token ids, `(blocks, block_size)`.
        batch_size (`int`, *optional*, defaults to 16): blocks evaluated at a time.

    Returns:
        `float`: nats per predicted token.
    """

    def loss(start: int, logits: torch.Tensor) -> torch.Tensor:
        labels = input_ids[start : start + len(logits), 1:].to(logits.device)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), reduction="sum")

    total = _sum_over_batches(model, input_ids, batch_size, loss)
    return total / (input_ids.shape[0] * (input_ids.shape[1] - 1))


def is_sharded(model: "PreTrainedModel") -> bool:
    """Whether the parameters of a model are spread over processes, so that all must run it together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _sum_over_batches(
    model: "PreTrainedModel",
    input_ids: torch.Tensor,
    batch_size: int,
    value: Callable[[int, torch.Tensor], torch.Tensor],
) -> float:
    """Sum, in order, of a value of each batch's logits: `value(first_block, logits)`.

    The processes of a sharded model take the batches in turn, and each gets the same sum.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    starts = range(0, len(input_ids), batch_size)
    sharded = is_sharded(model)
    processes, own = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if sharded else (1, 0)
    values = []
    with evaluating(model):
        for first in range(0, len(starts), processes):
            start = starts[min(first + own, len(starts) - 1)]  # one too many is run, since all must run together
            logits = _logits(model, input_ids[start : start + batch_size])
            values.append(value(start, logits).double())
    if sharded:
        from accelerate.utils import gather

        values = gather(torch.stack(values)).view(processes, -1).T.flatten()[: len(starts)].unbind()
    return sum((one.cpu() for one in values), torch.zeros((), dtype=torch.float64)).item()


@torch.no_grad()
def _logits(model: "PreTrainedModel", batch: torch.Tensor) -> torch.Tensor:
    return model(input_ids=batch.to(input_device(model)), use_cache=False).logits


@contextlib.contextmanager
def evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Put a model in evaluation mode inside the block; after it, every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def as_input_ids(blocks: "Dataset | torch.Tensor", vocab_size: int, *, ignore_labels: bool = False) -> torch.Tensor:
    """Blocks as one `int64` tensor `(blocks, block_size)`, checked against a vocabulary.

    Args:
        blocks (`datasets.Dataset` or `torch.Tensor`): token ids, all of which count.
        vocab_size (`int`): entries of the vocabulary.
        ignore_labels (`bool`, *optional*, defaults to `False`): whether a column of labels does not matter.

    Raises:
        DataError: if there are none, they differ in length, or a column says that some tokens do not count.
        VocabularyError: if an id is not in the vocabulary.
    """
    if isinstance(blocks, torch.Tensor):
        input_ids = blocks
    else:
        if not hasattr(blocks, "with_format") or not hasattr(blocks, "__len__"):
            if blocks is None:
                raise DataError("there are no blocks of text to evaluate on; give a dataset of packed tokens")
            raise DataError(f"expected a datasets.Dataset or a tensor of token ids, got a {type(blocks).__name__}")
        if len(blocks) == 0:
            raise DataError("there are no blocks of text to evaluate on; give a dataset of packed tokens")
        input_ids = _column(blocks, "input_ids")
        _check_that_all_count(blocks, input_ids, ignore_labels)
    if input_ids.ndim != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] < 2:
        raise DataError(f"expected token ids of shape (blocks, block_size), got {tuple(input_ids.shape)}")
    if input_ids.min() < 0 or input_ids.max() >= vocab_size:
        raise VocabularyError(
            f"the text has token ids from {input_ids.min()} to {input_ids.max()}, the model's vocabulary has "
            f"{vocab_size} entries; tokenize with the model's own tokenizer"
        )
    return input_ids.long().cpu()


def _column(blocks: "Dataset", name: str) -> torch.Tensor:
    if name not in blocks.column_names:
        raise DataError(f"the blocks have no column {name!r}, only {blocks.column_names}; make them by pack_documents")
    try:
        return torch.from_numpy(np.asarray(blocks.select_columns(name).with_format("numpy")[:][name], dtype=np.int64))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the blocks are not all of the same length in {name!r}; pack the text without padding"
        ) from error


def _check_that_all_count(blocks: "Dataset", input_ids: torch.Tensor, ignore_labels: bool) -> None:
    """Raise `DataError` if a column says otherwise."""
    if input_ids.ndim != 2:
        return
    plain = {"attention_mask": torch.ones_like(input_ids), "position_ids": torch.arange(input_ids.shape[1])}
    if not ignore_labels:
        plain["labels"] = input_ids
    for name in sorted(plain.keys() & set(blocks.column_names)):
        given = _column(blocks, name)
        if given.shape != input_ids.shape or not bool((given == plain[name])[:, 1:].all()):
            raise DataError(
                f"the column {name!r} says that not all tokens of these blocks count alike, and here all of them do: "
                "give blocks of which all tokens count, or remove the column"
            )


def fingerprint(input_ids: torch.Tensor) -> str:
    """A short hash of token ids."""
    return hashlib.sha256(input_ids.numpy().tobytes()).hexdigest()[:16]


_NOT_FINGERPRINTED = {
    "_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "use_cache", "rotary_pct",
    "rotary_emb_base", "rope_scaling",
}  # fmt: skip


def model_fingerprint(model: "PreTrainedModel", dtype: torch.dtype | None = None) -> str:
    """A short hash of a model: its configuration and its parameters.

    Args:
        model (`PreTrainedModel`): the model.
        dtype (`torch.dtype`, *optional*): the hash that the same weights have in this precision.
    """
    model = uncompiled(model)
    config = getattr(model, "full_config", model.config).to_diff_dict()
    told = {name: value for name, value in config.items() if name not in _NOT_FINGERPRINTED}
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=8)
    states = model.state_dict()  # of a quantized model, with scales and with weights no kernel has packed
    parameters = dict(model.named_parameters(remove_duplicate=False))
    others = {name: value for name, value in states.items() if name not in parameters}
    for name, tensor in (*model.named_parameters(), *sorted(others.items())):
        if not torch.is_tensor(tensor):
            continue
        with at_hand(model, name, tensor) as whole:
            if dtype is not None and whole.is_floating_point():
                whole = whole.to(dtype)
            digest.update(f"{name}{whole.dtype}{tuple(whole.shape)}".encode())
            digest.update(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
