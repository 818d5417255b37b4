"""Training arguments out of range are errors at once, and the best model by one of our metrics is the best one."""

import dataclasses
import math

import pytest
from fixtures_distillation import make_trainer
from transformers import EarlyStoppingCallback

from hf_whittle import DistillationConfig, EvolutionConfig, HealingConfig
from hf_whittle.cost import FlopsBin, WeightBytesBin
from hf_whittle.distillation.store.encodings import Samples
from hf_whittle.fitness.probe import ProbeConfig
from hf_whittle.recipe.data import DataSection
from hf_whittle.recipe.sections import SearchSection
from hf_whittle.search.algorithms import ALGORITHMS
from hf_whittle.training.supernet_trainer import SupernetConfig

KINDS = (DistillationConfig, SupernetConfig)
NUMBERS = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs",
    "max_steps", "warmup_steps", "eval_steps", "save_steps", "logging_steps", "eval_delay", "neftune_noise_alpha",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "seed", "data_seed",
    "dataloader_num_workers", "eval_accumulation_steps", "save_total_limit", "alpha", "beta", "temperature",
)  # fmt: skip
ZEROS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_steps",
         "num_train_epochs", "eval_accumulation_steps", "save_steps", "temperature")  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, -2, "3e-4"], ids=str)
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_none_or_negative_is_refused(tmp_path, kind, name, value):
    with pytest.raises((ValueError, TypeError), match=name if not isinstance(value, str) else None):
        kind(output_dir=str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize("name", ZEROS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_is_refused_where_there_must_be_something(tmp_path, kind, name):
    with pytest.raises(ValueError, match=f"{name} must be .*, got 0"):
        kind(output_dir=str(tmp_path), use_cpu=True, **{name: 0})


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_bounds_that_mean_something_are_fine(tmp_path, kind):
    kind(
        output_dir=str(tmp_path), use_cpu=True, learning_rate=0, weight_decay=0, max_grad_norm=0, warmup_steps=0,
        eval_steps=0.5, save_steps=0.1, logging_steps=0.02, save_strategy="no", max_steps=-1,
        num_train_epochs=0.5, seed=0,
    )  # fmt: skip
    kind(output_dir=str(tmp_path), use_cpu=True, save_strategy="no", save_steps=0)
    kind(output_dir=str(tmp_path), use_cpu=True, max_steps=10, num_train_epochs=-1, save_total_limit=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_block_is_no_batch(tmp_path, kind):
    message = "per_device_train_batch_size must be a whole number of at least 1, got 2.5"
    with pytest.raises(ValueError, match=message):
        kind(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=2.5)


def numbers_of(config):
    """Names of the fields of a dataclass whose default is a number."""
    return [
        item.name
        for item in dataclasses.fields(config)
        if isinstance(getattr(config, item.name), int | float) and not isinstance(getattr(config, item.name), bool)
    ]


CONFIGS = {
    **{name: config() for name, config in ALGORITHMS.items()},
    "healing": HealingConfig(),
    "probe": ProbeConfig(),
    "samples": Samples(100),
    "data": DataSection(files=["x"]),
    "search section": SearchSection(),
    "bin of bytes": WeightBytesBin(1, 2),
    "bin of FLOPs": FlopsBin(1, 2, sequence_length=8),
}


@pytest.mark.parametrize(
    "of, name", [(of, name) for of, config in CONFIGS.items() for name in numbers_of(config) if name != "vocab_size"]
)
def test_nan_and_negative_numbers_are_in_no_range_of_any_settings(of, name):
    for value in (math.nan, -1):
        with pytest.raises(ValueError, match=r"must|needs"):
            dataclasses.replace(CONFIGS[of], **{name: value})


@pytest.mark.parametrize("name, values", [("shares", [math.nan, 1.0]), ("sizes", [math.nan, 1]), ("sizes", [2.5, 1])])
def test_nan_is_in_no_list_of_settings(name, values):
    settings = {"shares": [0.5, 1.0], "sizes": [2, 1], name: values}
    with pytest.raises(ValueError, match=f"{name} must"):
        ALGORITHMS["multi-fidelity"](**settings)
    with pytest.raises(ValueError, match="ridge must"):
        HealingConfig(ridge=[math.nan])


def test_a_whole_number_of_numpy_is_one():
    numpy = pytest.importorskip("numpy")
    assert EvolutionConfig(generations=numpy.int64(3)).generations == 3


# Which way a metric is better

OURS = ["loss", "eval_loss", "perplexity", "eval_perplexity", "eval_smallest_perplexity", "eval_code_perplexity",
        "search_fitness", "search_parameters"]  # fmt: skip


@pytest.mark.parametrize("metric", OURS)
@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_ours_are_better_the_lower_they_are(tmp_path, kind, metric):
    args = kind(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric)
    assert args.greater_is_better is False
    assert dataclasses.replace(args, learning_rate=1e-3).greater_is_better is False
    with pytest.raises(ValueError, match=f"greater_is_better=True would keep the model with the worst {metric}"):
        kind(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model=metric, greater_is_better=True)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_of_others_are_as_trainer_has_them(tmp_path, kind):
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "metric_for_best_model": "eval_accuracy"}
    assert kind(**settings).greater_is_better is True
    assert kind(**settings, greater_is_better=False).greater_is_better is False


@pytest.mark.parametrize("metric", ["perplexity", "eval_perplexity"])
def test_the_best_model_by_perplexity_is_that_of_the_lowest(tmp_path, metric):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(
        tmp_path, max_steps=6, learning_rate=3.0, metric_for_best_model=metric, load_best_model_at_end=True, **settings
    )
    trainer.train()
    curve = {row["step"]: row["eval_perplexity"] for row in trainer.state.log_history if "eval_perplexity" in row}
    assert min(curve.values()) < max(curve.values())
    assert trainer.state.best_metric == min(curve.values())
    assert trainer.state.best_global_step == min(curve, key=curve.get)
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(min(curve.values()), rel=1e-4)


def test_training_stops_early_when_perplexity_rises(tmp_path):
    """Train with a learning rate at which every step makes the model worse."""
    trainer = make_trainer(
        tmp_path, max_steps=30, learning_rate=50.0, max_grad_norm=0, metric_for_best_model="eval_perplexity",
        eval_strategy="steps", eval_steps=1, eval_on_start=True, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    curve = [row["eval_perplexity"] for row in trainer.state.log_history if "eval_perplexity" in row]
    best = curve.index(min(curve))
    assert trainer.state.global_step < 30 and trainer.state.global_step <= best + 3
