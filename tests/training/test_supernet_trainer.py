"""SupernetTrainer: subnets drawn and losses of each strategy; only the strategy changes a training."""

import copy
import logging
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fixtures_distillation import LENGTH
from fixtures_processes import on_two_processes
from fixtures_training import make_supernet
from small_models import settings_of
from small_supernet_training import (
    BATCHES,
    STRATEGIES,
    collate,
    losses_of,
    make_blocks,
    make_space,
    make_trainer,
)
from transformers import AutoConfig, GPTNeoXForCausalLM, HfArgumentParser, Trainer, TrainingArguments

from hf_whittle import (
    AutoSuperNetForCausalLM,
    ParameterBin,
    SearchSpace,
    SubnetConfig,
    SupernetConfig,
    SupernetTrainer,
    extract_subnet,
)
from hf_whittle.cost import training_flops_per_token
from hf_whittle.errors import ArchitectureError, BinError, SubnetError
from hf_whittle.fitness.perplexity import Perplexity
from hf_whittle.training import precision
from hf_whittle.training.strategies import FULL, smallest_subnet

SCRIPT = Path(__file__).with_name("small_supernet_training.py")
SMALLEST = SubnetConfig(8, 1, 1, 16)
BINS = [ParameterBin(8_000, 9_000), ParameterBin(20_000, 22_000)]


def trained_subnets(trainer):
    """Train, and return the active subnet of each forward pass."""
    active = []
    model = trainer.model
    hook = model.register_forward_pre_hook(lambda *_: active.append(model._active))
    trainer.train()
    hook.remove()
    return active


def weights_of(trainer):
    return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


# Subnets of a step


def test_standard_trains_the_full_network(tmp_path):
    assert trained_subnets(make_trainer(tmp_path, strategy="standard")) == [FULL] * 4


@pytest.mark.parametrize("number", [1, 2])
def test_random_trains_that_many_subnets_of_the_space(tmp_path, number):
    trainer = make_trainer(tmp_path, strategy="random", num_random_subnets=number)
    subnets = trained_subnets(trainer)
    assert len(set(subnets)) == len(subnets) == 4 * number
    assert all(trainer.search_space.contains(subnet) for subnet in subnets)


def test_sandwich_trains_the_full_network_then_the_smallest_subnet_then_random_ones(tmp_path):
    trainer = make_trainer(tmp_path, strategy="sandwich", num_random_subnets=2)
    subnets = trained_subnets(trainer)
    assert subnets[0::4] == [FULL] * 4
    assert subnets[1::4] == [SMALLEST] * 4
    assert len({*subnets[2::4], *subnets[3::4]}) == 8


def test_ats_trains_a_random_subnet_and_the_full_network_in_turn(tmp_path):
    subnets = trained_subnets(make_trainer(tmp_path, strategy="ats"))
    assert subnets[1::2] == [FULL, FULL]
    assert all(isinstance(subnet, SubnetConfig) for subnet in subnets[0::2])


def test_random_linear_trains_random_subnets_ever_more_often(tmp_path):
    trainer = make_trainer(tmp_path, strategy="random-linear")
    trainer.state.max_steps = 2000
    drawn = [trainer.subnets_of_step(step)[0] is not FULL for step in range(2000)]
    assert (drawn[0], drawn[-1]) == (False, True)
    for quarter in range(4):
        share = sum(drawn[500 * quarter : 500 * (quarter + 1)]) / 500
        assert share == pytest.approx((2 * quarter + 1) / 8, abs=0.05)


