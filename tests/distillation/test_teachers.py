"""Teachers of every kind: of another vocabulary, architecture or precision, sharded, or stored."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from fixtures_distillation import (
    LENGTH,
    VOCABULARY,
    collate,
    logged_numbers,
    make_arguments,
    make_blocks,
    make_model,
    make_trainer,
)
from fixtures_losses import loss_of_trainers
from fixtures_processes import on_two_processes
from small_models import make_other
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

from hf_whittle import DistillationConfig, DistillationTrainer, GPTNeoXSuperNetForCausalLM, SubnetConfig
from hf_whittle.data import DocumentCollator
from hf_whittle.distillation.store.reader import LogitStore
from hf_whittle.distillation.store.writer import store_targets
from hf_whittle.distillation.teacher import load_teacher
from hf_whittle.errors import StoreError, VocabularyError, WeightsError
from hf_whittle.evaluation import cross_entropy, evaluating
from hf_whittle.fingerprints import model_fingerprint
from hf_whittle.models.heads import output_layer

SHARDED = Path(__file__).with_name("sharded_training.py")


def tokenizer(size=VOCABULARY):
    words = {f"token{i}": i for i in range(size - 1)} | {"[UNK]": size - 1}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="[UNK]")))


class Capped(GPTNeoXForCausalLM):
    """A model that caps the logits of its output matrix."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 3 * torch.tanh(outputs.logits / 3)
        return outputs


def capped(seed):
    plain = make_model(seed, layers=2)
    model = Capped(plain.config)
    model.load_state_dict(plain.state_dict())
    return model


def with_tokenizers(folder, student_size, teacher_size, **changes):
    plain = make_trainer(folder, **changes)
    return DistillationTrainer(
        model=make_model(1, vocab_size=student_size),
        teacher_model=make_model(2, layers=3, vocab_size=teacher_size),
        args=plain.args,
        train_dataset=make_blocks(),
        data_collator=plain.data_collator,
        processing_class=tokenizer(),
        teacher_tokenizer=tokenizer(),
    )


@pytest.mark.parametrize(
    "sizes", [(VOCABULARY, VOCABULARY + 14), (VOCABULARY + 14, VOCABULARY)], ids=["teacher", "student"]
)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_vocabularies_that_are_padded_differently_train(tmp_path, sizes, divergence):
    name = "kl" if divergence == "forward_kl" else divergence
    logs = []
    for loss in ("fused", "naive"):
        trainer = with_tokenizers(tmp_path, *sizes, divergence=divergence, max_steps=1)
        with loss_of_trainers(loss):
            trainer.train()
        logs.append(next(row[name] for row in trainer.state.log_history if name in row))
    assert logs[0] == pytest.approx(logs[1], rel=1e-4) and logs[0] > 0


def test_padding_of_the_teacher_does_not_change_the_student(tmp_path):
    """Entries that belong to no token are dropped, whatever their logits."""
    teacher, padded_teacher = make_model(2, layers=3), make_model(2, layers=3, vocab_size=VOCABULARY + 14)
    weights = teacher.state_dict()
    for name in ("gpt_neox.embed_in.weight", "lm_head.weight"):
        weights[name] = torch.cat([weights[name], torch.full((14, 16), 5.0)])
    padded_teacher.load_state_dict(weights)
    trainers = []
    for one in (teacher, padded_teacher):
        plain = make_trainer(tmp_path)
        trainers.append(
            DistillationTrainer(
                make_model(1),
                one,
                plain.args,
                tokenizer(),
                plain.data_collator,
                processing_class=tokenizer(),
                train_dataset=make_blocks(),
            )
        )
        trainers[-1].train()
    for name, value in trainers[0].model.state_dict().items():
        torch.testing.assert_close(trainers[1].model.state_dict()[name], value, rtol=0, atol=1e-6)


def test_other_sizes_without_tokenizers_are_an_error(tmp_path):
    with pytest.raises(
        VocabularyError, match=r"has 64 entries, the student's 50; if that is padding, or the student has"
    ):
        make_trainer(tmp_path, teacher=make_model(2, vocab_size=64))


