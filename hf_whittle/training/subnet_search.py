"""SubnetSearchCallback: search a super-network while it trains."""

import contextlib
import copy
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..cost.bins import Bin
from ..errors import ArchitectureError, OtherSearchError
from ..files.disk import disk_errors
from ..fitness.perplexity import Perplexity
from ..models.supernet import SuperNetModel
from ..processes import lock_in_first, wait_for_all
from ..search.algorithm import SearchConfig
from ..search.algorithms.additive import AdditiveSearchConfig
from ..search.result import SearchResult
from ..search.runner import check_bins, check_fitness, search_subnets
from ..space.search_space import SearchSpace

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER = "subnet_search"


class SubnetSearchCallback(TrainerCallback, ExportableState):
    """Searches the super-network that any `Trainer` trains, without any effect on its training.

    A search restores weights, modes and all random number generators, so that training with and without it gives the
    same model. Under DDP, candidates are spread over the processes. Results are logged as `search_fitness`,
    `search_parameters` and `search_evaluations`.

    Args:
        bin (`Bin` or `Sequence[Bin]`): bin of the subnets, or several.
        eval_dataset (`datasets.Dataset` or `torch.Tensor`, *optional*): held-out blocks of tokens to search on.
        space (`dict`, *optional*): arguments of `SearchSpace.from_config`; a coarse layer-wise space by default.
        config (`SearchConfig`, *optional*): settings of the search algorithm.
        fitness (`Callable`, *optional*): makes a fitness for the super-network, such as `lambda supernet:
            KLDivergence(supernet, blocks)`; perplexity on `eval_dataset` by default.
        when (`str`, *optional*, defaults to `"end"`): time of the search and folder of its results: `"end"` of training
            and `subnet_search/end` in the Trainer's output folder; after each `"save"` and `subnet_search` in the
            checkpoint; or after each `"evaluate"` and `subnet_search/step-N` in the output folder.
        trainer (`Trainer`, *optional*): trainer that logs the results; may be set later as an attribute. Without it,
            results go only to `log_history` of the Trainer's state.
        batch_size (`int`, *optional*): blocks evaluated at a time; by default 4,096 tokens on a CPU, 16,384 on another
            device.

    Attributes:
        result (`SearchResult` or `None`): result of the last search in this process.
        history (`list[dict]`): step, fitness, parameters and subnet of each search. A checkpoint holds the searches
            before it was saved; the one of its own step is read or finished when training goes on from it.

    Raises:
        ArchitectureError: at the start of training, if the model is not a super-network.
        BinError, DataError, OutputError, SubnetError: at the start of training, if bin, text, folder or space would
            make a search fail; one subnet of each bin is evaluated to find out.
        ValueError: if `when` is unknown.
    """

    def __init__(
        self,
        bin: Bin | Sequence[Bin],
        eval_dataset: "Dataset | torch.Tensor | None" = None,
        *,
        space: dict[str, Any] | None = None,
        config: SearchConfig | None = None,
        fitness: Callable[[SuperNetModel], Callable[..., float]] | None = None,
        when: Literal["end", "save", "evaluate"] = "end",
        trainer: Trainer | None = None,
        batch_size: int | None = None,
    ):
        if when not in ("end", "save", "evaluate"):
            raise ValueError(f"when must be 'end', 'save' or 'evaluate', got {when!r}")
        if eval_dataset is None and fitness is None:
            raise ValueError("give an eval_dataset to search on, or a fitness")
        self.trainer = trainer
        self.result: SearchResult | None = None
        self.history: list[dict[str, Any]] = []
        self._when, self._bin, self._eval_dataset, self._batch_size = when, bin, eval_dataset, batch_size
        self._space, self._config, self._fitness = space or {"layer_wise": True}, config, fitness
        self._rebuild_as_this()

    def _rebuild_as_this(self) -> None:
        """Make `type(self)()` return a callback that shares all attributes with this one.

        With `restore_callback_states_from_checkpoint`, the Trainer builds new callbacks from arguments in JSON, which
        can hold neither a dataset nor a function.
        """

        def share(rebuilt: SubnetSearchCallback) -> None:
            rebuilt.__dict__ = self.__dict__

        self.__class__ = type(type(self).__name__, (type(self),), {"__init__": share})

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"history": copy.deepcopy(self.history)}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if not isinstance(_unwrapped(model), SuperNetModel):
            raise ArchitectureError(
                f"SubnetSearchCallback needs a super-network to search, got a {type(_unwrapped(model)).__name__}; "
                "train one loaded with AutoSuperNetForCausalLM.from_pretrained"
            )
        self._try(_unwrapped(model), Path(str(args.output_dir)) / FOLDER)
        stored: Any = state.stateful_callbacks or {}
        if state.global_step and not self.history and isinstance(stored.get(type(self).__name__), dict):
            self.history = list(stored[type(self).__name__]["attributes"]["history"])
        if self._when == "save" and state.global_step and _checkpoint(args, state).is_dir():
            self._search(model, state, _checkpoint(args, state) / FOLDER)  # finish it if it was killed

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if self._when == "evaluate":
            self._search(model, state, Path(str(args.output_dir)) / FOLDER / f"step-{state.global_step}")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if self._when == "save":
            self._search(model, state, _checkpoint(args, state) / FOLDER)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        if self._when == "end":
            self._search(model, state, Path(str(args.output_dir)) / FOLDER / "end")

    def _try(self, supernet: Any, folder: Path) -> None:
        """Evaluate one subnet of each bin, to fail now for a reason that would make a search fail hours later."""
        with lock_in_first(folder):
            pass
        space, bins = self._space_of(supernet), [self._bin] if isinstance(self._bin, Bin) else list(self._bin)
        config = self._config or AdditiveSearchConfig()
        with _random_states_kept():
            check_bins(space, bins)
            fitness = self._fitness_of(supernet)
            check_fitness(space, fitness)
            for bin in bins:
                config.algorithm(space, bin)
                fitness(space.sample(random.Random(0), bin))

    def _space_of(self, supernet: Any) -> SearchSpace:
        return SearchSpace.from_config(supernet.full_config, **self._space)

    def _fitness_of(self, supernet: Any) -> Callable[..., float]:
        if self._fitness is not None:
            return self._fitness(supernet)
        assert self._eval_dataset is not None
        return Perplexity(supernet, self._eval_dataset, batch_size=self._batch_size)

    def _search(self, model: Any, state: TrainerState, folder: Path) -> None:
        supernet = _unwrapped(model)

        def search() -> SearchResult:
            return search_subnets(
                supernet,
                self._space_of(supernet),
                bin=self._bin,
                config=self._config,
                fitness=self._fitness_of(supernet),
                output_dir=folder,
                progress=False,
            )

        with _random_states_kept():
            try:
                self.result = search()
            except OtherSearchError:  # an earlier training into this folder, which this one replaces
                _remove(folder, state)
                self.result = search()
        best = self.result.best_evaluation
        found = {
            "search_fitness": best.fitness,
            "search_parameters": best.parameters,
            "search_evaluations": len(self.result.evaluations),
        }
        self.history = [one for one in self.history if one["step"] != state.global_step]
        self.history.append({"step": state.global_step, **found, "subnet": best.subnet.to_dict()})
        if self.trainer is not None:
            self.trainer.log(found)
        else:
            state.log_history.append({**found, "step": state.global_step})


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _unwrapped(model: Any) -> Any:
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def _remove(folder: Path, state: TrainerState) -> None:
    """Remove a folder in the first process; all wait for that."""
    if state.is_world_process_zero:
        with disk_errors(folder):
            shutil.rmtree(folder)
    wait_for_all()


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore every random number generator after the block."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
