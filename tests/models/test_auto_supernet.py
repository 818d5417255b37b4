"""AutoSuperNetForCausalLM picks the class by the checkpoint, and says so where there is none for it."""

import pickle
import re

import pytest
import torch
from small_models import TINY, draw_subnet, settings_of
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, StableLmConfig, StableLmForCausalLM

import hf_whittle
from hf_whittle import AutoSuperNetForCausalLM, SubnetConfig, extract_subnet
from hf_whittle.architectures.registry import ARCHITECTURES, get_architecture
from hf_whittle.errors import ArchitectureError
from hf_whittle.models.supernets import supernet_class

CLOSE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def logits(model, input_ids):
    return model(input_ids=input_ids, use_cache=False).logits


@pytest.fixture(scope="module")
def saved(each_supernet, tmp_path_factory):
    """A folder with a stock model of each architecture."""
    folder = tmp_path_factory.mktemp("saved") / each_supernet.config.model_type
    each_supernet.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """A folder with a model whose architecture has no table."""
    folder = tmp_path_factory.mktemp("unknown")
    StableLmForCausalLM(StableLmConfig(**{**TINY, "num_hidden_layers": 1})).save_pretrained(folder)
    return folder


def test_checkpoint_is_loaded_in_the_class_of_its_architecture(saved, each_supernet, input_ids):
    model_type = each_supernet.config.model_type
    loaded, info = AutoSuperNetForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert type(loaded) is supernet_class(model_type) and not any(info.values())
    name = f"{get_architecture(model_type).prefix}SuperNetForCausalLM"
    assert type(loaded).__name__ == name and getattr(hf_whittle, name) is type(loaded) and name in dir(hf_whittle)
    torch.testing.assert_close(
        logits(loaded, input_ids), logits(AutoModelForCausalLM.from_pretrained(saved), input_ids)
    )


def test_arguments_are_passed_on(saved, tmp_path):
    config = AutoConfig.from_pretrained(saved)
    config.use_cache = False
    by_config = AutoSuperNetForCausalLM.from_pretrained(saved, config=config, dtype="bfloat16")
    assert by_config.config.use_cache is False and by_config.dtype == torch.bfloat16
    eager = AutoSuperNetForCausalLM.from_pretrained(
        saved.parent, subfolder=saved.name, attn_implementation="eager", local_files_only=True
    )
    assert eager.config._attn_implementation == "eager"
    made = AutoSuperNetForCausalLM.from_config(config, dtype=torch.float16, attn_implementation="eager")
    assert made.dtype == torch.float16 and made.config._attn_implementation == "eager"
    with pytest.raises(OSError):
        AutoSuperNetForCausalLM.from_pretrained("someone/none", local_files_only=True, cache_dir=tmp_path)


def test_class_and_super_network_are_pickled(each_supernet, input_ids):
    assert pickle.loads(pickle.dumps(type(each_supernet))) is type(each_supernet)
    again, subnet = pickle.loads(pickle.dumps(each_supernet)), draw_subnet(each_supernet.config, 5, names_optional=True)
    with again.active_subnet(subnet), each_supernet.active_subnet(subnet):
        torch.testing.assert_close(logits(again, input_ids), logits(each_supernet, input_ids), **CLOSE)


def test_every_name_is_imported_with_a_star():
    names = {}
    exec("from hf_whittle import *", names)
    assert hf_whittle.__all__ == sorted(names.keys() & set(hf_whittle.__all__))
    prefixes = {get_architecture(model_type).prefix for model_type in ARCHITECTURES}
    assert {f"{prefix}SuperNetForCausalLM" for prefix in prefixes} < names.keys()


def test_auto_class_is_not_made_by_its_constructor():
    with pytest.raises(TypeError, match="made by from_pretrained or from_config"):
        AutoSuperNetForCausalLM()