def test_a_teacher_of_another_architecture(tmp_path):
    trainers = [make_trainer(tmp_path, teacher=make_other(VOCABULARY)) for _ in range(2)]
    for trainer, loss in zip(trainers, ("fused", "naive"), strict=True):
        with loss_of_trainers(loss):
            trainer.train()
    for name, value in trainers[0].model.state_dict().items():
        torch.testing.assert_close(trainers[1].model.state_dict()[name], value, rtol=0, atol=1e-5)
    weights = 2 * make_other(VOCABULARY).num_parameters(exclude_embeddings=True)
    own = make_trainer(tmp_path, beta=0.0).floating_point_ops({"input_ids": torch.zeros(1, LENGTH)})
    assert trainers[0].floating_point_ops({"input_ids": torch.zeros(1, LENGTH)}) == own + LENGTH * weights


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_logits_that_are_not_those_of_the_output_matrix_are_taken_as_they_are(tmp_path, which):
    assert output_layer(capped(1)) is None and output_layer(make_model(1)) is not None
    trained = []
    for loss in ("fused", "naive"):
        student, teacher = (
            capped(seed) if name == which else make_model(seed) for seed, name in ((1, "student"), (2, "teacher"))
        )
        trainer = make_trainer(tmp_path, student, teacher)
        with loss_of_trainers(loss):
            trainer.train()
        trained.append(trainer.model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=0, atol=1e-5)
    first = next(row for row in trainer.state.log_history if "kl" in row)
    plain = make_trainer(tmp_path, max_steps=1, teacher=make_model(2))
    plain.train()
    assert first["kl"] != pytest.approx(next(row["kl"] for row in plain.state.log_history if "kl" in row), rel=1e-3)


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, '{"dtype": "bfloat16"}'], ids=["dict", "json"])
def test_teacher_is_loaded_with_the_arguments_given(tmp_path, options):
    make_model(2, layers=3).save_pretrained(tmp_path / "teacher")
    trainer = make_trainer(tmp_path, teacher=str(tmp_path / "teacher"), teacher_model_init_kwargs=options)
    assert trainer.teacher.dtype == torch.bfloat16
    trainer.train()
    whole = make_trainer(tmp_path, teacher=str(tmp_path / "teacher"))
    whole.train()
    kl = [[row["kl"] for row in one.state.log_history if "kl" in row] for one in (trainer, whole)]
    assert kl[0] == pytest.approx(kl[1], rel=0.05) and kl[0] != kl[1]


# bitsandbytes packs 4-bit layers on CPUs with AVX512-BF16, 32 outputs and 64 inputs at a time
SIZES = {"packed": {"hidden_size": 64, "intermediate_size": 64}, "too small to be packed": {}}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("bits, near", [(8, 0.05), (4, 0.2)])
def test_quantized_teacher(tmp_path, bits, near, sizes):
    make_model(2, layers=3, **sizes).save_pretrained(tmp_path / "teacher")
    options = {f"load_in_{bits}bit": True}
    trainer = make_trainer(tmp_path, teacher=str(tmp_path / "teacher"), teacher_model_init_kwargs=options)
    assert trainer.teacher.is_quantized
    trainer.train()
    whole = make_trainer(tmp_path, teacher=str(tmp_path / "teacher"))
    whole.train()
    kl = [[row["kl"] for row in one.state.log_history if "kl" in row] for one in (trainer, whole)]
    assert kl[0] == pytest.approx(kl[1], rel=near) and kl[0] != kl[1]


# Teachers that share weights with their student


def tied_to(teacher):
    student = make_model(1)
    student.gpt_neox.embed_in.weight = teacher.gpt_neox.embed_in.weight
    return student


def test_teacher_that_is_the_student_is_an_error(tmp_path):
    model = make_model(2)
    with pytest.raises(ValueError, match=r"the teacher is the student and would change .* copy.deepcopy\(model\)"):
        make_trainer(tmp_path, model, model)


def test_teacher_that_shares_weights_with_the_student_is_an_error(tmp_path):
    teacher = make_model(2)
    with pytest.raises(ValueError, match=r"the teacher shares gpt_neox.embed_in.weight with the student and would"):
        make_trainer(tmp_path, tied_to(teacher), teacher)


