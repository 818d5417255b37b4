"""A student on disk: its class, and equal outputs wherever it is loaded."""

import json
import logging
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, GPTNeoXForCausalLM

from hf_whittle import SearchSpace, SubnetConfig, WhittleGPTNeoXConfig, WhittleGPTNeoXForCausalLM, extract_subnet
from hf_whittle.errors import CheckpointError
from hf_whittle.subnet import Shape

STOCK_SUBNET = SubnetConfig([*range(3, 27)], [0, 2, 4], [[0, 1, 3], 3, [1, 2, 3]], 40)
CLOSE = {"rtol": 0, "atol": 1e-5}


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


@pytest.mark.parametrize("seed", range(5))
def test_every_stock_only_subnet_becomes_a_stock_model(supernet, draw, seed):
    space = SearchSpace.from_config(supernet.config, "fine", stock_only=True)
    student = extract_subnet(supernet, draw(space, seed))
    assert type(student) is GPTNeoXForCausalLM
    assert student.config.model_type == "gpt_neox"


@pytest.mark.parametrize(
    ("subnet", "model_class"),
    [
        (STOCK_SUBNET, GPTNeoXForCausalLM),
        (SubnetConfig(32, 5, 4, 64), GPTNeoXForCausalLM),
        (SubnetConfig(24, 2, 2, 40), WhittleGPTNeoXForCausalLM),
        (SubnetConfig(24, 2, [3, 2], 40), WhittleGPTNeoXForCausalLM),
        (SubnetConfig(24, 2, 3, [40, 41]), WhittleGPTNeoXForCausalLM),
    ],
)
def test_stock_class_holds_what_it_can(supernet, subnet, model_class):
    assert type(extract_subnet(supernet, subnet)) is model_class


def test_saved_sizes_of_an_uneven_student_are_in_the_schema_of_transformers(supernet, uneven_subnet, tmp_path):
    extract_subnet(supernet, uneven_subnet).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "whittle_gpt_neox"
    assert saved["head_dim"] == 8
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, WhittleGPTNeoXConfig)
    assert Shape.from_config(config) == uneven_subnet.shape


def test_uniform_student_with_heads_of_its_own_width_round_trips(supernet, tmp_path):
    subnet = SubnetConfig(24, 2, 2, 40)
    extract_subnet(supernet, subnet).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.head_dim, config.num_attention_heads, config.hidden_size) == (8, 2, 24)
    assert Shape.from_config(config) == subnet.shape


def test_auto_model_gives_the_backbone_of_a_student(supernet, uneven_subnet, input_ids, tmp_path):
    student = extract_subnet(supernet, uneven_subnet)
    student.save_pretrained(tmp_path)
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path)(input_ids).last_hidden_state
        torch.testing.assert_close(states, student.gpt_neox(input_ids).last_hidden_state, **CLOSE)


@pytest.mark.parametrize("output_matrix", ["embed_out.weight", "lm_head.weight"])
def test_student_loads_whole_under_either_name_of_the_output_matrix(
    supernet, uneven_subnet, input_ids, tmp_path, output_matrix
):
    student = extract_subnet(supernet, uneven_subnet)
    student.config.save_pretrained(tmp_path)
    tensors = student.state_dict()
    tensors[output_matrix] = tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = WhittleGPTNeoXForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    torch.testing.assert_close(logits(loaded, input_ids), logits(student, input_ids), **CLOSE)


# Students in other processes

LOAD = """
{imports}
import torch
for folder, trust in zip(sys.argv[1::2], sys.argv[2::2]):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust == "trust")
    with torch.no_grad():
        torch.save(model(torch.load(folder + "/input_ids.pt")).logits, folder + "/logits.pt")
"""
HF_WHITTLE_FIRST = "import sys, hf_whittle\nfrom transformers import AutoModelForCausalLM"
TRANSFORMERS_FIRST = "import sys\nfrom transformers import AutoModelForCausalLM\nimport hf_whittle"
WITHOUT_HF_WHITTLE = "import sys; sys.modules['hf_whittle'] = None\nfrom transformers import AutoModelForCausalLM"


def _save_with_input(student, input_ids, folder):
    student.save_pretrained(folder)
    torch.save(input_ids, folder / "input_ids.pt")


@pytest.mark.slow
@pytest.mark.parametrize("imports", [HF_WHITTLE_FIRST, TRANSFORMERS_FIRST], ids=["hf_whittle", "transformers"])
def test_uneven_student_loads_without_remote_code_whichever_is_imported_first(
    supernet, uneven_subnet, input_ids, tmp_path, run_python, imports
):
    student = extract_subnet(supernet, uneven_subnet)
    _save_with_input(student, input_ids, tmp_path)
    run_python(LOAD.format(imports=imports), tmp_path, "no trust")
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(student, input_ids), **CLOSE)


@pytest.mark.slow
def test_students_run_where_hf_whittle_is_not_installed(supernet, uneven_subnet, input_ids, tmp_path, run_python):
    uneven, stock = (extract_subnet(supernet, subnet) for subnet in (uneven_subnet, STOCK_SUBNET))
    _save_with_input(uneven, input_ids, tmp_path / "uneven")
    _save_with_input(stock, input_ids, tmp_path / "stock")
    script = LOAD.format(imports=WITHOUT_HF_WHITTLE)
    run_python(script, tmp_path / "stock", "no trust", tmp_path / "uneven", "trust")
    for student, folder in ((uneven, tmp_path / "uneven"), (stock, tmp_path / "stock")):
        torch.testing.assert_close(torch.load(folder / "logits.pt"), logits(student, input_ids), **CLOSE)


def test_saved_stock_student_has_no_code_of_its_own(supernet, tmp_path):
    extract_subnet(supernet, STOCK_SUBNET).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


# The configuration


def test_head_dim_defaults_to_the_stock_one():
    assert WhittleGPTNeoXConfig(hidden_size=32, num_attention_heads=4).head_dim == 8


def test_hidden_size_that_heads_do_not_divide_needs_a_head_dim():
    with pytest.raises(ValueError, match="hidden_size=30 is not a multiple of num_attention_heads=4; give head_dim"):
        WhittleGPTNeoXConfig(hidden_size=30, num_attention_heads=4)


@pytest.mark.parametrize("name", ["num_attention_heads", "intermediate_size"])
def test_layer_without_heads_or_neurons_is_an_error_that_names_it(name):
    with pytest.raises(
        StrictDataclassClassValidationError, match=f"{name} of layer 1 must be a whole number of at least 1, got 0"
    ):
        WhittleGPTNeoXConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8, per_layer_config={1: {name: 0}}
        )


@pytest.mark.parametrize("name", ["head_dim", "skip", "num_heads"])
def test_layer_that_differs_in_anything_else_is_an_error_that_names_it(name):
    with pytest.raises(ValueError, match=f"per_layer_config of layer 1: only .* may differ, got \\['{name}'\\]"):
        WhittleGPTNeoXConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8, per_layer_config={1: {name: 3}}
        )


def test_sizes_that_contradict_the_weights_are_an_error_whose_report_names_them(
    supernet, uneven_subnet, tmp_path, caplog, monkeypatch
):
    extract_subnet(supernet, uneven_subnet).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["per_layer_config"]["1"]["intermediate_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(saved))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        WhittleGPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert re.search(r"layers\.1\.mlp\.dense_h_to_4h\.weight.*\[24, 22\].*\[25, 22\]", caplog.text)
    message = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight has the shape (24, 22), the configuration says (25, 22)"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        extract_subnet(tmp_path, SubnetConfig(20, 3, 1, 20), progress=False)
