"""SupernetTrainer: a `Trainer` that trains a super-network so that its subnets are good."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..checks import check_integers, check_numbers, check_positive
from ..cost.bins import Bin, ParameterBin
from ..cost.counts import training_flops_per_token
from ..cost.polynomial import parameter_polynomial
from ..data.batches import check_columns, collate_blocks, items_that_count
from ..errors import ArchitectureError, SubnetError
from ..evaluation import perplexity
from ..files.tokenizer import complete_tokenizer
from ..loss.divergences import IGNORED, LossWeights
from ..loss.fused import fused_distillation_loss
from ..loss.heads import head_of, in_place_of, output_module
from ..loss.targets import DenseTargets, Head
from ..models.supernet import SuperNetModel
from ..models.weights import check_plain_weights
from ..processes import end_group_at_exit
from ..space.search_space import SearchSpace
from ..subnet import Shape, SubnetConfig
from .arguments import check_arguments
from .checkpoints import WholeCheckpoints

logger = logging.get_logger(__name__)

FULL = None
"""Stands for the full network among the subnets of a step."""

Passes = tuple[SubnetConfig | None, ...]
_EVERYTHING = ParameterBin(0, math.inf)


@dataclass(frozen=True)
class StepDraw:
    """What a strategy goes by.

    Args:
        step (`int`): optimizer steps made before.
        progress (`float`): 0 at the first step of the training, 1 at the last.
        rng (`random.Random`): of this step alone.
        smallest (`SubnetConfig`): the smallest subnet.
        random (`Callable`): draws the random subnets.
    """

    step: int
    progress: float
    rng: Random
    smallest: SubnetConfig
    random: Callable[[], Passes]


STRATEGIES: dict[str, Callable[[StepDraw], Passes]] = {
    "standard": lambda draw: (FULL,),
    "random": lambda draw: draw.random(),
    "random-linear": lambda draw: draw.random() if draw.rng.random() < draw.progress else (FULL,),
    "sandwich": lambda draw: (FULL, draw.smallest, *draw.random()),
    "ats": lambda draw: (FULL,) if draw.step % 2 else draw.random(),
}
"""What each strategy trains in a step, in this order."""


@dataclass
class SupernetConfig(TrainingArguments):
    """`TrainingArguments` plus what of the super-network a step trains.

    `strategy` is one of

    - `"standard"`: the full network, as `Trainer` does;
    - `"random"`: random subnets;
    - `"random-linear"`: random subnets with a probability that rises linearly from 0 at the first step to 1 at the
      last, else the full network (Bender et al., ICML 2018; arXiv 2405.02267);
    - `"sandwich"`: the full network, the smallest subnet and random ones (arXiv 1903.05134), the subnets by in-place
      distillation: `alpha * CE + beta * temperature**2 * KL` from what the full network says in the same step,
      which gets no gradient from that. Defaults as in BigNAS (arXiv 2003.11142): the KL alone, no temperature;
    - `"ats"`: random subnets and the full network in turn (arXiv 2106.08895, as a strategy in whittle).

    Raises:
        ValueError: if a value is out of range.
    """

    strategy: str = field(default="sandwich", metadata={"help": f"One of {', '.join(STRATEGIES)}."})
    num_random_subnets: int = field(
        default=1, metadata={"help": "Random subnets in a step that trains some; two in the papers of sandwich."}
    )
    alpha: float = field(
        default=0.0, metadata={"help": "Sandwich: a subnet's weight of cross-entropy; has no effect where beta is 0."}
    )
    beta: float = field(
        default=1.0,
        metadata={"help": "Sandwich: a subnet's weight of KL from the full network; 0 is plain cross-entropy."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Sandwich: temperature of both distributions in the KL divergence."}
    )
    eval_smallest: bool = field(
        default=False, metadata={"help": "Evaluate the smallest subnet too: eval_smallest_loss and its perplexity."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "Needed where a subnet leaves out layers; see TrainingArguments."}
    )

    def __post_init__(self) -> None:
        check_arguments(self)
        super().__post_init__()
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        check_integers(self, {"num_random_subnets": 1})
        check_numbers(self, "alpha", "beta")
        check_positive(self, "temperature")
        if self.label_smoothing_factor:
            raise ValueError("evaluation reports plain cross-entropy: label_smoothing_factor must be 0")
        if self.strategy != "sandwich" and (self.alpha, self.beta, self.temperature) != (0.0, 1.0, 1.0):
            logger.warning(f"alpha, beta and temperature have no effect on strategy={self.strategy!r}")

    @property
    def distils(self) -> bool:
        """Whether subnets learn from the full network."""
        return self.strategy == "sandwich" and self.beta > 0


class SupernetTrainer(WholeCheckpoints):
    """Trains a super-network on packed blocks of tokens so that its subnets are good before any training of theirs.

    Each optimizer step trains the full network, subnets or both, as `args.strategy` says. Its gradient and its `loss`
    are means over these passes, so that learning rate and `max_grad_norm` mean what they mean for one network; there
    is a backward pass after each forward pass, and activations of one are held at a time. All micro-batches of a step
    and all processes train the same subnets, which depend only on the seed and the number of the step (and of all
    steps, with `random-linear`): accumulation, processes and resuming change nothing.

    What a subnet leaves out gets no gradient from it: layers that no pass of a step used are not touched in that step.
    Of a weight that was used in part, the rest has gradient 0, but weight decay and momentum still move it.

    Evaluation is that of the full network, `eval_loss` and `eval_perplexity`. `total_flos` is exact. Everything else
    is `transformers.Trainer`. Several GPUs need a process each; it runs under DDP, not under
    DeepSpeed or FSDP.

    Args:
        model (`SuperNetModel`): the super-network.
        args (`SupernetConfig`, *optional*): training arguments and the strategy.
        data_collator (*optional*): by default `hf_whittle.data.documents.collate_blocks`, for blocks without padding.
        search_space (`SearchSpace`, *optional*): where subnets are drawn; the coarse layer-wise space of the
            super-network by default. Its least sizes say how small subnets get.
        bin (`Bin` or `Sequence[Bin]`, *optional*): what the subnets must lie in; each is drawn from any of several
            bins alike.
        kwargs: as for `Trainer`.

    Attributes:
        smallest (`SubnetConfig`): the smallest subnet of the space, or of its bins; see `smallest_subnet`.

    Raises:
        ArchitectureError: if the model is no super-network; `WeightsError` if its weights are quantized or offloaded.
        BinError: if no subnet of the space lies in a bin.
        SubnetError: if the search space is that of another super-network.
        ValueError: if the training is of a kind that is not supported.
    """

    _tag_names = ["hf_whittle", "super-network"]

    args: SupernetConfig

    def __init__(
        self,
        model: SuperNetModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        *,
        search_space: SearchSpace | None = None,
        bin: Bin | Sequence[Bin] | None = None,
        **kwargs: Any,
    ):
        args = args or SupernetConfig()
        if not isinstance(args, SupernetConfig):
            raise TypeError(f"args must be a SupernetConfig, got {type(args).__name__}")
        if isinstance(model, SuperNetModel):
            check_plain_weights(model)
        if data_collator is None:
            check_columns(kwargs.get("train_dataset"), kwargs.get("eval_dataset"))
        super().__init__(model=model, args=args, data_collator=data_collator or collate_blocks, **kwargs)
        end_group_at_exit()
        self._check_training()
        config = self._supernet.full_config
        self.search_space = search_space or SearchSpace.from_config(config, layer_wise=True)
        if Shape.from_config(self.search_space.config) != Shape.from_config(config):
            raise SubnetError("the search space is that of another super-network; make one of this model's config")
        self._bins = (bin,) if isinstance(bin, Bin) else tuple(bin or ())
        for one in self._bins:
            self.search_space.reachable_pairs(one)
        self.smallest = smallest_subnet(self.search_space, self._bins)
        self._passes: Passes = (FULL,)
        self._head = output_module(self._supernet) if args.distils else None
        if args.distils and self._head is None:
            raise ArchitectureError("in-place distillation needs a model with a plain output matrix; set beta=0")
        self._states: torch.Tensor | None = None  # of the full network, in the step that is under way

    def _check_training(self) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, SuperNetModel):
            raise ArchitectureError(
                f"SupernetTrainer needs a super-network to train, got a {type(model).__name__}; load one with "
                "GPTNeoXSuperNetForCausalLM.from_pretrained"
            )
        if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
            raise ValueError(
                "the super-network's weights are in float16, in which an optimizer loses small updates; load it with "
                "dtype=torch.float32, and set bf16=True or fp16=True for mixed precision"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"SupernetTrainer needs a process for each of the {self.args.n_gpu} GPUs, as DataParallel would copy "
                "the super-network without its subnet; start it with torchrun, or set CUDA_VISIBLE_DEVICES to one GPU"
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "SupernetTrainer has several backward passes in a step, through changing parts of the weights; it runs "
                "under DDP, not under DeepSpeed or FSDP"
            )
        if self.args.distils and self.compute_loss_func is not None:
            raise ValueError("compute_loss_func has no effect on in-place distillation; unset it, or set beta=0")

    @property
    def _supernet(self) -> SuperNetModel:
        return self.accelerator.unwrap_model(self.model)

    def subnets_of_step(self, step: int) -> Passes:
        """What a step trains, in this order; `None` is the full network.

        Args:
            step (`int`): optimizer steps made before.
        """
        rng = Random(f"{self.args.seed} {step}")
        bins = self._bins or (_EVERYTHING,)

        def random() -> Passes:
            return tuple(self.search_space.sample(rng, rng.choice(bins)) for _ in range(self.args.num_random_subnets))

        progress = step / max(1, self.state.max_steps - 1)
        return STRATEGIES[self.args.strategy](StepDraw(step, progress, rng, self.smallest, random))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward passes of a micro-batch; gradients of processes are averaged after the last."""
        self._passes = self.subnets_of_step(self.state.global_step)
        losses: list[torch.Tensor] = []
        try:
            for subnet in self._passes:
                is_last = len(losses) == len(self._passes) - 1
                with contextlib.ExitStack() as stack:
                    if not is_last:
                        stack.enter_context(self.accelerator.no_sync(model))
                    if subnet is not FULL:
                        stack.enter_context(self._supernet.active_subnet(subnet))
                    losses.append(super().training_step(model, inputs, num_items_in_batch))
        finally:
            self._states = None
        return sum(losses[1:], losses[0])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of one pass, divided by the number of passes while training."""
        num_items_in_batch = items_that_count(num_items_in_batch, model.training)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._states is not None:
            loss, outputs = self._distil(model, inputs, self._states, num_items_in_batch)
        else:
            with self._teaching() if self.args.distils else contextlib.nullcontext():
                loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss / len(self._passes)
        return (loss, outputs) if return_outputs else loss

    def _teaching(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block, the states that give the full network's logits are kept for the subnets."""
        head: Any = self._head
        forward = head.forward

        def watch(states: torch.Tensor) -> torch.Tensor:
            self._states = states.detach().flatten(0, 1)
            return forward(states)

        return in_place_of(head, watch)

    def _distil(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        teacher_states: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any]:
        head: Any = self._head
        labels = F.pad(inputs["labels"], (0, 1), value=IGNORED)[..., 1:].flatten()  # row t predicts token t + 1
        weights = LossWeights(self.args.alpha, self.args.beta, self.args.temperature)
        whole = Head(head.weight.detach(), None if head.bias is None else head.bias.detach())
        targets = DenseTargets(teacher_states, whole)
        chunk = 128 if self.args.device.type == "cpu" else 1024  # rows whose logits are held at a time

        def summed_loss(states: torch.Tensor) -> torch.Tensor:
            loss = fused_distillation_loss(states.flatten(0, 1), head_of(head), targets, labels, weights, chunk)
            return loss.total.reshape(1, 1, 1)

        with in_place_of(head, summed_loss):
            outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        items: Any = (labels != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            items = items / self.accelerator.num_processes  # processes average their gradients; the count is of all
        return outputs.logits.sum() / items, outputs

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            complete_tokenizer(self.processing_class, output_dir or str(self.args.output_dir))

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate the full network, and with `args.eval_smallest` the smallest subnet; perplexities beside losses."""
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix, metrics = kwargs.get("metric_key_prefix", "eval"), output.metrics
        assert metrics is not None
        if self.args.eval_smallest:
            with self._supernet.active_subnet(self.smallest):
                found = super().evaluation_loop(dataloader, "Smallest subnet", prediction_loss_only=True).metrics or {}
            if "eval_loss" in found:
                metrics[f"{prefix}_smallest_loss"] = found["eval_loss"]
        for name in (prefix, f"{prefix}_smallest"):
            if f"{name}_loss" in metrics:
                metrics[f"{name}_perplexity"] = perplexity(metrics[f"{name}_loss"])
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """FLOPs of all passes of a training step on a batch, forward and backward."""
        batch, length = inputs["input_ids"].shape
        config = self._supernet.full_config
        per_token = (training_flops_per_token(config, subnet, sequence_length=length) for subnet in self._passes)
        return batch * length * sum(per_token)


def smallest_subnet(space: SearchSpace, bins: Sequence[Bin] = ()) -> SubnetConfig:
    """The subnet of least sizes; with bins, that one grown by as little as brings it into one of them.

    Args:
        space (`SearchSpace`): the space; where it is fine-grained, which entries are kept is drawn once and for all.
        bins (`Sequence[Bin]`, *optional*): of the subnets that lie in one of them, the one with fewest parameters.

    Raises:
        BinError: if no subnet of the space lies in a bin.
    """
    parameters = parameter_polynomial(space.config)
    least, _ = space.reachable_costs(parameters)
    smallest = space.sample(Random(0), ParameterBin(least, least))
    grown = [space.crossover(smallest, smallest, Random(0), bin) for bin in bins]
    return min(grown or [smallest], key=parameters)
