"""Names of transformers mean what `hf_whittle.compat` takes them for."""

import concurrent.futures
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import snapshot_download
from relying import relies_on
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    DynamicCache,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Trainer,
    TrainingArguments,
)

from hf_whittle.compat.transformers import (
    add_renamings,
    attention_kernel,
    check_quantizer,
    commit_hash,
    commit_of_file,
    find_file,
    from_config,
    has_loaded_weights,
    has_stock_loss,
    layer_configs,
    load_renamed_as,
    no_init_weights,
    push_in_progress,
    quantization_config,
    relative_imports,
    reporting_callbacks,
    set_attention_kernel,
    set_commit_hash,
    set_layer_index,
    sorted_checkpoints,
    template_names,
    tied_weights,
    use_one_gpu,
)


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
        assert attention_kernel(config) == "eager"
        set_attention_kernel(config, "compat_test")
        assert attention_kernel(config) == "compat_test"
        with pytest.raises(RanError):
            GPTNeoXForCausalLM(config)(torch.tensor([[1]]))


def test_commit_hash_stays_with_a_configuration_and_out_of_its_file(tiny_config, tmp_path):
    config = GPTNeoXConfig(**tiny_config.to_dict())
    with relies_on("transformers", "PreTrainedConfig._commit_hash"):
        assert commit_hash(config) is None
        set_commit_hash(config, "1234")
        assert commit_hash(GPTNeoXForCausalLM(config).config) == "1234"
        config.save_pretrained(tmp_path)
        assert "_commit_hash" not in (tmp_path / "config.json").read_text()
        assert commit_hash(AutoConfig.from_pretrained(tmp_path)) is None


def test_layer_configs_hold_the_sizes_of_each_layer(tiny_config):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8, "head_dim": 4}
    with relies_on("transformers", "PreTrainedConfig.is_heterogeneous and per_layer_config"):
        uneven = AutoConfig.for_model("whittle_gpt_neox", **sizes, per_layer_config={1: {"intermediate_size": 12}})
        assert [layer.intermediate_size for layer in layer_configs(uneven)] == [8, 12]
        assert [layer.num_attention_heads for layer in layer_configs(uneven)] == [1, 1]
        assert layer_configs(tiny_config) is None


def test_from_config_takes_a_dtype_and_an_attention_kernel(tiny_config):
    with relies_on("transformers", "PreTrainedModel._from_config"):
        model = from_config(GPTNeoXForCausalLM, tiny_config, dtype=torch.bfloat16, attn_implementation="eager")
        assert model.dtype == torch.bfloat16 and model.config._attn_implementation == "eager"


def test_no_init_weights_draws_nothing_and_fills_buffers(tiny_config, stock):
    with relies_on("transformers", "initialization.no_init_weights"):
        before = torch.get_rng_state()
        with no_init_weights():
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
        load_renamed_as("CompatTestForCausalLM", "GPTNeoXForCausalLM")
        assert not missing()
        loaded = CompatTestForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded.lm_head.weight, stock.lm_head.weight)


def test_renamings_are_written_and_those_of_the_file_are_kept(make_stock, tmp_path):
    with relies_on("transformers", "PreTrainedModel._weight_conversions and core_model_loading.WeightRenaming"):
        model = make_stock()
        for folder in ("built", "loaded"):
            add_renamings(model, {r"^embed_out\.": "lm_head."})
            model.save_pretrained(tmp_path / folder)
            written = load_file(tmp_path / folder / "model.safetensors")
            assert "embed_out.weight" in written and "lm_head.weight" not in written
            model = GPTNeoXForCausalLM.from_pretrained(tmp_path / folder)


def test_loaded_weights_differ_from_a_loaded_configuration(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    with relies_on("transformers", "Parameter._is_hf_initialized"):
        assert has_loaded_weights(GPTNeoXForCausalLM.from_pretrained(tmp_path))
        built = GPTNeoXForCausalLM(AutoConfig.from_pretrained(tmp_path))
        assert built.name_or_path == str(tmp_path)
        assert not has_loaded_weights(built)


def test_matrices_that_differ_in_a_file_are_not_tied(make_stock, tmp_path):
    tied = make_stock(tie_word_embeddings=True)
    embedding = tied.get_input_embeddings().weight.detach()
    with relies_on("transformers", "PreTrainedModel.all_tied_weights_keys"):
        for shift in (0, 1):
            folder = tmp_path / str(shift)
            save_with(tied, folder, lambda weights, by=shift: {**weights, "lm_head.weight": embedding + by})
            assert tied_weights(GPTNeoXForCausalLM.from_pretrained(folder)) == (set() if shift else {"lm_head.weight"})


def test_quantizers_are_made_and_checked_by_their_settings(monkeypatch):
    with relies_on("transformers", "quantizers.AutoQuantizationConfig and AutoHfQuantizer"):
        config = quantization_config({"load_in_4bit": True})
        assert config.load_in_4bit and config.quant_method == "bitsandbytes"
        check_quantizer(config, None)
        monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
        with pytest.raises(ImportError, match="bitsandbytes"):
            check_quantizer(config, None)


def test_a_layer_writes_the_cache_at_its_index(make_stock, input_ids):
    model = make_stock()

    def keys():
        cache = DynamicCache(config=model.config)
        model(input_ids, past_key_values=cache, use_cache=True)
        return [layer.keys for layer in cache.layers]

    with relies_on("transformers", "GPTNeoXAttention.layer_idx"), torch.no_grad():
        before = keys()
        for index, layer in enumerate(reversed(model.gpt_neox.layers)):
            set_layer_index(layer, index)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(keys(), reversed(before), strict=True))