def test_subnets_depend_on_seed_and_step_alone(tmp_path):
    first, second, other = (make_trainer(tmp_path, strategy="random", seed=seed) for seed in (3, 3, 4))
    random.seed(1)
    forwards = [first.subnets_of_step(step) for step in range(20)]
    random.seed(2)
    backwards = [second.subnets_of_step(step) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards != [other.subnets_of_step(step) for step in range(20)]


def test_every_micro_batch_of_a_step_trains_the_same_subnets(tmp_path):
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    subnets = trained_subnets(make_trainer(tmp_path, strategy="random", **changes))
    assert subnets[0::2] == subnets[1::2]
    assert len(set(subnets)) == 4


def test_subnets_lie_in_the_bins_each_as_often(tmp_path):
    model = make_supernet()
    args = SupernetConfig(output_dir=str(tmp_path), use_cpu=True)
    trainer = SupernetTrainer(model, args, search_space=make_space(model), bin=BINS)
    drawn = [trainer.subnets_of_step(step) for step in range(200)]
    inside = Counter([bin.contains(model.config, subnets[2]) for bin in BINS].index(True) for subnets in drawn)
    assert inside[0] == pytest.approx(100, abs=20)
    assert sum(inside.values()) == 200
    assert BINS[0].contains(model.config, trainer.smallest)
    assert {subnets[1] for subnets in drawn} == {trainer.smallest}


def test_default_space_is_the_coarse_layer_wise_one(tmp_path):
    model = make_supernet()
    trainer = SupernetTrainer(model, SupernetConfig(output_dir=str(tmp_path), use_cpu=True))
    assert trainer.search_space == SearchSpace.from_config(model.config, layer_wise=True)


def test_smallest_subnet_has_the_least_sizes_of_the_space(supernet):
    def smallest(**settings):
        return smallest_subnet(SearchSpace.from_config(supernet.config, **settings))

    ranges = {"hidden_size": range(16, 33, 8), "num_hidden_layers": range(2, 6), "intermediate_size": range(12, 65, 4)}
    assert smallest(layer_wise=True, **ranges) == SubnetConfig(16, 2, 1, 12)
    assert smallest(stock_only=True, **ranges) == SubnetConfig(16, 2, 2, 12)
    fine = smallest(granularity="fine", layer_wise=True, **ranges)
    assert fine.shape == SubnetConfig(16, 2, 1, 12).shape
    assert fine == smallest(granularity="fine", layer_wise=True, **ranges)


# Losses and gradients


def gradients_of_step(trainer, monkeypatch):
    """Gradients and loss of one step on one batch."""
    kept = {}

    def keep(model, *_):
        named = trainer.model.named_parameters()
        kept.update({name: None if p.grad is None else p.grad.clone() for name, p in named})

    monkeypatch.setattr(trainer, "_clip_grad_norm", keep)
    trainer.train()
    return kept, losses_of(trainer)[0].item()


def test_gradients_are_those_of_the_student_and_lie_in_its_slices(tmp_path, monkeypatch):
    model = make_supernet(hidden_dropout=0.0)
    before = copy.deepcopy(model)
    trainer = make_trainer(tmp_path, model, strategy="random", max_steps=1, seed=8)
    (subnet,) = trainer.subnets_of_step(0)
    assert subnet.shape.num_hidden_layers < 3
    gradients, _ = gradients_of_step(trainer, monkeypatch)

    student = extract_subnet(before, subnet)
    student(**collate(make_blocks()[:4])).loss.backward()
    expected = {name: parameter.grad for name, parameter in student.named_parameters()}
    with torch.no_grad():
        for name, parameter in before.named_parameters():
            parameter.copy_(torch.zeros_like(parameter) if gradients[name] is None else gradients[name])
    torch.testing.assert_close(dict(extract_subnet(before, subnet).named_parameters()), expected)
    entries = [sum(one.count_nonzero().item() for one in some.values() if one is not None)
               for some in (gradients, expected)]  # fmt: skip
    assert entries[0] == entries[1]
    left_out = {name for name, gradient in gradients.items() if gradient is None}
    assert left_out == {name for name in gradients if ".layers.2." in name or (
        ".layers.1." in name and subnet.shape.num_hidden_layers == 1)}  # fmt: skip


@pytest.mark.parametrize("changes", [{"max_grad_norm": 0.1}, {"per_device_train_batch_size": 2,
                                                               "gradient_accumulation_steps": 2}])  # fmt: skip
def test_standard_is_the_plain_trainer(tmp_path, changes):
    settings = {"optim": "adamw_torch", "lr_scheduler_type": "linear", "learning_rate": 1e-2, **changes}
    ours = make_trainer(tmp_path, make_supernet(), strategy="standard", **settings)
    ours.train()
    own = set(SupernetConfig.__dataclass_fields__) - set(TrainingArguments.__dataclass_fields__)
    values = {name: value for name, value in ours.args.to_dict().items() if name not in own}
    plain = Trainer(make_supernet(), TrainingArguments(**values), data_collator=collate, train_dataset=make_blocks())
    plain.train()
    torch.testing.assert_close(losses_of(ours), losses_of(plain), rtol=1e-6, atol=0)
    torch.testing.assert_close(weights_of(ours), weights_of(plain), rtol=0, atol=1e-6)


def scaled_supernet():
    """A super-network that scales its logits."""
    changes = {"vocab_size": 61, "num_hidden_layers": 3}
    return AutoSuperNetForCausalLM.from_config(AutoConfig.for_model("cohere", **settings_of("cohere", **changes)))


@pytest.mark.parametrize(
    ("make", "alpha", "beta", "temperature"),
    [
        (make_supernet, 0.0, 1.0, 1.0),
        (make_supernet, 0.3, 0.6, 2.0),
        (make_supernet, 0.5, 0.0, 1.0),
        (scaled_supernet, 0.3, 0.6, 2.0),
    ],
)
def test_sandwich_is_its_formula(tmp_path, monkeypatch, make, alpha, beta, temperature):
    settings = {"alpha": alpha, "beta": beta, "temperature": temperature}
    model = make(hidden_dropout=0.0) if make is make_supernet else make()
    before = copy.deepcopy(model)
    trainer = make_trainer(tmp_path, model, max_steps=1, strategy="sandwich", num_random_subnets=2, **settings)
    gradients, loss = gradients_of_step(trainer, monkeypatch)

    batch = collate(make_blocks()[:4])
    labels = batch["labels"][:, 1:]
    counted = labels != -100

    def logits():
        return before(input_ids=batch["input_ids"]).logits[:, :-1][counted]

    full = logits()
    losses = [F.cross_entropy(full, labels[counted])]
    soft = (full.detach() / temperature).softmax(-1)
    for subnet in trainer.subnets_of_step(0)[1:]:
        with before.active_subnet(subnet):
            own = logits()
        cross_entropy = F.cross_entropy(own, labels[counted])
        divergence = (soft * (soft.log() - (own / temperature).log_softmax(-1))).sum(-1).mean()
        losses.append(alpha * cross_entropy + beta * temperature**2 * divergence if beta else cross_entropy)
    expected = sum(losses) / 4
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "sandwich"])
def test_accumulation_changes_nothing(tmp_path, strategy):
    settings = STRATEGIES[strategy]
    whole = make_trainer(tmp_path, **settings)
    whole.train()
    for size in (2, 1):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        parts = make_trainer(tmp_path, **settings, **changes)
        parts.train()
        torch.testing.assert_close(losses_of(parts), losses_of(whole), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(weights_of(parts), weights_of(whole), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain, checkpointed = (make_trainer(tmp_path, activation_checkpointing=on) for on in (False, True))
    for trainer in (plain, checkpointed):
        trainer.train()
    torch.testing.assert_close(weights_of(checkpointed), weights_of(plain), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_mixed_precision_stays_near_single_precision(tmp_path):
    exact, mixed = (make_trainer(tmp_path, bf16=on, learning_rate=1e-3) for on in (False, True))
    for trainer in (exact, mixed):
        trainer.train()
    torch.testing.assert_close(losses_of(mixed), losses_of(exact), rtol=2e-2, atol=0)
    assert all(weight.dtype == torch.float32 for weight in weights_of(mixed).values())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random-linear", "sandwich"])
def test_resumed_training_is_the_uninterrupted_one(tmp_path, strategy):
    settings = {"strategy": strategy, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    settings |= {"optim": "adamw_torch", "learning_rate": 1e-2, "lr_scheduler_type": "linear"}
    whole = make_trainer(tmp_path, make_supernet(), **settings)
    drawn = trained_subnets(whole)
    resumed = make_trainer(tmp_path / "resumed", make_supernet(), **settings)
    active = []
    resumed.model.register_forward_pre_hook(lambda model, _: active.append(model._active))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert active == drawn[len(drawn) // 2 :]
    torch.testing.assert_close(losses_of(resumed), losses_of(whole), rtol=1e-6, atol=0)
    torch.testing.assert_close(weights_of(resumed), weights_of(whole), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    """A folder with weights and losses of every strategy and batch size."""
    folder = tmp_path_factory.mktemp("processes")
    on_two_processes(SCRIPT, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_give_the_weights_and_losses_of_one(trained_by_two, tmp_path, strategy):
    one = make_trainer(tmp_path, **STRATEGIES[strategy])
    one.train()
    for batches in BATCHES:
        two = torch.load(trained_by_two / f"{strategy}, {batches}.pt")
        torch.testing.assert_close(two.pop("losses"), losses_of(one), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(two, weights_of(one), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_training_makes_the_smallest_subnet_better(tmp_path):
    ids = torch.stack([(torch.arange(LENGTH) + start) % 7 for start in range(8)])
    blocks = [{"input_ids": row, "labels": row} for row in ids]
    found = {}
    for strategy in ("standard", "random", "sandwich"):
        settings = {"max_steps": 40, "optim": "adamw_torch", "learning_rate": 1e-2, "logging_steps": 40}
        trainer = make_trainer(tmp_path, blocks=blocks, strategy=strategy, eval_smallest=True, **settings)
        before = trainer.evaluate()
        trainer.train()
        found[strategy] = trainer.evaluate()
        assert found[strategy]["eval_perplexity"] < before["eval_perplexity"] / 2
    smallest = {strategy: metrics["eval_smallest_perplexity"] for strategy, metrics in found.items()}
    assert max(smallest["random"], smallest["sandwich"]) < smallest["standard"] / 2
    assert smallest["sandwich"] < before["eval_smallest_perplexity"] / 4


# Logs and evaluation


@pytest.mark.parametrize("strategy", ["random", "sandwich"])
def test_evaluation_is_that_of_the_full_network_and_of_the_smallest_subnet(tmp_path, strategy):
    blocks = make_blocks()[:4]
    for block in blocks:
        block["labels"] = block["input_ids"]
    settings = {"eval_strategy": "steps", "eval_steps": 4, "eval_smallest": True}
    trainer = make_trainer(tmp_path, strategy=strategy, **settings)
    trainer.eval_dataset = blocks
    trainer.train()
    model = trainer.model
    of = Perplexity(model, torch.stack([block["input_ids"] for block in blocks]))
    (logged,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    for metrics in (logged, trainer.evaluate()):
        full = SubnetConfig(32, 3, 4, 64)
        assert metrics["eval_perplexity"] == pytest.approx(of(full), rel=1e-4)
        assert metrics["eval_smallest_perplexity"] == pytest.approx(of(SMALLEST), rel=1e-4)
    assert model._active is None


def test_flops_are_those_of_all_passes(tmp_path):
    trainer = make_trainer(tmp_path, strategy="sandwich")
    trainer.train()
    config = trainer.model.config
    expected = sum(
        training_flops_per_token(config, subnet, sequence_length=LENGTH)
        for step in range(4)
        for subnet in trainer.subnets_of_step(step)
    )
    assert trainer.state.total_flos == 4 * LENGTH * expected


def test_config_is_read_from_the_command_line():
    line = ["--output_dir", "out", "--strategy", "ats", "--num_random_subnets", "2", "--use_cpu"]
    (config,) = HfArgumentParser(SupernetConfig).parse_args_into_dataclasses(line)
    assert (config.strategy, config.num_random_subnets, config.ddp_find_unused_parameters) == ("ats", 2, True)


# Errors


@pytest.mark.parametrize(("changes", "message"), [
    ({"strategy": "sandwhich"}, "one of standard, random, random-linear, sandwich, ats, got 'sandwhich'"),
    ({"num_random_subnets": 0}, "num_random_subnets must be at least 1, got 0"),
    ({"alpha": -1.0}, "alpha must be a number of at least 0, got -1.0"),
    ({"beta": float("nan")}, "beta must be a number of at least 0, got nan"),
    ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor must be 0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        SupernetConfig(output_dir=str(tmp_path), use_cpu=True, **changes)


def test_settings_without_effect_are_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    SupernetConfig(output_dir=str(tmp_path), use_cpu=True, strategy="random", beta=0.5)
    assert "have no effect with strategy='random'" in caplog.text


@pytest.fixture
def args(tmp_path):
    return SupernetConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def test_a_model_that_is_no_supernetwork_is_refused(args, tiny_config):
    with pytest.raises(ArchitectureError, match="needs a super-network to train, got a GPTNeoXForCausalLM"):
        SupernetTrainer(GPTNeoXForCausalLM(tiny_config), args)


def test_weights_in_half_precision_are_refused(args):
    with pytest.raises(ValueError, match="weights are in float16"):
        SupernetTrainer(make_supernet().half(), args)


def test_weights_in_bfloat16_are_warned_of(args, monkeypatch):
    warned = []
    monkeypatch.setattr(precision.logger, "warning", warned.append)
    SupernetTrainer(make_supernet(), args)
    assert warned == []
    SupernetTrainer(make_supernet().bfloat16(), args)
    assert "the super-network's weights are in bfloat16, in which an optimizer loses updates" in warned[0].lower()


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="must be a SupernetConfig, got TrainingArguments"):
        SupernetTrainer(make_supernet(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_data_parallel_is_refused(args, monkeypatch):
    monkeypatch.setattr(SupernetConfig, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"SupernetTrainer needs a process for each of the 2 GPUs.*use torchrun"):
        SupernetTrainer(make_supernet(), args)


@pytest.mark.parametrize("sharding", ["is_deepspeed_enabled", "is_fsdp_enabled"])
def test_sharding_is_refused(args, sharding):
    trainer = SupernetTrainer(make_supernet(), args)
    setattr(trainer, sharding, True)
    with pytest.raises(ValueError, match="use DDP instead of DeepSpeed or FSDP"):
        trainer._check_training()


def test_a_loss_of_ones_own_is_refused_with_distillation(args):
    with pytest.raises(ValueError, match="no effect on in-place distillation; unset it, or set beta=0"):
        SupernetTrainer(make_supernet(), args, compute_loss_func=lambda *_, **__: 0)


def test_space_of_another_model_is_refused(args, supernet):
    with pytest.raises(SubnetError, match="is for another super-network"):
        SupernetTrainer(make_supernet(), args, search_space=SearchSpace.from_config(supernet.config))


def test_space_of_several_vocabularies_is_refused(args):
    space = SearchSpace.from_config((model := make_supernet()).config, vocab_sizes=[20, model.config.vocab_size])
    with pytest.raises(SubnetError, match=r"vocabularies of 20 or \d+ tokens.* make it without vocab_sizes"):
        SupernetTrainer(model, args, search_space=space)


def test_bin_out_of_reach_is_refused(args):
    with pytest.raises(BinError, match="no subnet of this space lies in the bin"):
        SupernetTrainer(make_supernet(), args, bin=ParameterBin(1, 2))