def test_teacher_that_got_the_adapters_of_its_student_is_an_error(tmp_path):
    from peft import LoraConfig

    model = make_model(2)
    arguments = make_arguments(DistillationConfig, tmp_path)
    with pytest.raises(ValueError, match=r"the teacher shares .*lora.* with the student and would change"):
        DistillationTrainer(model, model, arguments, peft_config=LoraConfig(task_type="CAUSAL_LM"))


def test_super_network_that_teaches_its_active_slice_is_an_error_that_names_the_other_trainer(tmp_path):
    model = make_model(2)
    supernet = GPTNeoXSuperNetForCausalLM(model.config)
    full = SubnetConfig.full(model.config)
    with (
        supernet.active_subnet(full.with_layers([0])),
        pytest.raises(ValueError, match="To distil a super-network into its own subnets, use SupernetTrainer"),
    ):
        make_trainer(tmp_path, supernet, supernet)


def test_frozen_weights_may_be_shared_with_the_teacher(tmp_path):
    teacher = make_model(2)
    student = tied_to(teacher)
    teacher.gpt_neox.embed_in.requires_grad_(False)
    before = teacher.gpt_neox.embed_in.weight.clone()
    make_trainer(tmp_path, student, teacher).train()
    assert torch.equal(before, teacher.gpt_neox.embed_in.weight)


def test_super_network_that_was_a_teacher_can_be_trained(tmp_path):
    supernet = GPTNeoXSuperNetForCausalLM(make_model(2, layers=3).config).train()
    make_trainer(tmp_path, teacher=supernet).train()
    assert supernet.training and all(parameter.requires_grad for parameter in supernet.parameters())


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_offloaded_teacher_is_the_one_in_memory(tmp_path, kind):
    from accelerate import cpu_offload, disk_offload

    whole, device = make_model(2, layers=3), torch.device("cpu")
    teacher = copy.deepcopy(whole)
    if kind == "memory":
        cpu_offload(teacher, execution_device=device)
    else:
        disk_offload(teacher, tmp_path / "offloaded", execution_device=device)
    trainers = [make_trainer(tmp_path, teacher=one) for one in (teacher, whole)]
    for trainer in trainers:
        trainer.train()
    kl = [[row["kl"] for row in one.state.log_history if "kl" in row] for one in trainers]
    assert kl[0] == pytest.approx(kl[1], rel=1e-4)


def test_offloaded_student_is_an_error(tmp_path):
    from accelerate import cpu_offload

    student = cpu_offload(make_model(1), execution_device=torch.device("cpu"))
    with pytest.raises(WeightsError, match="embed_in is not in memory but offloaded; load the model without a device_"):
        make_trainer(tmp_path, student)


@pytest.mark.parametrize("bits", [4, 8])
def test_fingerprint_of_a_quantized_teacher_is_the_same_once_it_ran(tmp_path, bits):
    make_model(2, layers=3, **SIZES["packed"]).save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(str(tmp_path / "teacher"), {f"load_in_{bits}bit": True})
    before = model_fingerprint(teacher)
    cross_entropy(teacher, make_blocks(uneven=False)[0]["input_ids"][None])  # which may pack weights
    assert model_fingerprint(teacher) == before


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_teacher_in_4_bits_is_stored(tmp_path, sizes):
    make_model(2, layers=3, **sizes).save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(str(tmp_path / "teacher"), {"load_in_4bit": True})
    blocks = torch.stack([block["input_ids"] for block in make_blocks(uneven=False)])
    store = store_targets(teacher, blocks, tmp_path / "store", kind="top-k", k=VOCABULARY, temperature=1.0)
    targets = store.targets(blocks)
    found = torch.zeros(targets.ids.shape).scatter_(1, targets.ids, targets.probabilities.float())
    with evaluating(teacher), torch.no_grad():
        expected = teacher(blocks).logits.float().softmax(-1).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=1e-3)


