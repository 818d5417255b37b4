"""DistillationTrainer against plain `Trainer`, against sums written out, and against itself by another route."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from fixtures_distillation import collate, make_arguments, make_blocks, make_model, make_trainer
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_whittle import DistillationConfig, DistillationTrainer
from hf_whittle.errors import VocabularyError
from hf_whittle.evaluation import cross_entropy


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def trained(trainer):
    trainer.train()
    return weights_of(trainer.model)


def distance(first, second):
    return max((first[name] - second[name]).abs().max().item() for name in first)


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


def parts_by_hand(student, teacher, blocks, temperature):
    """Mean cross-entropy and mean forward KL of the rows with a label."""
    batch = collate(blocks)
    labels = batch["labels"][:, 1:].flatten()
    rows = labels != -100
    with torch.no_grad():
        logits, targets = (
            model.eval()(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)[rows]
            for model in (student, teacher)
        )
    softened, soft_targets = (F.log_softmax(values / temperature, -1) for values in (logits, targets))
    divergence = F.kl_div(softened, soft_targets, reduction="batchmean", log_target=True)
    return F.cross_entropy(logits, labels[rows]).item(), divergence.item()


def test_without_beta_it_is_the_plain_trainer(tmp_path):
    ours = DistillationTrainer(
        model=make_model(1),
        teacher_model="no/such-teacher",
        args=make_arguments(DistillationConfig, tmp_path, beta=0.0, gradient_accumulation_steps=2),
        train_dataset=make_blocks(),
        data_collator=collate,
    )
    plain = Trainer(
        model=make_model(1),
        args=make_arguments(TrainingArguments, tmp_path, gradient_accumulation_steps=2),
        train_dataset=make_blocks(),
        data_collator=collate,
    )
    assert distance(trained(ours), trained(plain)) < 1e-6
    assert logged(ours, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-6) and ours.teacher is None
    assert not logged(ours, "kl")


def with_experts():
    """A mixture of experts, which adds the balance of its experts to its loss."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "output_router_logits": True}
    return MixtralForCausalLM(MixtralConfig(vocab_size=50, router_aux_loss_coef=0.5, **sizes, **experts))


def with_a_loss_of_its_own():
    model = make_model(1)
    model.loss_function = lambda logits, labels, **_: logits.square().mean()
    return model


@pytest.mark.parametrize("make", [with_experts, with_a_loss_of_its_own])
def test_without_a_teacher_a_model_keeps_a_loss_of_its_own(tmp_path, make):
    model, batch = make(), collate(make_blocks())
    trainer = make_trainer(tmp_path, model, None, beta=0.0)
    expected = model.train()(**batch).loss.item()
    assert trainer.compute_loss(model, batch).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("uneven", [False, True], ids=["all labels", "uneven labels"])
@pytest.mark.parametrize("beta", [0.0, 0.8])
def test_gradient_accumulation_changes_nothing(tmp_path, beta, uneven):
    blocks = make_blocks(uneven)
    whole, halves, quarters = (
        make_trainer(
            tmp_path, blocks=blocks, beta=beta, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size
        )
        for size in (4, 2, 1)
    )
    expected = trained(whole)
    assert distance(expected, weights_of(make_model(1))) > 0.01
    for accumulated in (halves, quarters):
        assert distance(trained(accumulated), expected) < 1e-5
        assert logged(accumulated, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-4)
    if beta:
        assert logged(quarters, "kl") == pytest.approx(logged(whole, "kl"), rel=1e-4)
        assert logged(quarters, "cross_entropy") == pytest.approx(logged(whole, "cross_entropy"), rel=1e-4)


def test_chunk_size_of_the_loss_changes_nothing(tmp_path):
    small, large = (trained(make_trainer(tmp_path, loss_chunk_size=size)) for size in (3, 1024))
    assert distance(small, large) < 1e-6


@pytest.mark.parametrize("alpha, beta, temperature", [(0.2, 0.8, 0.9), (0.0, 1.0, 2.0), (0.5, 0.25, 1.0)])
def test_first_logs_are_what_the_formula_gives(tmp_path, alpha, beta, temperature):
    weights = {"alpha": alpha, "beta": beta, "temperature": temperature}
    trainer = make_trainer(tmp_path, max_steps=1, **weights)
    ce, kl = parts_by_hand(make_model(1), make_model(2, layers=3), make_blocks()[:4], temperature)
    trainer.train()
    assert logged(trainer, "cross_entropy") == [pytest.approx(ce, rel=1e-5)]
    assert logged(trainer, "kl") == [pytest.approx(kl, rel=1e-5)]
    assert logged(trainer, "loss") == [pytest.approx(alpha * ce + beta * temperature**2 * kl, rel=1e-4)]


