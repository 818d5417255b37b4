"""SupernetTrainer: a `Trainer` that trains a super-network together with its subnets."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from ..architectures.dimensions import VOCABULARY
from ..checks import check_integers, check_numbers, check_positive
from ..cost.bins import Bin, ParameterBin
from ..cost.counts import training_flops_per_token
from ..data.batches import check_columns, collate_blocks, items_that_count
from ..errors import ArchitectureError, SubnetError
from ..evaluation import perplexity
from ..files.tokenizer import complete_tokenizer
from ..loss.divergences import LossWeights, labels_of_rows
from ..loss.targets import DenseTargets
from ..models.heads import Head, in_place_of
from ..models.supernet import SuperNetModel
from ..models.weights import check_plain_weights
from ..processes import end_group_at_exit
from ..space.search_space import SearchSpace
from ..subnet import Shape
from .arguments import check_arguments
from .checkpoints import WholeCheckpoints
from .loss_in_head import LossInHead
from .precision import check_precision
from .strategies import FULL, STRATEGIES, Passes, StepDraw, smallest_subnet

logger = logging.get_logger(__name__)

_EVERYTHING = ParameterBin(0, math.inf)


@dataclass
class SupernetConfig(TrainingArguments):
    """`TrainingArguments` plus the strategy by which a step trains subnets.

    `strategy` is one of

    - `"standard"`: the full network, as `Trainer` does;
    - `"random"`: random subnets;
    - `"random-linear"`: random subnets with a probability that rises linearly from 0 at the first step to 1 at the
      last, else the full network (Bender et al., ICML 2018; arXiv 2405.02267);
    - `"sandwich"`: the full network, the smallest subnet and random ones (arXiv 1903.05134). Subnets learn by in-place
      distillation, `alpha * CE + beta * temperature**2 * KL`, from the full network's logits in the same step, which
      get no gradient from it. Defaults as in BigNAS (arXiv 2003.11142): KL alone, temperature 1;
    - `"ats"`: random subnets and the full network in turn (arXiv 2106.08895, as a strategy in whittle).

    Raises:
        ValueError: if a value is out of range.
    """

    strategy: str = field(default="sandwich", metadata={"help": f"One of {', '.join(STRATEGIES)}."})
    num_random_subnets: int = field(
        default=1, metadata={"help": "Random subnets in a step that trains subnets; the papers on sandwich use two."}
    )
    alpha: float = field(
        default=0.0, metadata={"help": "Sandwich: weight of a subnet's cross-entropy; no effect if beta is 0."}
    )
    beta: float = field(
        default=1.0,
        metadata={"help": "Sandwich: weight of a subnet's KL from the full network; 0 is plain cross-entropy."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Sandwich: temperature of both distributions in the KL divergence."}
    )
    eval_smallest: bool = field(
        default=False, metadata={"help": "Also evaluate the smallest subnet: eval_smallest_loss and its perplexity."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "Needed if a subnet drops layers; see TrainingArguments."}
    )

    def __post_init__(self) -> None:
        check_arguments(self)
        super().__post_init__()
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        check_integers(self, {"num_random_subnets": 1})
        check_numbers(self, "alpha", "beta")
        check_positive(self, "temperature")
        if self.strategy != "sandwich" and (self.alpha, self.beta, self.temperature) != (0.0, 1.0, 1.0):
            logger.warning(f"alpha, beta and temperature have no effect with strategy={self.strategy!r}")

    @property
    def distils(self) -> bool:
        """Whether subnets learn from the full network."""
        return self.strategy == "sandwich" and self.beta > 0


class SupernetTrainer(LossInHead, WholeCheckpoints):
    """Trains a super-network on packed blocks of tokens, so that subnets extracted from it start with low perplexity.

    Each optimizer step trains the full network, subnets or both, according to `args.strategy`. Gradient and `loss` are
    means over these passes, so that learning rate and `max_grad_norm` have their usual scale. A backward pass follows
    each forward pass, so that activations of only one pass are held. All micro-batches of a step and all processes
    train the same subnets, which depend on the seed and the number of the step alone (with `random-linear`, on the
    number of all steps too): gradient accumulation, processes and resuming do not change the result.

    Dropped parts get no gradient: layers that no pass of a step uses are not updated in it. The unused entries of a
    weight that is partly used have gradient 0, but weight decay and momentum still change them.

    Evaluation reports `eval_loss` and `eval_perplexity` of the full network. `total_flos` is exact. Everything else is
    `transformers.Trainer`. Several GPUs need a process each; it runs under DDP, not under DeepSpeed or FSDP.

    Args:
        model (`SuperNetModel`): the super-network.
        args (`SupernetConfig`, *optional*): training arguments and the strategy.
        data_collator (*optional*): by default `hf_whittle.data.collate_blocks`, for blocks without padding.
        search_space (`SearchSpace`, *optional*): space the subnets are drawn from, which bounds their sizes; the coarse
            layer-wise space of the super-network by default.
        bin (`Bin` or `Sequence[Bin]`, *optional*): bin of the subnets; each is drawn from one of several bins with
            equal probability.
        kwargs: further arguments of `Trainer`.

    Attributes:
        smallest (`SubnetConfig`): the smallest subnet of the space, or of its bins; see `smallest_subnet`.

    Raises:
        ArchitectureError: if the model is not a super-network.
        WeightsError: if its weights are quantized or offloaded.
        BinError: if no subnet of the space lies in a bin.
        SubnetError: if the search space is made for another super-network, or its subnets keep parts of the vocabulary.
        ValueError: if a feature of `Trainer` is used that is not supported.
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
            raise SubnetError("the search space is for another super-network; make one from this model's config")
        if VOCABULARY in self.search_space.named:
            sizes = " or ".join(map(str, self.search_space.sizes(VOCABULARY)))
            raise SubnetError(
                f"subnets of the search space have vocabularies of {sizes} tokens, and would all be trained on the "
                "same token ids; make it without vocab_sizes, of a super-network extracted with the tokens to keep"
            )
        self._bins = (bin,) if isinstance(bin, Bin) else tuple(bin or ())
        for one in self._bins:
            self.search_space.reachable_pairs(one)
        self.smallest = smallest_subnet(self.search_space, self._bins)
        self._passes: Passes = (FULL,)
        self._head = self._output_layer(self._supernet) if args.distils else None
        if args.distils and self._head is None:
            raise ArchitectureError("in-place distillation needs a model with a plain output matrix; set beta=0")
        self._hidden_states: torch.Tensor | None = None  # the full network's last ones in the step that runs now

    def _check_training(self) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, SuperNetModel):
            raise ArchitectureError(
                f"SupernetTrainer needs a super-network to train, got a {type(model).__name__}; load one with "
                "AutoSuperNetForCausalLM.from_pretrained"
            )
        check_precision(model, "super-network")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(
                "SupernetTrainer runs several backward passes in a step, each through other parts of the weights; use "
                "DDP instead of DeepSpeed or FSDP"
            )
        if self.args.distils and self.compute_loss_func is not None:
            raise ValueError("compute_loss_func has no effect on in-place distillation; unset it, or set beta=0")

    @property
    def _supernet(self) -> SuperNetModel:
        return self.accelerator.unwrap_model(self.model)

    def subnets_of_step(self, step: int) -> Passes:
        """Draw the networks that a step trains, in order; `None` is the full network.

        Args:
            step (`int`): number of optimizer steps before it.
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
        """Run the passes of a micro-batch, forward and backward; processes average gradients in the last."""
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
            self._hidden_states = None
        return sum(losses[1:], losses[0])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of one pass; in training, it is divided by the number of passes."""
        num_items_in_batch = items_that_count(num_items_in_batch, model.training)
        if not model.training:
            loss, outputs = self.text_loss(model, inputs, return_outputs, num_items_in_batch)
            return (loss, outputs) if return_outputs else loss
        if self._hidden_states is not None:
            loss, outputs = self._distil(model, inputs, self._hidden_states, num_items_in_batch)
        else:
            with self._kept_hidden_states() if self.args.distils else contextlib.nullcontext():
                loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss / len(self._passes)
        return (loss, outputs) if return_outputs else loss

    def _kept_hidden_states(self) -> contextlib.AbstractContextManager[None]:
        """Inside the block, a forward pass stores the full network's last hidden states as targets for its subnets."""
        head: Any = self._head
        forward = head.module.forward

        def keep(hidden_states: torch.Tensor) -> torch.Tensor:
            self._hidden_states = hidden_states.detach().flatten(0, 1)
            return forward(hidden_states)

        return in_place_of(head, keep)

    def _distil(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        of_full_network: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor, Any]:
        head: Any = self._head
        labels = labels_of_rows(inputs["labels"])
        weights = LossWeights(self.args.alpha, self.args.beta, self.args.temperature)
        weight, bias = head.module.weight, head.module.bias
        whole = Head(weight.detach(), None if bias is None else bias.detach())
        targets = DenseTargets(of_full_network, whole)
        given = {name: value for name, value in inputs.items() if name != "labels"}
        outputs, total, loss = self._run(model, given, head, targets, labels, weights)
        return total / self._normalizer(loss.rows, num_items_in_batch), outputs

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            complete_tokenizer(self.processing_class, output_dir or str(self.args.output_dir))

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate the full network, and the smallest subnet if `args.eval_smallest`; adds perplexities to losses."""
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
