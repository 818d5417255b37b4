"""Private names of other libraries exist and mean what `hf_whittle.compat` takes them for.

A failure names the library, the name, and the version that it was last seen in.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import importlib
import importlib.metadata
import inspect
import logging
import os
import pkgutil
import re
import time
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes
import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from datasets import Dataset, IterableDataset
from huggingface_hub import create_repo, snapshot_download, upload_file
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoTokenizer,
    DynamicCache,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Trainer,
    TrainingArguments,
)

import hf_whittle
from hf_whittle import compat

ROOT = Path(__file__).parents[1]
PACKAGE = Path(hf_whittle.__file__).parent
TRAVELING = {path.stem for path in (PACKAGE / "models" / "students").glob("*whittle*.py")}
STOCK_MODULES = re.compile(r"transformers\.models\.(\w+)\.modeling_\1")
OWN_MARKS = {"_reads_file_names"}
"""Attributes of this package that it sets on models of other libraries."""
PUBLIC_MODULES = {
    "accelerate", "accelerate.utils", "datasets", "datasets.config", "datasets.exceptions", "datasets.fingerprint",
    "huggingface_hub", "huggingface_hub.constants", "huggingface_hub.dataclasses", "huggingface_hub.errors",
    "huggingface_hub.repocard", "huggingface_hub.utils", "lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks",
    "peft", "torch", "torch.autograd.function",
    "torch.distributed.tensor", "torch.nn.functional", "torch.optim.lr_scheduler", "torch.utils.hooks",
    "transformers",
    "transformers.tokenization_utils_base", "transformers.trainer", "transformers.trainer_callback",
    "transformers.trainer_utils", "transformers.utils",
}  # fmt: skip


@contextlib.contextmanager
def relies_on(library, name):
    """Report whatever fails inside the block as a change of a name."""
    try:
        yield
    except Exception as error:
        installed, seen = importlib.metadata.version(library), compat.SEEN_IN[library]
        pytest.fail(
            f"{name} of {library} {installed} is not what hf_whittle/compat.py takes it for, which it was in {seen}: "
            f"{type(error).__name__}: {error}"
        )


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_names_were_looked_up_in_the_versions_that_are_tested():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    tested = {library: pins[library.replace("_", "-")] for library in compat.SEEN_IN}
    assert {library: ".".join(pin.split(".")[:2]) for library, pin in tested.items()} == compat.SEEN_IN


# Names that no function stands for.


@pytest.mark.parametrize("foreign", [*compat.OVERRIDDEN, *compat.TRAVELING], ids=lambda one: f"{one.owner}.{one.name}")
def test_name_is_there_and_takes_its_parameters(foreign):
    with relies_on(foreign.owner.partition(":")[0].partition(".")[0], f"{foreign.owner}.{foreign.name}"):
        owner = pkgutil.resolve_name(foreign.owner)
        stated = {name for base in getattr(owner, "__mro__", ()) for name in vars(base).get("__annotations__", ())}
        assert hasattr(owner, foreign.name) or foreign.name in stated, "it is gone"
        if foreign.parameters:
            found = [name for name in inspect.signature(getattr(owner, foreign.name)).parameters if name != "self"]
            assert tuple(found[: len(foreign.parameters)]) == foreign.parameters


def own_classes():
    for module in pkgutil.walk_packages(hf_whittle.__path__, "hf_whittle."):
        for found in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(found) and found.__module__ == module.name:
                yield found


def test_every_private_method_that_is_overridden_is_listed():
    known = {foreign.name for foreign in (*compat.OVERRIDDEN, *compat.TRAVELING)}
    written = {name for _, tree in sources() for name in defined_names(tree)}  # others are made by metaclasses
    for own in own_classes():
        bases = [base for base in own.__mro__ if base.__module__.partition(".")[0] in compat.SEEN_IN]
        names = filter(is_private, written & vars(own).keys())
        private = {name for name in names if any(name in vars(base) for base in bases)}
        assert private <= known, f"{own.__name__} overrides {private - known}: add a row to compat.OVERRIDDEN"


def sources():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem != "compat":
            yield path.stem, ast.parse(path.read_text())


def defined_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def used_names(tree):
    """Attributes, keywords of calls, and names given to `getattr` and similar functions as strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call):
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)
            if ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
                yield from (each.value for each in node.args if isinstance(each, ast.Constant))


