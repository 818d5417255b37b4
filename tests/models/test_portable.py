"""Saved files have the names and settings of stock files, however they were saved."""

import json

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from small_models import LLAMA3
from small_models import STRETCHED as WHOLE_STRETCHED
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    GPTNeoXSuperNetForCausalLM,
    SubnetConfig,
    SupernetConfig,
    SupernetTrainer,
    WhittleGPTNeoXForCausalLM,
    extract_subnet,
    push_subnet_to_hub,
    save_student,
)
from hf_whittle.architectures.registry import get_architecture
from hf_whittle.cli import main
from hf_whittle.files.tokenizer import make_tokenizer_portable, save_tokenizer
from hf_whittle.fingerprints import model_fingerprint
from hf_whittle.models.portable import make_portable, oldest_transformers
from hf_whittle.models.students.whittle_configuration import OLDEST_TRANSFORMERS

STOCK = SubnetConfig(24, [0, 2, 4], 3, 40)
STOCK_OF_STOCK = SubnetConfig(16, 2, 2, 20)
UNEVEN = SubnetConfig(24, [0, 2], [[1, 3], [2]], [40, 30])
FORMATS = {"stock": STOCK, "padded": UNEVEN, "whittle": UNEVEN}
IN_FILES, IN_MODELS = "embed_out.weight", "lm_head.weight"


def names_in(folder):
    """Names of all tensors in a folder, which its index must name, too."""
    found = [name for path in folder.glob("*.safetensors") for name in load_file(path)]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        assert json.loads(index.read_text())["weight_map"].keys() == set(found)
    return set(found)


def rename(folder, before=IN_FILES, after=IN_MODELS):
    """Give the output matrix in a folder's file another name."""
    tensors = load_file(folder / "model.safetensors")
    tensors[after] = tensors.pop(before)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(model, input_ids):
    with torch.no_grad():
        return model.eval()(input_ids=input_ids).logits


def assert_as_stock(folder, model, input_ids):
    """Assert that a folder has the names that a stock model writes, and holds this model."""
    assert IN_FILES in names_in(folder) and IN_MODELS not in names_in(folder)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    torch.testing.assert_close(logits(loaded, input_ids), logits(model, input_ids), rtol=0, atol=1e-5)


@pytest.fixture(params=FORMATS.items(), ids=FORMATS)
def student(request, supernet):
    format, subnet = request.param
    return extract_subnet(supernet, subnet, format=format)


@pytest.fixture
def loaded_student(student, tmp_path):
    """A student loaded from a file in which the output matrix has its name in the model."""
    student.save_pretrained(tmp_path / "before")
    return AutoModelForCausalLM.from_pretrained(rename(tmp_path / "before"))


ARGUMENTS = {DistillationTrainer: DistillationConfig, SupernetTrainer: SupernetConfig, Trainer: TrainingArguments}