def test_logged_parts_are_means_over_all_steps_since_the_last_log(tmp_path):
    every, third = (make_trainer(tmp_path, blocks=make_blocks(False), logging_steps=steps) for steps in (1, 3))
    every.train()
    third.train()
    for name in ("cross_entropy", "kl"):
        assert logged(third, name) == [pytest.approx(sum(logged(every, name)) / 3, rel=1e-5)]


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_evaluation_is_cross_entropy_whatever_the_weights(tmp_path, beta):
    trainer = make_trainer(tmp_path, alpha=0.1, beta=beta, temperature=3.0, eval_strategy="steps", eval_steps=3)
    trainer.eval_dataset = make_blocks(uneven=False)[:5]
    trainer.train()
    input_ids = torch.stack([block["input_ids"] for block in trainer.eval_dataset])
    expected = cross_entropy(trainer.model, input_ids)
    assert logged(trainer, "eval_loss") == [pytest.approx(expected, rel=1e-5)]
    assert logged(trainer, "eval_perplexity") == [pytest.approx(math.exp(expected), rel=1e-5)]
    metrics = trainer.evaluate(metric_key_prefix="test")
    assert metrics["test_loss"] == pytest.approx(expected, rel=1e-5)


def test_perplexity_can_choose_the_best_checkpoint(tmp_path):
    trainer = make_trainer(
        tmp_path,
        learning_rate=20.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_perplexity",
        greater_is_better=False,
    )
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(min(logged(trainer, "eval_perplexity")))
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(trainer.state.best_metric, rel=1e-6)


def test_a_student_equal_to_its_teacher_learns_nothing_from_it(tmp_path):
    teacher = make_model(2)
    trainer = make_trainer(tmp_path, copy.deepcopy(teacher), teacher, alpha=0.0, beta=1.0)
    assert distance(trained(trainer), weights_of(teacher)) < 1e-5
    assert logged(trainer, "kl") == pytest.approx([0, 0, 0], abs=1e-6)


def state_of(model):
    """State of a model that a trainer could change, without its weights."""
    modules = {
        name: (module.training, type(module), "forward" in vars(module), len(module._forward_hooks))
        for name, module in model.named_modules()
    }
    parameters = {name: (p.requires_grad, p.dtype, p.device) for name, p in model.named_parameters()}
    return modules, parameters, model.config.to_dict()


def test_teacher_stays_as_it_was(tmp_path):
    teacher, modes = make_model(2, layers=3).train(), []
    teacher.lm_head.requires_grad_(False)
    teacher.gpt_neox.layers[1].eval()
    hook = teacher.gpt_neox.layers[0].register_forward_hook(lambda module, *_: modes.append(module.training))
    before, state = weights_of(teacher), state_of(teacher)
    trainer = make_trainer(tmp_path, teacher=teacher, save_strategy="steps", save_steps=3)
    trainer.train()
    assert distance(before, weights_of(teacher)) == 0 and state_of(teacher) == state
    assert modes and not any(modes)
    assert not [name for name, p in teacher.named_parameters() if p.grad is not None]
    hook.remove()
    checkpoint = tmp_path / "checkpoint-3"
    saved = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert distance(weights_of(saved), weights_of(trainer.model)) == 0
    assert len(load_file(checkpoint / "model.safetensors")) == len(list(trainer.model.parameters()))
    assert not [path for path in checkpoint.rglob("*") if "teacher" in path.name]
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    parameters = sum(len(group["params"]) for group in optimizer["param_groups"])
    assert parameters == len(list(trainer.model.parameters()))


def test_teacher_is_loaded_by_name(tmp_path):
    teacher = make_model(2, layers=3)
    teacher.save_pretrained(tmp_path / "teacher")
    by_name = trained(make_trainer(tmp_path, teacher=str(tmp_path / "teacher")))
    assert distance(by_name, trained(make_trainer(tmp_path, teacher=teacher))) < 1e-6


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_resumed_training_is_the_uninterrupted_one(tmp_path, optim):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "train_sampling_strategy": "random"}
    settings |= {"optim": optim, "learning_rate": 0.01, "lr_scheduler_type": "cosine", "logging_steps": 2}
    whole = make_trainer(tmp_path / "run", **settings)
    expected = trained(whole)
    resumed = make_trainer(tmp_path / "run", student=make_model(9), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert distance(weights_of(resumed.model), expected) < 1e-6
    assert logged(resumed, "kl")[-1] == pytest.approx(logged(whole, "kl")[-1], rel=1e-6)


def test_by_default_blocks_are_their_own_labels(tmp_path):
    blocks = [{"input_ids": block["input_ids"]} for block in make_blocks()]
    args = make_arguments(DistillationConfig, tmp_path, max_steps=1)
    trainer = DistillationTrainer(make_model(1), make_model(2), args, train_dataset=blocks)
    trainer.train()
    ce, _ = parts_by_hand(make_model(1), make_model(2), make_blocks(uneven=False)[:4], 0.9)
    assert logged(trainer, "cross_entropy") == [pytest.approx(ce, rel=1e-5)]


def test_another_vocabulary_is_an_error(tmp_path):
    with pytest.raises(VocabularyError, match="teacher's vocabulary has 51 entries, the student's 50"):
        make_trainer(tmp_path, teacher=make_model(2, vocab_size=51))


def with_two_tokens_exchanged(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(description))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token)