def test_a_file_is_found_missing_or_out_of_reach(repository, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with relies_on("transformers", "cached_file(_raise_exceptions_for_missing_entries)"):
        for source in (repository.name, str(tmp_path)):
            assert Path(find_file(source, "config.json")).read_text() == "{}"
            assert find_file(source, "nothing.json") is None
        with pytest.raises(OSError):
            find_file("me/nowhere", "config.json")


def test_the_cache_knows_the_commit_of_a_file(repository, tmp_path):
    with relies_on("transformers", "utils.extract_commit_hash"):
        assert commit_of_file(find_file(repository.name, "config.json")) == repository.commit
        assert commit_of_file(str(tmp_path / "config.json")) is None
        assert commit_of_file(None) is None


@pytest.mark.parametrize("local_files_only", [False, True])
def test_templates_are_listed_on_the_hub_and_in_the_cache(repository, local_files_only):
    snapshot_download(repository.name)
    with relies_on("transformers", "utils.list_repo_templates"):
        names = template_names(repository.name, local_files_only=local_files_only)
        assert [Path(name).stem for name in names] == ["short"]


def test_relative_imports_are_followed(tmp_path):
    for name, text in {"a": "from .b import x", "b": "from .c import x", "c": "x = 1", "d": ""}.items():
        (tmp_path / f"{name}.py").write_text(text)
    with relies_on("transformers", "dynamic_module_utils.get_relative_import_files"):
        assert {Path(path).name for path in relative_imports(tmp_path / "a.py")} == {"b.py", "c.py"}


def test_checkpoints_are_sorted_by_step_or_time(tmp_path):
    for age, step in enumerate((10, 2, 9)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        os.utime(tmp_path / f"checkpoint-{step}", (age, age))
    with relies_on("transformers", "trainer_utils.sort_checkpoints"):
        steps = [Path(path).name for path in sorted_checkpoints(str(tmp_path))]
        assert steps == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
        times = [Path(path).name for path in sorted_checkpoints(str(tmp_path), by_time=True)]
        assert times == ["checkpoint-10", "checkpoint-2", "checkpoint-9"]


def test_trainer_waits_for_a_push():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        job = pool.submit(time.sleep, 0.2)
        with relies_on("transformers", "utils.PushInProgress and Trainer._finish_current_push"):
            push = push_in_progress(job)
            assert not push.is_done() and push.jobs == [job]
            Trainer._finish_current_push(SimpleNamespace(push_in_progress=push))
            assert job.done() and push.is_done()


def test_arguments_train_on_one_gpu_of_several(tmp_path):
    with relies_on("transformers", "TrainingArguments._n_gpu"):
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        args._n_gpu = 2
        assert args.n_gpu == 2 and args.train_batch_size == 2 * args.per_device_train_batch_size
        use_one_gpu(args)
        assert args.n_gpu == 1 and args.train_batch_size == args.per_device_train_batch_size


def test_trackers_have_callbacks_by_name(tmp_path):
    with relies_on("transformers", "integrations.get_reporting_integration_callbacks"):
        assert reporting_callbacks([]) == []
        pytest.importorskip("tensorboard", reason="pip install tensorboard")
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="tensorboard")
        (callback,) = reporting_callbacks(args.report_to)
        of_trainer = Trainer(nn.Linear(1, 1), args).callback_handler.callbacks
        assert type(callback) in map(type, of_trainer)


def test_stock_models_have_the_stock_loss_until_they_are_given_another(make_stock):
    model = make_stock()
    assert has_stock_loss(model) and has_stock_loss(nn.Linear(1, 1))
    model.loss_function = lambda **_: torch.zeros(())
    assert not has_stock_loss(model)
