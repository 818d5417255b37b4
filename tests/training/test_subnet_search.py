"""SubnetSearchCallback: it does not change the training, and finds what a separate search of the model finds."""

import json
import re

import fixtures_training
import pytest
import torch
from fixtures_processes import on_two_processes
from fixtures_search import assert_same_search
from fixtures_slow import slow_but
from fixtures_training import BIN, CONFIG, make_blocks, make_callback, make_supernet, make_trainer
from transformers import GPTNeoXForCausalLM, TrainerCallback

from hf_whittle import (
    FlopsBin,
    GPTNeoXSuperNetForCausalLM,
    HealedPerplexity,
    KLDivergence,
    MultiFidelityConfig,
    Perplexity,
    Probe,
    ProbeConfig,
    SearchResult,
    SearchSpace,
    StagedFitness,
    SubnetConfig,
    SubnetSearchCallback,
    search_subnets,
)
from hf_whittle.errors import ArchitectureError, BinError, SubnetError
from hf_whittle.training.subnet_search import FOLDER


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def losses_of(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def assert_same_history(found, expected):
    fitnesses = [[one["search_fitness"] for one in history] for history in (found, expected)]
    assert fitnesses[0] == pytest.approx(fitnesses[1], rel=1e-5)
    without = [[{**one, "search_fitness": None} for one in history] for history in (found, expected)]
    assert without[0] == without[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A trainer after training without a search."""
    trainer = make_trainer(tmp_path_factory.mktemp("plain"))
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("when", ["end", "save", "evaluate"])
def test_training_with_a_search_is_the_training_without_it(plain, tmp_path, when):
    callback = make_callback(when=when)
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    assert callback.result is not None
    assert losses_of(trainer) == pytest.approx(losses_of(plain), rel=1e-6)
    torch.testing.assert_close(weights_of(trainer), weights_of(plain), rtol=0, atol=1e-6)


def in_stages(supernet):
    text, training = make_blocks(4, seed=2), make_blocks(8, seed=3)
    probe = Probe(supernet, training, text, ProbeConfig(steps=2, batch_size=4))
    return StagedFitness({0.5: Perplexity(supernet, text), 0.75: HealedPerplexity(supernet, text, training), 1: probe})


@pytest.mark.slow
def test_training_with_a_search_in_stages_is_the_training_without_it(plain, tmp_path):
    config = MultiFidelityConfig(generations=1, shares=[0.5, 0.75, 1], sizes=[3, 2, 1], initial=1)
    callback = make_callback(when="evaluate", eval_dataset=None, fitness=in_stages, config=config)
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    assert len(callback.history) == 2 and callback.result.settings["fitness"]["name"] == "staged"
    assert losses_of(trainer) == pytest.approx(losses_of(plain), rel=1e-6)
    torch.testing.assert_close(weights_of(trainer), weights_of(plain), rtol=0, atol=1e-6)


def searched(supernet):
    space = SearchSpace.from_config(supernet.config, layer_wise=True)
    blocks = make_blocks(6, seed=2)
    return search_subnets(supernet, space, bin=BIN, eval_dataset=blocks, config=CONFIG, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("when", "folders"), [
    ("end", [f"{FOLDER}/end"]),
    ("save", [f"checkpoint-4/{FOLDER}", f"checkpoint-8/{FOLDER}"]),
    ("evaluate", [f"{FOLDER}/step-4", f"{FOLDER}/step-8"]),
])  # fmt: skip
def test_what_was_found_lies_where_it_belongs_and_is_the_search_of_the_model_as_it_was(tmp_path, when, folders):
    callback = make_callback(when=when)
    make_trainer(tmp_path, [callback]).train()
    assert [str(path.parent.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("search.json"))] == folders
    for folder, step in zip(folders, (8,) if len(folders) == 1 else (4, 8), strict=True):
        supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}")
        assert_same_search(SearchResult.load(tmp_path / folder), searched(supernet))
    assert callback.result.evaluations == SearchResult.load(tmp_path / folders[-1]).evaluations


def test_modes_config_and_gradients_are_as_they_were(tmp_path):
    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **kwargs):
            self.before = [module.training for module in model.modules()], model.config.to_dict(), model._active

    callback, watch = make_callback(when="evaluate"), Watch()
    trainer = make_trainer(tmp_path, [watch, callback])
    trainer.evaluate()
    model = trainer.model
    assert ([module.training for module in model.modules()], model.config.to_dict(), model._active) == watch.before
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_result_goes_to_the_loggers_of_the_trainer(tmp_path):
    class Logger(TrainerCallback):
        seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(logs)

    callback, logger = make_callback(when="evaluate"), Logger()
    trainer = make_trainer(tmp_path, [logger, callback])
    callback.trainer = trainer
    trainer.train()
    logged = [logs["search_fitness"] for logs in logger.seen if "search_fitness" in logs]
    assert logged == [found["search_fitness"] for found in callback.history]
    assert logged == [row["search_fitness"] for row in trainer.state.log_history if "search_fitness" in row]
    assert len(logged) == 2


@pytest.mark.slow
def test_without_a_trainer_the_result_is_in_the_log_history(tmp_path):
    callback = make_callback(when="evaluate")
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    found = [row for row in trainer.state.log_history if "search_fitness" in row]
    assert [row["step"] for row in found] == [4, 8]
    assert [row["search_fitness"] for row in found] == [one["search_fitness"] for one in callback.history]
    assert SubnetConfig.from_dict(callback.history[-1]["subnet"]) == callback.result.best


@pytest.mark.slow
@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("when", slow_but(["save", "evaluate"], "evaluate"))
def test_resumed_training_goes_on_to_the_same_weights_and_history(plain, tmp_path, when, restore):
    first = make_callback(when=when)
    make_trainer(tmp_path, [first], max_steps=4, lr_scheduler_type="constant").train()
    whole, resumed = make_callback(when=when), make_callback(when=when)
    uninterrupted = make_trainer(tmp_path / "whole", [whole], lr_scheduler_type="constant")
    uninterrupted.train()
    trainer = make_trainer(
        tmp_path, [resumed], lr_scheduler_type="constant", restore_callback_states_from_checkpoint=restore
    )
    trainer.train(resume_from_checkpoint=True)
    callback = next(one for one in trainer.callback_handler.callbacks if isinstance(one, SubnetSearchCallback))
    torch.testing.assert_close(weights_of(trainer), weights_of(uninterrupted), rtol=0, atol=1e-6)
    assert [found["step"] for found in callback.history] == [4, 8]
    assert_same_history(callback.history, whole.history)


@pytest.mark.slow
def test_search_of_an_earlier_training_in_the_folder_is_replaced(tmp_path):
    make_trainer(tmp_path, [make_callback()], seed=1).train()
    callback = make_callback()
    make_trainer(tmp_path, [callback], seed=2).train()
    assert SearchResult.load(tmp_path / FOLDER / "end").evaluations == callback.result.evaluations


@pytest.mark.slow
def test_fitness_of_ones_own(tmp_path):
    blocks = make_blocks(4, seed=5)
    callback = make_callback(fitness=lambda supernet: KLDivergence(supernet, blocks))
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    best = callback.result.best_evaluation
    assert best.fitness == KLDivergence(trainer.model, blocks)(best.subnet)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    """Weights under DDP differ from those of one process by rounding."""
    on_two_processes(fixtures_training.__file__, tmp_path)
    supernet = make_supernet()
    supernet.load_state_dict(torch.load(tmp_path / "weights.pt"))
    found, expected = SearchResult.load(tmp_path / FOLDER / "step-8"), searched(supernet)
    assert_same_search(found, expected)
    assert (tmp_path / FOLDER / "step-4" / "search.json").is_file()


# Errors


def test_model_that_is_no_super_network_is_an_error(tmp_path):
    model = GPTNeoXForCausalLM(make_supernet().config)
    message = "SubnetSearchCallback needs a super-network to search, got a GPTNeoXForCausalLM"
    with pytest.raises(ArchitectureError, match=message):
        make_trainer(tmp_path, [make_callback()], model=model).train()


def test_search_that_would_be_refused_is_refused_before_training(tmp_path):
    trainer = make_trainer(tmp_path, [make_callback(space={"vocab_sizes": [20, 61]})])
    with pytest.raises(SubnetError, match="of 20 or 61 tokens, and perplexity on fixed token ids does not compare"):
        trainer.train()
    trainer = make_trainer(tmp_path, [make_callback(bin=[BIN, FlopsBin(1, 1e9, 16)])])
    with pytest.raises(BinError, match="give one bin, or several of the same cost"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_unknown_time_is_an_error():
    with pytest.raises(ValueError, match=re.escape("when must be 'end', 'save' or 'evaluate', got 'epoch'")):
        make_callback(when="epoch")


def test_nothing_to_search_on_is_an_error():
    with pytest.raises(ValueError, match="give an eval_dataset to search on, or a fitness"):
        SubnetSearchCallback(BIN)


@pytest.mark.slow
def test_state_is_json(tmp_path):
    callback = make_callback()
    make_trainer(tmp_path, [callback]).train()
    assert json.loads(json.dumps(callback.state()))["attributes"]["history"] == callback.history