def trainer_of(model, folder, kind=DistillationTrainer, **options):
    """A trainer of two steps that saves after each."""
    settings = {"max_steps": 2, "save_steps": 1, "learning_rate": 0.01, "per_device_train_batch_size": 2}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    settings |= {"beta": 0.0} if kind is DistillationTrainer else {}
    blocks = torch.randint(1, 97, (4, 12), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": block, "labels": block} for block in blocks]
    args = ARGUMENTS[kind](output_dir=str(folder), **settings)
    return kind(model=model, args=args, train_dataset=rows, **options)


# Names of weights


def test_table_has_the_name_that_the_stock_class_writes(make_stock, tmp_path):
    GPTNeoXForCausalLM(make_stock().config).save_pretrained(tmp_path)
    table = get_architecture("gpt_neox").weights
    layers = range(make_stock().config.num_hidden_layers)
    expected = {(one.file_name or one.name).format(layer=layer) for one in table for layer in layers}
    assert names_in(tmp_path) == expected


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"], ids=["one file", "shards"])
def test_student_from_memory(student, input_ids, tmp_path, max_shard_size):
    student.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert_as_stock(tmp_path, student, input_ids)


@pytest.mark.parametrize("source", ["memory", "disk", "disk with the name in models"])
@pytest.mark.parametrize("format", FORMATS)
def test_extracted_folder(supernet, input_ids, tmp_path, source, format):
    subnet = FORMATS[format]
    if source != "memory":
        supernet.save_pretrained(tmp_path / "supernet")
        if source != "disk":
            rename(tmp_path / "supernet")
    model = supernet if source == "memory" else tmp_path / "supernet"
    folder = extract_subnet(model, subnet, tmp_path / "student", format=format, progress=False)
    assert_as_stock(folder, extract_subnet(supernet, subnet, format=format), input_ids)


def test_super_network_whatever_the_name_it_was_loaded_by(stock, input_ids, tmp_path):
    stock.save_pretrained(tmp_path / "before")
    for name in ("new", "old"):
        if name == "new":
            rename(tmp_path / "before")
        else:
            rename(tmp_path / "before", IN_MODELS, IN_FILES)
        loaded = GPTNeoXSuperNetForCausalLM.from_pretrained(tmp_path / "before")
        loaded.save_pretrained(tmp_path / name, max_shard_size="20KB")
        assert_as_stock(tmp_path / name, stock, input_ids)


def test_trainer_checkpoints_and_saved_models(loaded_student, input_ids, tmp_path):
    trainer = trainer_of(loaded_student, tmp_path / "out")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    trainer._save(str(tmp_path / "gathered"), state_dict=trainer.model.state_dict())
    for folder in (tmp_path / "out" / "checkpoint-2", tmp_path / "saved", tmp_path / "gathered"):
        assert_as_stock(folder, trainer.model, input_ids)
    assert names_in(tmp_path / "out" / "checkpoint-1") == names_in(tmp_path / "saved")


def test_model_that_the_trainer_makes_anew(loaded_student, input_ids, tmp_path):
    trainer = trainer_of(None, tmp_path / "out", model_init=lambda: loaded_student)
    trainer.train()
    assert_as_stock(tmp_path / "out" / "checkpoint-2", trainer.model, input_ids)


def test_trainer_of_a_super_network(stock, input_ids, tmp_path):
    stock.save_pretrained(tmp_path / "before")
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(rename(tmp_path / "before"))
    trainer = trainer_of(supernet, tmp_path / "out", SupernetTrainer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "out" / "checkpoint-2", tmp_path / "saved"):
        assert_as_stock(folder, trainer.model, input_ids)


def test_merged_adapters(loaded_student, input_ids, tmp_path):
    trainer = trainer_of(loaded_student, tmp_path / "out", peft_config=LoraConfig(r=2))
    trainer.train()
    merged = trainer.merge_adapters()
    trainer.save_model(str(tmp_path / "saved"))
    merged.save_pretrained(tmp_path / "merged")
    for folder in (tmp_path / "saved", tmp_path / "merged"):
        assert_as_stock(folder, merged, input_ids)


def test_student_saved_with_what_is_known_of_it(loaded_student, input_ids, tmp_path):
    save_student(loaded_student, tmp_path / "saved", max_shard_size="10KB")
    assert_as_stock(tmp_path / "saved", loaded_student, input_ids)


def test_published_student(loaded_student, input_ids, hub, tmp_path):
    push_subnet_to_hub(loaded_student, "me/student")
    for name, content in hub.files("me/student").items():
        (tmp_path / "published").mkdir(exist_ok=True)
        (tmp_path / "published" / name).write_bytes(content)
    assert_as_stock(tmp_path / "published", loaded_student, input_ids)


def test_extract_command(teacher_folder, input_ids, tmp_path):
    STOCK.save_pretrained(tmp_path)
    main(["extract", str(teacher_folder), "--subnet", str(tmp_path), "--output-dir", str(tmp_path / "student")])
    assert_as_stock(tmp_path / "student", extract_subnet(teacher_folder, STOCK, progress=False), input_ids)


SHARDED = """
import sys, torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
from hf_whittle.models.portable import make_portable

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
make_portable(model)
fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
whole = {name: weight.full_tensor() for name, weight in model.state_dict().items()}
model.save_pretrained(sys.argv[1] + "/gathered", state_dict=whole)
print(type(model).__name__)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_weights_gathered_from_shards(loaded_student, input_ids, tmp_path, run_warm):
    name = type(loaded_student).__name__
    script = "import hf_whittle\n" + SHARDED
    assert run_warm(script, tmp_path / "before") == f"FSDP{name}\n"
    assert_as_stock(tmp_path / "before" / "gathered", loaded_student, input_ids)


# Names that are read


@pytest.mark.slow_after(6)
@pytest.mark.parametrize("name", [IN_FILES, IN_MODELS])
@pytest.mark.parametrize("kind", [DistillationTrainer, Trainer])
def test_training_resumes_under_either_name(student, tmp_path, kind, name):
    trainer = trainer_of(student, tmp_path / "out", kind)
    trainer.train()
    expected = {key: weight.clone() for key, weight in student.state_dict().items()}
    if name == IN_MODELS:
        rename(tmp_path / "out" / "checkpoint-2")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    trainer._load_from_checkpoint(str(tmp_path / "out" / "checkpoint-2"))
    assert all(torch.equal(student.state_dict()[key], weight) for key, weight in expected.items())


@pytest.mark.parametrize("name", [IN_FILES, IN_MODELS])
def test_best_model_is_loaded_under_either_name(student, tmp_path, name):
    trainer = trainer_of(student, tmp_path / "out")
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    if name == IN_MODELS:
        rename(checkpoint)
    trainer.state.best_model_checkpoint = str(checkpoint)
    trainer._load_best_model()
    best = AutoModelForCausalLM.from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(weight, best[key]) for key, weight in student.state_dict().items())


def test_nested_model_reads_both_names(student):
    outer = torch.nn.ModuleDict({"inner": student})
    weights = {name: weight.clone() for name, weight in outer.state_dict().items()}
    weights["inner." + IN_FILES] = weights.pop("inner." + IN_MODELS) + 1
    outer.load_state_dict(weights)
    assert torch.equal(student.lm_head.weight, weights["inner." + IN_FILES])


# Configurations


def configuration(model, folder):
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def test_configuration_has_the_keys_that_the_stock_class_writes(supernet, student, tmp_path):
    ours = configuration(student, tmp_path / "ours")
    stock = configuration(GPTNeoXForCausalLM(supernet.config), tmp_path / "stock")
    own = (
        {"auto_map", "head_dim", "rotary_head_dim", "rotary_pairs"}
        if isinstance(student, WhittleGPTNeoXForCausalLM)
        else set()
    )
    assert ours.keys() - {"per_layer_config"} == stock.keys() | own
    assert ("per_layer_config" in ours) == bool(own)
    assert ours["architectures"] == [type(student).__name__]


def test_super_network_is_saved_as_the_stock_model_it_is(supernet, tmp_path):
    ours = configuration(supernet, tmp_path / "ours")
    assert ours == configuration(GPTNeoXForCausalLM(supernet.config), tmp_path / "stock")
    assert ours["architectures"] == ["GPTNeoXForCausalLM"]
    with supernet.active_subnet(STOCK):
        assert configuration(supernet, tmp_path / "active") == ours


def test_super_network_is_uploaded_as_the_stock_model_it_is(supernet, hub, tmp_path):
    ours = configuration(supernet, tmp_path / "ours")
    supernet.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="me/saved")
    supernet.push_to_hub("me/pushed")
    for name in ("me/saved", "me/pushed"):
        assert json.loads(hub.files(name)["config.json"]) == ours


ROTARY = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5}
IN_VERSION_4 = {"rotary_pct": 0.5, "rotary_emb_base": 5000.0}


@pytest.mark.parametrize("format", FORMATS)
def test_rotary_settings_are_also_those_of_version_4_where_its_defaults_are_others(make_stock, tmp_path, format):
    student = extract_subnet(make_stock(rope_parameters=ROTARY), FORMATS[format], format=format)
    found = configuration(student, tmp_path / "student")
    expected = {} if format == "whittle" else IN_VERSION_4
    assert {name: found[name] for name in IN_VERSION_4 if name in found} == expected
    assert AutoConfig.from_pretrained(tmp_path / "student").rope_parameters == ROTARY == found["rope_parameters"]


def test_rotary_settings_are_written_again_by_who_reads_and_trains_the_student(make_stock, tmp_path):
    extract_subnet(make_stock(rope_parameters=ROTARY), STOCK).save_pretrained(tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    trainer_of(student, tmp_path / "out").save_model(str(tmp_path / "saved"))
    found = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {name: found[name] for name in IN_VERSION_4} == IN_VERSION_4
    student.config.rope_parameters = {**ROTARY, "partial_rotary_factor": 0.25}
    make_portable(student)
    found = configuration(student, tmp_path / "changed")
    assert "rotary_pct" not in found and found["rotary_emb_base"] == 5000.0


STRETCHED = {**ROTARY, "rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}


def test_version_4_stops_at_a_stretched_rotation_that_newer_ones_read(make_stock, tmp_path):
    student = extract_subnet(make_stock(rope_parameters=STRETCHED), STOCK)
    assert configuration(student, tmp_path)["rope_scaling"] == {}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.rope_parameters == STRETCHED == extract_subnet(again, STOCK_OF_STOCK).config.rope_parameters


def test_oldest_version_is_told_by_what_the_configuration_says(make_stock, tmp_path):
    def oldest(rotary, format="stock"):
        student = extract_subnet(make_stock(rope_parameters=rotary), FORMATS[format], format=format)
        return oldest_transformers(configuration(student, tmp_path / "student"))

    assert oldest(None) == oldest(ROTARY) == oldest(ROTARY, "padded") == "4.49"
    assert oldest(ROTARY, "whittle") == OLDEST_TRANSFORMERS
    assert oldest(STRETCHED) == "5.0"
    assert oldest_transformers({"model_type": "gpt_neox", "rope_parameters": ROTARY}) == "5.0"
    assert oldest_transformers({"model_type": "t5"}) is None


@pytest.mark.parametrize(
    ("model_type", "changes", "oldest"),
    [
        ("llama", {}, "4.49"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, "4.49"),
        ("llama", {"rope_parameters": LLAMA3}, "4.49"),
        ("mistral", {"rope_parameters": {**YARN, "rope_theta": 500.0}}, "5.0"),
        ("cohere", {"rope_parameters": WHOLE_STRETCHED}, "4.49"),
        ("qwen2", {"use_sliding_window": False}, "4.49"),
        ("qwen2", {}, "4.53"),
        ("qwen3", {"use_sliding_window": False}, "4.51"),
        ("qwen3", {}, "4.53"),
        ("qwen3", {"use_sliding_window": False, "rope_parameters": YARN}, "5.0"),
        ("gemma3_text", {}, "4.53"),
        ("gemma3_text", {"rope_parameters": {"full_attention": WHOLE_STRETCHED}}, "4.53"),
        ("gemma3_text", {"rope_parameters": {"full_attention": YARN}}, "5.0"),
        ("gemma3_text", {"rope_parameters": {"sliding_attention": WHOLE_STRETCHED}}, "5.0"),
        ("gpt2", {}, "4.49"),
        ("opt", {}, "4.49"),
    ],
)
def test_oldest_version_of_each_architecture(make_stock, tmp_path, model_type, changes, oldest):
    model = make_stock(model_type=model_type, **changes)
    found = configuration(extract_subnet(model, SubnetConfig.full(model.config)), tmp_path)
    assert oldest_transformers(found) == oldest
    if oldest < "5":  # without the names that version 4 reads, it would rotate otherwise, or not notice
        without = {name: value for name, value in found.items() if name not in ("rope_theta", "rope_scaling")}
        assert (oldest_transformers(without) == "5.0") == (without != found and model_type != "gemma3_text")


def test_rotary_settings_do_not_make_another_model_of_it(make_stock, tmp_path):
    student = extract_subnet(make_stock(rope_parameters=ROTARY), STOCK)
    student.save_pretrained(tmp_path)
    assert model_fingerprint(student) == model_fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path))


# Tokenizers


def test_tokenizer_is_one_that_version_4_knows(teacher_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    save_tokenizer(tokenizer, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in settings
    assert settings["additional_special_tokens"] == ["<|user|>", "<|end|>"]
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(tokenizer) and again.get_vocab() == tokenizer.get_vocab()
    assert again.extra_special_tokens == tokenizer.extra_special_tokens
    text = "The quick<|user|> brown fox<|end|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("written", [b'{"tokenizer_class":   "GPTNeoXTokenizer"}', b"{", b"[1]", b"{}"])
def test_tokenizer_that_version_4_knows_stays_byte_for_byte(tmp_path, written):
    (tmp_path / "tokenizer_config.json").write_bytes(written)
    make_tokenizer_portable(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_bytes() == written


def test_folder_without_a_tokenizer_stays_empty(tmp_path):
    make_tokenizer_portable(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [DistillationTrainer, SupernetTrainer])
def test_trainers_save_such_a_tokenizer(make_stock, make_supernet, teacher_folder, tmp_path, kind):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    supernet = make_supernet(make_stock(vocab_size=len(tokenizer)))
    model = supernet if kind is SupernetTrainer else extract_subnet(supernet, STOCK)
    trainer_of(model, tmp_path / "out", kind, processing_class=tokenizer).save_model(str(tmp_path / "saved"))
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_extraction_from_disk_writes_such_a_tokenizer(teacher_folder, tmp_path):
    before = json.loads((teacher_folder / "tokenizer_config.json").read_text())
    extract_subnet(teacher_folder, STOCK, tmp_path / "student", progress=False)
    after = json.loads((tmp_path / "student" / "tokenizer_config.json").read_text())
    assert after == {**before, "tokenizer_class": "PreTrainedTokenizerFast"}


# Modeling code that travels with a student


@pytest.mark.slow
def test_version_that_cannot_hold_a_student_is_told_what_it_needs(supernet, tmp_path, run_python):
    extract_subnet(supernet, UNEVEN).save_pretrained(tmp_path)
    script = """
        import sys, transformers
        transformers.__version__ = "4.57.6"
        sys.modules["hf_whittle"] = None
        from transformers import AutoModelForCausalLM
        try:
            AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
        except ImportError as error:
            print(error)
    """
    assert run_python(script, tmp_path) == (
        f"this model, whose layers may differ, needs transformers {OLDEST_TRANSFORMERS} or newer, got 4.57.6; install "
        "it with pip install --upgrade transformers\n"
    )