@pytest.mark.slow
def test_sharded_teacher_on_two_processes_is_the_whole_one(tmp_path):
    on_two_processes(SHARDED, "teacher", tmp_path)
    one = make_trainer(tmp_path)
    one.train()
    two = torch.load(tmp_path / "trained.pt")
    torch.testing.assert_close(two.pop("logs"), logged_numbers(one), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two, dict(one.model.state_dict()), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_sharded_student_on_two_processes_has_the_gradients_of_the_whole_one(tmp_path):
    on_two_processes(SHARDED, "student", tmp_path)
    one = make_trainer(tmp_path)
    one.model.train()
    one.compute_loss(one.model, collate(make_blocks(uneven=False)[:4])).backward()
    gradients = torch.load(tmp_path / "gradients.pt")
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
def test_zero3_on_two_processes_is_one_process(tmp_path):
    make_model(seed=1).save_pretrained(tmp_path / "student")
    make_model(seed=2, layers=3).save_pretrained(tmp_path / "teacher")
    on_two_processes(SHARDED, "zero3", tmp_path, DS_ACCELERATOR="cpu")
    one = make_trainer(tmp_path)
    one.train()
    torch.testing.assert_close(torch.load(tmp_path / "logs.pt"), logged_numbers(one), rtol=1e-4, atol=1e-4)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").state_dict()
    torch.testing.assert_close(saved, one.model.state_dict(), rtol=0, atol=1e-5)


def blocks_without_labels():
    return [{"input_ids": block["input_ids"], "labels": block["input_ids"]} for block in make_blocks(uneven=False)]


def stored(folder, **options):
    blocks = torch.stack([block["input_ids"] for block in make_blocks(uneven=False)])
    return store_targets(make_model(2, layers=3), blocks, folder, progress=False, **options)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_training_from_a_store_of_everything_is_training_with_the_teacher(tmp_path, accumulated):
    store = stored(tmp_path / "store", kind="top-k", k=VOCABULARY)
    changes = {"per_device_train_batch_size": 4 // accumulated, "gradient_accumulation_steps": accumulated}
    online, offline = (
        make_trainer(
            tmp_path, teacher=teacher, blocks=blocks_without_labels(), train_sampling_strategy="random", **changes
        )
        for teacher in (None, store)
    )
    online.train()
    offline.train()
    for name, value in online.model.state_dict().items():
        torch.testing.assert_close(offline.model.state_dict()[name], value, rtol=0, atol=2e-3)
    kl = [[row["kl"] for row in one.state.log_history if "kl" in row] for one in (online, offline)]
    assert kl[1] == pytest.approx(kl[0], rel=0.01)


def test_training_from_samples_is_resumed_exactly(tmp_path):
    store = stored(tmp_path / "store", kind="sample")

    def trainer(folder, **changes):
        return make_trainer(tmp_path / folder, teacher=store, blocks=blocks_without_labels(), max_steps=4, **changes)

    whole = trainer("whole")
    whole.train()
    trainer("part", save_strategy="steps", save_steps=2).train()
    again = trainer("part")
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=0, atol=1e-6)


def test_store_knows_no_documents_apart(tmp_path):
    trainer = make_trainer(tmp_path, teacher=stored(tmp_path / "store", kind="sample"), blocks=blocks_without_labels())
    trainer.data_collator = DocumentCollator(0)
    with pytest.raises(ValueError, match="read each block as one document"):
        trainer.train()


def test_store_of_another_temperature_is_an_error(tmp_path):
    store = LogitStore(stored(tmp_path / "store", kind="sample").folder)
    with pytest.raises(StoreError, match=r"temperature"):
        make_trainer(tmp_path, teacher=store, temperature=2.0)


def test_blocks_that_are_not_in_the_store_are_an_error(tmp_path):
    trainer = make_trainer(tmp_path, teacher=stored(tmp_path / "store", kind="sample"), blocks=blocks_without_labels())
    trainer.train_dataset[0]["input_ids"] = trainer.train_dataset[0]["input_ids"].roll(1)
    with pytest.raises(StoreError, match=r"not in the store"):
        trainer.train()


@pytest.mark.parametrize(
    "changes, message", [({"divergence": "l2"}, "l2 needs"), ({"hidden_weight": 1.0}, "no hidden states")]
)
def test_what_a_store_cannot_give_is_an_error(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, make_model(1), stored(tmp_path / "store", kind="sample"), **changes)