def test_no_private_name_of_a_library_is_used_elsewhere():
    known = {name for foreign in compat.OVERRIDDEN for name in (foreign.name, *foreign.parameters)}
    known |= OWN_MARKS | {name for _, tree in sources() for name in defined_names(tree)}
    traveling = known | {foreign.name for foreign in compat.TRAVELING} | {"_weight_conversions"}
    for module, tree in sources():
        private = {name for name in used_names(tree) if isinstance(name, str) and is_private(name)}
        others = private - (traveling if module in TRAVELING else known)
        assert not others, f"{module} uses {others}: give it a function in compat.py"


def test_only_documented_modules_are_imported_elsewhere():
    traveling = PUBLIC_MODULES | {foreign.owner for foreign in compat.TRAVELING}
    for module, tree in sources():
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        foreign = {name for name in imported if name.partition(".")[0] in compat.SEEN_IN}
        if module in TRAVELING:
            foreign = {name for name in foreign if not STOCK_MODULES.fullmatch(name)}
        others = foreign - (traveling if module in TRAVELING else PUBLIC_MODULES)
        assert not others, f"{module} imports from {others}, which is not documented: give it a function in compat.py"


# transformers: configurations and weights.


def save_with(model, folder, renamed):
    """Save a model, with some tensors under other names or of other values."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(renamed(load_file(path)), path, {"format": "pt"})


def test_attention_kernel_is_the_one_a_model_runs(tiny_config):
    class RanError(Exception):
        pass

    def kernel(*args, **kwargs):
        raise RanError

    AttentionInterface.register("compat_test", kernel)
    config = GPTNeoXConfig(**{**tiny_config.to_dict(), "attn_implementation": "eager"})
    with relies_on("transformers", "PreTrainedConfig._attn_implementation"):
        assert compat.attention_kernel(config) == "eager"
        compat.set_attention_kernel(config, "compat_test")
        assert compat.attention_kernel(config) == "compat_test"
        with pytest.raises(RanError):
            GPTNeoXForCausalLM(config)(torch.tensor([[1]]))


def test_commit_hash_stays_with_a_configuration_and_out_of_its_file(tiny_config, tmp_path):
    config = GPTNeoXConfig(**tiny_config.to_dict())
    with relies_on("transformers", "PreTrainedConfig._commit_hash"):
        assert compat.commit_hash(config) is None
        compat.set_commit_hash(config, "1234")
        assert compat.commit_hash(GPTNeoXForCausalLM(config).config) == "1234"
        config.save_pretrained(tmp_path)
        assert "_commit_hash" not in (tmp_path / "config.json").read_text()
        assert compat.commit_hash(AutoConfig.from_pretrained(tmp_path)) is None


def test_layer_configs_hold_the_sizes_of_each_layer(tiny_config):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8, "head_dim": 4}
    with relies_on("transformers", "PreTrainedConfig.is_heterogeneous and per_layer_config"):
        uneven = AutoConfig.for_model("whittle_gpt_neox", **sizes, per_layer_config={1: {"intermediate_size": 12}})
        assert [layer.intermediate_size for layer in compat.layer_configs(uneven)] == [8, 12]
        assert [layer.num_attention_heads for layer in compat.layer_configs(uneven)] == [1, 1]
        assert compat.layer_configs(tiny_config) is None


def test_from_config_takes_a_dtype_and_an_attention_kernel(tiny_config):
    with relies_on("transformers", "PreTrainedModel._from_config"):
        model = compat.from_config(GPTNeoXForCausalLM, tiny_config, dtype=torch.bfloat16, attn_implementation="eager")
        assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"


def test_no_init_weights_draws_nothing_and_fills_buffers(tiny_config, stock):
    with relies_on("transformers", "initialization.no_init_weights"):
        before = torch.get_rng_state()
        with compat.no_init_weights():
            model = GPTNeoXForCausalLM(tiny_config)
        assert torch.equal(torch.get_rng_state(), before), "it drew weights"
        buffers = dict(model.named_buffers())
        assert buffers and all(torch.equal(value, buffers[name]) for name, value in stock.named_buffers())
        GPTNeoXForCausalLM(tiny_config)
        assert not torch.equal(torch.get_rng_state(), before), "nothing is drawn outside the block either"


def test_a_class_loads_old_names_once_it_is_registered(stock, tmp_path):
    class CompatTestForCausalLM(GPTNeoXForCausalLM):
        pass

    save_with(stock, tmp_path, lambda weights: {name.replace("lm_head", "embed_out"): w for name, w in weights.items()})

    def missing():
        return CompatTestForCausalLM.from_pretrained(tmp_path, output_loading_info=True)[1]["missing_keys"]

    with relies_on("transformers", "conversion_mapping"):
        assert missing() == {"lm_head.weight"}, "load_renamed_as is not needed any more"
        compat.load_renamed_as("CompatTestForCausalLM", "GPTNeoXForCausalLM")
        assert not missing()
        loaded = CompatTestForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded.lm_head.weight, stock.lm_head.weight)


def test_renamings_are_written_and_those_of_the_file_are_kept(make_stock, tmp_path):
    with relies_on("transformers", "PreTrainedModel._weight_conversions and core_model_loading.WeightRenaming"):
        model = make_stock()
        for folder in ("built", "loaded"):
            compat.add_renamings(model, {r"^embed_out\.": "lm_head."})
            model.save_pretrained(tmp_path / folder)
            written = load_file(tmp_path / folder / "model.safetensors")
            assert "embed_out.weight" in written and "lm_head.weight" not in written
            model = GPTNeoXForCausalLM.from_pretrained(tmp_path / folder)


def test_loaded_weights_differ_from_a_loaded_configuration(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    with relies_on("transformers", "Parameter._is_hf_initialized"):
        assert compat.has_loaded_weights(GPTNeoXForCausalLM.from_pretrained(tmp_path))
        built = GPTNeoXForCausalLM(AutoConfig.from_pretrained(tmp_path))
        assert built.name_or_path == str(tmp_path)
        assert not compat.has_loaded_weights(built)


def test_matrices_that_differ_in_a_file_are_not_tied(make_stock, tmp_path):
    tied = make_stock(tie_word_embeddings=True)
    embedding = tied.get_input_embeddings().weight.detach()
    with relies_on("transformers", "PreTrainedModel.all_tied_weights_keys"):
        for shift in (0, 1):
            folder = tmp_path / str(shift)
            save_with(tied, folder, lambda weights, by=shift: {**weights, "lm_head.weight": embedding + by})
            assert compat.tied_weights(GPTNeoXForCausalLM.from_pretrained(folder)) == (
                set() if shift else {"lm_head.weight"}
            )


def test_quantizers_are_made_and_checked_by_their_settings(monkeypatch):
    with relies_on("transformers", "quantizers.AutoQuantizationConfig and AutoHfQuantizer"):
        config = compat.quantization_config({"load_in_4bit": True})
        assert config.load_in_4bit and config.quant_method == "bitsandbytes"
        compat.check_quantizer(config, None)
        monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
        with pytest.raises(ImportError, match="bitsandbytes"):
            compat.check_quantizer(config, None)


def test_a_layer_writes_the_cache_at_its_index(make_stock, input_ids):
    model = make_stock()

    def keys():
        cache = DynamicCache(config=model.config)
        model(input_ids, past_key_values=cache, use_cache=True)
        return [layer.keys for layer in cache.layers]

    with relies_on("transformers", "GPTNeoXAttention.layer_idx"), torch.no_grad():
        before = keys()
        for index, layer in enumerate(reversed(model.gpt_neox.layers)):
            compat.set_layer_index(layer, index)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(keys(), reversed(before), strict=True))


# transformers and huggingface_hub: files.


@pytest.fixture
def repository(hub):
    """A repository of three small files, and its commit."""
    create_repo("me/files")
    for name in ("config.json", "weights.bin", "additional_chat_templates/short.jinja"):
        commit = upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="me/files")
    return SimpleNamespace(name="me/files", commit=commit.oid)


def test_a_file_is_found_missing_or_out_of_reach(repository, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with relies_on("transformers", "cached_file(_raise_exceptions_for_missing_entries)"):
        for source in (repository.name, str(tmp_path)):
            assert Path(compat.find_file(source, "config.json")).read_text() == "{}"
            assert compat.find_file(source, "nothing.json") is None
        with pytest.raises(OSError):
            compat.find_file("me/nowhere", "config.json")


def test_the_cache_knows_the_commit_of_a_file(repository, tmp_path):
    with relies_on("transformers", "utils.extract_commit_hash"):
        assert compat.commit_of_file(compat.find_file(repository.name, "config.json")) == repository.commit
        assert compat.commit_of_file(str(tmp_path / "config.json")) is None
        assert compat.commit_of_file(None) is None


@pytest.mark.parametrize("local_files_only", [False, True])
def test_templates_are_listed_on_the_hub_and_in_the_cache(repository, local_files_only):
    snapshot_download(repository.name)
    with relies_on("transformers", "utils.list_repo_templates"):
        names = compat.template_names(repository.name, local_files_only=local_files_only)
        assert [Path(name).stem for name in names] == ["short"]


def test_relative_imports_are_followed(tmp_path):
    for name, text in {"a": "from .b import x", "b": "from .c import x", "c": "x = 1", "d": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    with relies_on("transformers", "dynamic_module_utils.get_relative_import_files"):
        assert {Path(path).name for path in compat.relative_imports(tmp_path / "a.py")} == {"b.py", "c.py"}


def test_signatures_are_printed_by_the_known_loggers(repository, hub, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    caplog.set_level(logging.INFO)
    hub.fail("PUT", "^/upload/")
    upload_file(path_or_fileobj=b"weights", path_in_repo="new.bin", repo_id=repository.name)
    with relies_on("huggingface_hub", "the names of loggers"):
        printed = {record.name for record in caplog.records if "signature=" in record.getMessage()}
        assert len(printed) == 2 and printed < set(compat.HUB_LOGGERS)


def test_a_lost_commit_names_its_hub():
    facts = {"commit_message": "", "commit_description": "", "oid": "1"}
    with relies_on("huggingface_hub", "CommitInfo(_endpoint)"):
        found = compat.commit_info("http://127.0.0.1:1", commit_url="http://127.0.0.1:1/me/x/commit/1", **facts)
        assert (found.repo_url.endpoint, found.repo_url.repo_id) == ("http://127.0.0.1:1", "me/x")


# transformers: Trainer.


def test_checkpoints_are_sorted_by_step_or_time(tmp_path):
    for age, step in enumerate((10, 2, 9)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (age, age))
    with relies_on("transformers", "trainer_utils.sort_checkpoints"):
        steps = [Path(path).name for path in compat.sorted_checkpoints(str(tmp_path))]
        assert steps == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
        times = [Path(path).name for path in compat.sorted_checkpoints(str(tmp_path), by_time=True)]
        assert times == ["checkpoint-10", "checkpoint-2", "checkpoint-9"]


def test_trainer_waits_for_a_push():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        job = pool.submit(time.sleep, 0.2)
        with relies_on("transformers", "utils.PushInProgress and Trainer._finish_current_push"):
            push = compat.push_in_progress(job)
            assert not push.is_done() and push.jobs == [job]
            Trainer._finish_current_push(SimpleNamespace(push_in_progress=push))
            assert job.done() and push.is_done()


# datasets.


def test_fingerprint_decides_what_is_cached():
    def derived(text):
        documents = Dataset.from_dict({"text": [text]})
        compat.set_dataset_fingerprint(documents, "0123456789abcdef")
        return documents, compat.dataset_fingerprint(documents.select_columns("text"))

    with relies_on("datasets", "Dataset._fingerprint"):
        (first, of_first), (_, of_second) = derived("a"), derived("b")
        assert compat.dataset_fingerprint(first) == "0123456789abcdef"
        assert of_first == of_second != "0123456789abcdef"


def test_streamed_columns_are_read_off_and_no_row_is_lost():
    rows = [{"text": "a"}, {"text": "b"}]
    streamed = IterableDataset.from_generator(lambda: iter(rows))
    with relies_on("datasets", "IterableDataset._resolve_features"):
        assert streamed.column_names is None, "with_features is not needed any more"
        known = compat.with_features(streamed)
        assert known.column_names == ["text"] and list(known) == rows


# accelerate, torch, peft, bitsandbytes. Names of DeepSpeed: tests/distillation/sharded_training.py.


def test_offloaded_module_names_its_device():
    device = torch.device("cpu", 0)
    with relies_on("accelerate", "Module._hf_hook.execution_device"):
        assert compat.execution_device(nn.Linear(1, 1)) == "cpu"
        assert compat.execution_device(add_hook_to_module(nn.Linear(1, 1), AlignDevicesHook(device))) is device


def test_a_teacher_is_sharded_without_an_optimizer(run_python, tmp_path):
    script = """
        import sys
        import torch
        from accelerate import Accelerator, FullyShardedDataParallelPlugin
        from torch.distributed.tensor import DTensor
        from hf_whittle import compat

        torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}/store", rank=0, world_size=1)
        accelerator = Accelerator(cpu=True)
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)  # ignored on a CPU
        model = compat.shard_with_fsdp2(accelerator, torch.nn.Linear(4, 4))
        print(all(isinstance(parameter, DTensor) for parameter in model.parameters()))
        torch.distributed.destroy_process_group()
    """
    with relies_on("accelerate", "utils.fsdp_utils.fsdp2_prepare_model"):
        assert run_python(script, tmp_path) == "True\n"


def test_shards_of_fsdp1_bear_marks(run_python, tmp_path):
    script = """
        import sys
        import torch
        from torch.distributed.fsdp import FullyShardedDataParallel
        from hf_whittle import compat

        torch.distributed.init_process_group("gloo", f"file://{sys.argv[1]}/store", rank=0, world_size=1)
        plain = torch.nn.Linear(4, 4)
        for keeps in (True, False):
            cpu = torch.device("cpu")
            sharded = FullyShardedDataParallel(torch.nn.Linear(4, 4), device_id=cpu, use_orig_params=keeps)
            marks = [name for name in compat.SHARD_ATTRIBUTES for p in sharded.parameters() if hasattr(p, name)]
            print(marks, any(hasattr(module, compat.FSDP1_MARK) for module in sharded.modules()))
        print([name for name in (*compat.SHARD_ATTRIBUTES, compat.FSDP1_MARK) if hasattr(plain.weight, name)])
        torch.distributed.destroy_process_group()
    """
    with relies_on("torch", "FlatParameter._is_flat_param and _fsdp_use_orig_params of modules"):
        assert run_python(script, tmp_path) == "[] True\n['_is_flat_param'] True\n[]\n"


def test_models_are_partitioned_by_a_configuration_that_is_not_forgotten():
    name = "transformers.integrations.deepspeed"
    with relies_on("transformers", f"{name}._hf_deepspeed_config_weak_ref and unset_hf_deepspeed_config"):
        deepspeed = importlib.import_module(name)
        settings = type("Settings", (), {"is_zero3": lambda self: True})()  # as training arguments hold it
        deepspeed.set_hf_deepspeed_config(settings)
        with compat.not_partitioned():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
        compat.forget_partitioning()
        assert not deepspeed.is_deepspeed_zero3_enabled()


def test_arguments_train_on_one_gpu_of_several(tmp_path):
    with relies_on("transformers", "TrainingArguments._n_gpu"):
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        args._n_gpu = 2
        assert args.n_gpu == 2 and args.train_batch_size == 2 * args.per_device_train_batch_size
        compat.use_one_gpu(args)
        assert args.n_gpu == 1 and args.train_batch_size == args.per_device_train_batch_size


def test_compiled_model_leads_back_to_its_own():
    model = nn.Linear(2, 2)
    with relies_on("torch", "OptimizedModule._orig_mod"):
        compiled = torch.compile(model, backend="eager")
        assert [name for name, _ in compiled.named_parameters()] == ["_orig_mod.weight", "_orig_mod.bias"]
        assert compat.uncompiled(compiled) is model and compat.uncompiled(model) is model


def test_model_compiled_in_place_is_told():
    model = nn.Linear(2, 2)
    assert not compat.is_compiled_in_place(model)
    with relies_on("torch", "nn.Module._compiled_call_impl"):
        model.compile(backend="eager")
        assert compat.is_compiled_in_place(model)


def test_a_change_in_place_is_counted():
    tensor = torch.zeros(2, requires_grad=True)
    with relies_on("torch", "Tensor._version"):
        before = compat.version_of(tensor)
        tensor.detach().add_(1)
        with torch.no_grad():
            tensor[0] = 3
        assert compat.version_of(tensor) == before + 2


def test_parameters_of_lora_are_the_ones_it_trains(stock):
    with relies_on("peft", "names of LoRA's parameters"):
        adapted = peft.get_peft_model(GPTNeoXForCausalLM(stock.config), peft.LoraConfig(target_modules=["dense"]))
        for name, parameter in adapted.named_parameters():
            assert (compat.LORA_PREFIX in name) == parameter.requires_grad, name


def test_four_bit_weights_are_packed_outside_the_block_alone(monkeypatch):
    class PackedError(Exception):
        pass

    def pack(*args):
        raise PackedError

    with relies_on("bitsandbytes", "Linear4bit.support_avx512bf16_for_cpu"):
        monkeypatch.setattr(bitsandbytes.nn.modules, "_convert_weight_packed_for_cpu", pack)
        layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32).to("cpu").eval()
        assert layer.support_avx512bf16_for_cpu in (False, True)
        layer.support_avx512bf16_for_cpu = True  # as on CPUs that have the instructions
        model, x = nn.Sequential(layer), torch.ones(1, 64)
        with compat.without_packing(model):
            model(x)
        with pytest.raises(PackedError):
            model(x)


def test_trackers_have_callbacks_by_name(tmp_path):
    with relies_on("transformers", "integrations.get_reporting_integration_callbacks"):
        assert compat.reporting_callbacks([]) == []
        pytest.importorskip("tensorboard", reason="pip install tensorboard")
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="tensorboard")
        (callback,) = compat.reporting_callbacks(args.report_to)
        of_trainer = Trainer(nn.Linear(1, 1), args).callback_handler.callbacks
        assert type(callback) in map(type, of_trainer)


# lm-evaluation-harness: requests that processes divide.


def test_requests_to_a_loaded_model_are_divided(stock, teacher_folder):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="pip install 'hf_whittle[eval]'")
    accelerator = SimpleNamespace(process_index=1, num_processes=3, unwrap_model=lambda model: model)
    with relies_on("lm_eval", "HFLM._rank and HFLM._world_size"):
        lm = huggingface.HFLM(stock, tokenizer=AutoTokenizer.from_pretrained(teacher_folder), backend="causal")
        assert (lm.rank, lm.world_size) == (0, 1)
        compat.divide_requests(lm, accelerator)
        assert (lm.rank, lm.world_size, lm.model) == (1, 3, stock)


# torch: tensors without memory.


def test_operations_of_a_rehearsal_are_watched_and_take_no_memory():
    seen = []

    def watch(operation, args, kwargs):
        seen.append(operation.name())
        return operation(*args, **kwargs)

    with relies_on("torch", "FakeTensorMode and TorchDispatchMode"), compat.rehearsing(watch):
        product = torch.zeros(2**20, 2**20).T @ torch.zeros(2**20, 3)  # 4 TB
        assert product.shape == (2**20, 3) and "aten::mm" in seen


def test_arguments_of_a_parser_are_those_that_were_added():
    parser = argparse.ArgumentParser(add_help=False)
    command = parser.add_subparsers().add_parser("run", add_help=False)
    added = [command.add_argument("recipe"), command.add_mutually_exclusive_group().add_argument("--json")]
    assert compat.arguments_of(command) == added
    assert [action.choices for action in compat.arguments_of(parser)] == [{"run": command}]


def test_stock_models_have_the_stock_loss_until_they_are_given_another(make_stock):
    model = make_stock()
    assert compat.has_stock_loss(model) and compat.has_stock_loss(nn.Linear(1, 1))
    model.loss_function = lambda **_: torch.zeros(())
    assert not compat.has_stock_loss(model)