def make_trainer_with_tokenizers(output_dir, ours, **theirs):
    size = len(ours)
    return DistillationTrainer(
        model=make_model(1, vocab_size=size),
        args=make_arguments(DistillationConfig, output_dir),
        train_dataset=make_blocks(),
        processing_class=ours,
        **({"teacher_model": make_model(2, vocab_size=size)} | theirs),
    )


def test_other_tokens_are_an_error(teacher_folder, tmp_path):
    ours, theirs = AutoTokenizer.from_pretrained(teacher_folder), with_two_tokens_exchanged(teacher_folder)
    ids = ours.convert_tokens_to_ids(["a", "b"])
    message = f"tokenizers differ in 2 tokens, first 'a': student id {ids[0]}, teacher id {ids[1]}"
    with pytest.raises(VocabularyError, match=message):
        make_trainer_with_tokenizers(tmp_path, ours, teacher_tokenizer=theirs)
    with pytest.raises(VocabularyError, match="tokenizers differ in 2 tokens"):
        make_trainer_with_tokenizers(tmp_path, theirs, teacher_model=str(teacher_folder))


def test_the_same_tokens_are_none(teacher_folder, tmp_path):
    ours = AutoTokenizer.from_pretrained(teacher_folder)
    make_trainer_with_tokenizers(tmp_path, ours, teacher_tokenizer=copy.deepcopy(ours))


def test_beta_without_a_teacher_is_an_error(tmp_path):
    args = make_arguments(DistillationConfig, tmp_path)
    with pytest.raises(ValueError, match=r"beta > 0 needs a teacher_model; give one, or set beta=0"):
        DistillationTrainer(make_model(1), args=args, train_dataset=make_blocks())


def test_arguments_of_another_class_are_an_error(tmp_path):
    args = make_arguments(TrainingArguments, tmp_path)
    with pytest.raises(TypeError, match="args must be a DistillationConfig, got TrainingArguments"):
        DistillationTrainer(make_model(1), args=args)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"alpha": -0.1}, "alpha must be a number of at least 0, got -0.1"),
        ({"beta": -1.0}, "beta must be a number of at least 0, got -1.0"),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
        ({"temperature": -2.0}, "temperature must be a positive number, got -2.0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor must be 0"),
        ({"loss_chunk_size": 0}, "loss_chunk_size must be at least 1, got 0"),
    ],
)
def test_a_weight_out_of_range_is_an_error(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(DistillationConfig, tmp_path, **change)


def test_configuration_is_parsed_from_the_command_line_and_round_trips(tmp_path):
    parser = HfArgumentParser(DistillationConfig)
    line = f"--output_dir {tmp_path} --alpha 0.5 --temperature 2 --loss_chunk_size 7 --use_cpu --report_to none"
    (config,) = parser.parse_args_into_dataclasses(line.split())
    assert (config.alpha, config.beta, config.temperature, config.loss_chunk_size) == (0.5, 0.8, 2.0, 7)
    (again,) = parser.parse_json_file(write_json(config, tmp_path / "arguments.json"), allow_extra_keys=True)
    assert again.to_dict() | {"logging_dir": None} == config.to_dict() | {"logging_dir": None}


def write_json(config, path):
    path.write_text(config.to_json_string())
    return path


def test_every_field_has_a_help_text():
    own = set(DistillationConfig.__dataclass_fields__) - set(TrainingArguments.__dataclass_fields__)
    assert {"alpha", "beta", "temperature", "divergence", "hidden_weight", "non_finite_loss"} <= own
    assert all(DistillationConfig.__dataclass_fields__[name].metadata["help"] for name in own)


def test_a_student_in_half_precision_is_an_error(tmp_path):
    args = make_arguments(DistillationConfig, tmp_path, beta=0.0)
    with pytest.raises(ValueError, match=r"float16.*load it with dtype=torch.float32"):
        DistillationTrainer(make_model(1).half(), args=args, train_dataset=make_blocks())


def test_training_in_mixed_precision_leaves_the_teacher_as_it_is(tmp_path):
    teacher = make_model(2).eval()
    input_ids = torch.arange(12)[None]
    before = teacher(input_ids).logits
    args = make_arguments(DistillationConfig, tmp_path, bf16=True)
    DistillationTrainer(make_model(1), teacher, args=args, train_dataset=make_blocks()).train()
    assert torch.equal(teacher(input_ids).logits, before)
