"""Students recovered with adapters: peft inside DistillationTrainer."""

import pytest
import torch
from fixtures_distillation import make_blocks, make_model, make_trainer
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from small_models import draw_subnet
from transformers import AutoModelForCausalLM

from hf_whittle import DistillationTrainer, SubnetConfig, extract_subnet
from hf_whittle.architectures.registry import get_architecture


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("name", ["stock", "whittle"])
def test_adapters_of_each_architecture_are_on_all_matrices_of_layers_and_merge(each_supernet, tmp_path, name):
    config = each_supernet.config
    full = SubnetConfig.full(config)
    subnet = full.with_layers([0, 2]) if name == "stock" else draw_subnet(config, 3)
    student = extract_subnet(each_supernet, subnet)
    trainer = adapted(tmp_path, student, teacher=each_supernet, learning_rate=0.01)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    table = get_architecture(config).weights
    matrices = {w.module.rpartition(".")[2] for w in table if w.in_layer and w.is_matmul}
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained} == matrices
    layers = range(len(subnet.layers))
    assert len(trained) == 2 * len([w for w in table if w.in_layer and w.is_matmul for _ in layers])
    trainer.train()
    logits = probe(trainer.model)
    torch.testing.assert_close(probe(trainer.merge_adapters()), logits, rtol=1e-3, atol=1e-3)


def adapted(folder, student=None, config=None, teacher=None, **changes):
    plain = make_trainer(folder, **changes)
    torch.manual_seed(0)
    return DistillationTrainer(
        model=student or make_model(seed=1),
        teacher_model=teacher or make_model(seed=2, layers=3),
        args=plain.args,
        train_dataset=make_blocks(),
        eval_dataset=make_blocks(uneven=False)[:4],
        data_collator=plain.data_collator,
        peft_config=config or LoraConfig(r=2, lora_alpha=4),
    )


def probe(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.stack([block["input_ids"] for block in make_blocks()[:3]])).logits


def heterogeneous():
    return extract_subnet(make_model(seed=2, layers=3), SubnetConfig(16, (0, 2), (1, 2), (20, 32)))


@pytest.mark.parametrize("make_student", [lambda: make_model(seed=1), heterogeneous], ids=["stock", "heterogeneous"])
def test_merged_student_equals_the_unmerged_and_is_stock_again(tmp_path, make_student):
    student = make_student()
    names = set(student.state_dict())
    trainer = adapted(tmp_path, student)
    trainer.train()
    logits = probe(trainer.model)
    assert not torch.allclose(logits, probe(make_student()), atol=1e-3)
    merged = trainer.merge_adapters()
    assert type(merged) is type(student) and set(merged.state_dict()) == names
    torch.testing.assert_close(probe(merged), logits, rtol=1e-4, atol=1e-4)
    trainer.save_model(tmp_path / "merged")
    torch.testing.assert_close(
        probe(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits, rtol=1e-4, atol=1e-4
    )


def test_adapters_are_on_all_matrices_of_the_layers_and_nothing_else_trains(tmp_path):
    trainer = adapted(tmp_path)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)
    matrices = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained} == matrices
    before = {name: value.clone() for name, value in trainer.model.state_dict().items() if "lora_" not in name}
    trainer.train()
    assert all(torch.equal(trainer.model.state_dict()[name], value) for name, value in before.items())


def test_named_targets_are_kept(tmp_path):
    trainer = adapted(tmp_path, config=LoraConfig(r=2, target_modules=["query_key_value"]))
    assert {
        name.split(".lora_")[0].rsplit(".", 1)[1] for name, p in trainer.model.named_parameters() if p.requires_grad
    } == {"query_key_value"}


def test_checkpoint_holds_the_adapters_alone_and_loads_on_the_student(tmp_path):
    trainer = adapted(tmp_path, save_strategy="steps", save_steps=3)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-3"
    assert not (checkpoint / "model.safetensors").exists()
    assert all("lora_" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    loaded = PeftModel.from_pretrained(make_model(seed=1), checkpoint)
    torch.testing.assert_close(probe(loaded), probe(trainer.model))


@pytest.mark.slow
def test_resumed_training_is_the_uninterrupted_one(tmp_path):
    whole = adapted(tmp_path / "whole", max_steps=4)
    whole.train()
    half = adapted(tmp_path / "half", max_steps=4, save_strategy="steps", save_steps=2)
    half.train()
    again = adapted(tmp_path / "half", max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    torch.testing.assert_close(again.model.state_dict(), whole.model.state_dict(), rtol=0, atol=1e-6)


def test_gradient_checkpointing_reaches_the_adapters(tmp_path):
    plain, checkpointed = (adapted(tmp_path, gradient_checkpointing=on) for on in (False, True))
    plain.train()
    checkpointed.train()
    torch.testing.assert_close(probe(checkpointed.model), probe(plain.model), rtol=1e-4, atol=1e-4)


def test_adapters_on_the_output_matrix_take_part_in_the_loss(tmp_path):
    config = LoraConfig(r=2, target_modules=["query_key_value", "lm_head"])
    trainer = adapted(tmp_path, config=config)
    trainer.train()
    assert trainer._plain_head[1] is None
    changed = [p for name, p in trainer.model.named_parameters() if "lm_head.lora_B" in name]
    assert changed and all(p.any() for p in changed)


def test_backward_of_frozen_weights_is_not_counted(tmp_path):
    inputs = {"input_ids": torch.zeros(2, 12, dtype=torch.long)}
    whole, frozen = make_trainer(tmp_path), adapted(tmp_path)
    assert frozen.floating_point_ops(inputs) < whole.floating_point_ops(inputs)


def test_merged_student_trains_on(tmp_path):
    trainer = adapted(tmp_path)
    trainer.train()
    before = {name: weight.clone() for name, weight in trainer.merge_adapters().state_dict().items()}
    trainer.train()
    assert all(not torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())


def test_configuration_given_is_left_as_it_is(tmp_path):
    config = LoraConfig(r=2)
    adapted(tmp_path, config=config)
    assert config.target_modules is None


def test_merging_without_adapters_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no adapters to merge; train them with peft_config="):
        make_trainer(tmp_path).merge_adapters()