def test_architecture_without_a_table_is_an_error_that_lists_those_with_one(unknown):
    message = f"the architecture of {unknown} is 'stablelm'; hf_whittle knows {', '.join(ARCHITECTURES)}: use"
    loaders = [AutoSuperNetForCausalLM, hf_whittle.LlamaSuperNetForCausalLM, hf_whittle.GPTNeoXSuperNetForCausalLM]
    for loader in loaders:
        with pytest.raises(ArchitectureError, match=f"{re.escape(message)}.* as docs/adding-an-arch"):
            loader.from_pretrained(unknown)
    with pytest.raises(ArchitectureError, match=f"{re.escape(message)}.* as docs/adding-an-arch"):
        extract_subnet(unknown, SubnetConfig(8, 1, 1, 8), progress=False)
    with pytest.raises(ArchitectureError, match="the architecture is 'stablelm'; hf_whittle knows"):
        AutoSuperNetForCausalLM.from_config(AutoConfig.from_pretrained(unknown))


@pytest.mark.parametrize("source", ["folder", "config"])
def test_checkpoint_that_also_reads_images_is_an_error_that_names_its_language_model(source, tmp_path):
    config = Gemma3Config()
    config.save_pretrained(tmp_path)
    loads = {
        "folder": [AutoSuperNetForCausalLM.from_pretrained, hf_whittle.Gemma3SuperNetForCausalLM.from_pretrained],
        "config": [AutoSuperNetForCausalLM.from_config, SubnetConfig.full],
    }[source]
    if source == "folder":
        loads.append(lambda folder: extract_subnet(folder, SubnetConfig(8, 1, 1, 8), progress=False))
    for load in loads:
        with pytest.raises(ArchitectureError, match=r"is 'gemma3'; .*: its language model is a gemma3_text; save that"):
            load(tmp_path if source == "folder" else config)


def test_class_of_another_architecture_is_an_error_that_names_the_auto_class(saved, each_supernet):
    own = each_supernet.config.model_type
    other = supernet_class("qwen3" if own == "llama" else "llama")
    message = f"is a {own}, and {other.__name__} loads {other.config_class.model_type}; use AutoSuperNetForCausalLM"
    for arguments in ({}, {"config": AutoConfig.from_pretrained(saved)}, {"config": str(saved)}):
        with pytest.raises(ArchitectureError, match=message):
            other.from_pretrained(saved, **arguments)


def test_student_that_no_stock_class_holds_is_no_super_network(each_supernet, tmp_path):
    subnet = draw_subnet(each_supernet.config, 1, names_optional=True)
    student = extract_subnet(each_supernet, subnet, format="whittle")
    student.save_pretrained(tmp_path)
    for loader in (AutoSuperNetForCausalLM, type(each_supernet)):
        for arguments in ({}, {"config": student.config}):
            with pytest.raises(ArchitectureError, match=r"is a student .*\(whittle_.*; use the model that it was extr"):
                loader.from_pretrained(tmp_path, **arguments)
    with pytest.raises(ArchitectureError, match="no super-network is made of one"):
        AutoSuperNetForCausalLM.from_config(student.config)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("opt", {"word_embed_proj_dim": 16}),
        ("opt", {"_remove_final_layer_norm": True}),
        ("opt", {"layer_norm_elementwise_affine": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"add_cross_attention": True}),
    ],
)
def test_setting_without_a_table_is_an_error_before_a_super_network_is_made(model_type, changes):
    config = AutoConfig.for_model(**settings_of(model_type, **changes), model_type=model_type)
    with pytest.raises(ArchitectureError, match=r"has no table.*: use a"):
        AutoSuperNetForCausalLM.from_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3"])
def test_compiled_super_network_runs_the_subnet_that_is_active(make_stock, make_supernet, input_ids, model_type):
    supernet = make_supernet(make_stock(model_type=model_type, num_hidden_layers=2))
    subnet = draw_subnet(supernet.config, 0, names_optional=True)
    torch._dynamo.reset()
    compiled = torch.compile(supernet, backend="eager")
    with supernet.active_subnet(subnet):
        of_subnet = logits(compiled, input_ids)
    torch.testing.assert_close(of_subnet, logits(extract_subnet(supernet, subnet), input_ids), **CLOSE)
    torch.testing.assert_close(logits(compiled, input_ids), logits(supernet, input_ids), **CLOSE)
    torch._dynamo.reset()
