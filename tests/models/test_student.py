"""A student on disk: its class, and equal outputs wherever it is loaded."""

import itertools
import json
import logging
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import save_file
from small_models import settings_of
from small_students import student_of, uneven_subnet_of
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GPTNeoXForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hf_whittle import SubnetConfig, WhittleGPTNeoXForCausalLM
from hf_whittle.architectures.registry import ARCHITECTURES, get_architecture
from hf_whittle.errors import CheckpointError
from hf_whittle.models.students import stock_class, student_classes, student_config_class
from hf_whittle.models.students.whittle_modeling import WhittleRotaryEmbedding
from hf_whittle.subnet import Shape

STOCK_SUBNET = SubnetConfig([*range(3, 27)], [0, 2, 4], [[0, 1, 3], 3, [1, 2, 3]], 40)
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


@pytest.mark.parametrize("seed", range(5))
def test_every_stock_only_subnet_becomes_a_stock_model(supernet, draw, seed):
    from hf_whittle import SearchSpace

    space = SearchSpace.from_config(supernet.config, "fine", stock_only=True)
    student = student_of(supernet, draw(space, seed))
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
    assert type(student_of(supernet, subnet)) is model_class


@pytest.fixture(scope="module")
def each_subnet(each_supernet):
    return uneven_subnet_of(each_supernet.config)


@pytest.fixture(scope="module")
def each_student(each_supernet, each_subnet):
    """A student of each architecture, whose layers differ and whose heads lack a rotary pair."""
    return student_of(each_supernet, each_subnet)


def test_student_of_any_architecture_equals_the_active_subnet(each_supernet, each_subnet, each_student, input_ids):
    table = get_architecture(each_supernet.config)
    assert type(each_student) is student_classes(table).causal
    with each_supernet.active_subnet(each_subnet):
        expected = logits(each_supernet, input_ids)
    torch.testing.assert_close(logits(each_student, input_ids), expected, **CLOSE)


def test_a_student_names_the_modules_that_are_sharded_by_classes_it_has(each_student):
    """FSDP2 looks for a module of every class."""
    classes = {type(module).__name__ for module in each_student.modules()}
    assert set(each_student._no_split_modules) <= classes


def test_sizes_of_a_student_are_saved_in_the_schema_of_transformers(each_supernet, each_subnet, each_student, tmp_path):
    each_student.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    table = get_architecture(each_supernet.config)
    assert saved["model_type"] == f"whittle_{table.model_type}"
    assert (saved["head_dim"], saved["rotary_head_dim"]) == (6, 8 if table.rotary else None)
    names = set(each_student.config._names_by_layer())
    assert {name for layer in saved["per_layer_config"].values() for name in layer} == names
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is student_classes(table).config
    assert Shape.from_config(config) == each_subnet.shape.filled(Shape.from_config(each_supernet.config))


def test_uniform_student_with_heads_of_its_own_width_round_trips(supernet, tmp_path):
    subnet = SubnetConfig(24, 2, 2, 40)
    student_of(supernet, subnet).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.head_dim, config.num_attention_heads, config.hidden_size) == (8, 2, 24)
    assert not config.is_heterogeneous and Shape.from_config(config) == subnet.shape.filled(Shape.from_config(config))


def test_auto_model_gives_the_backbone_of_a_student(each_student, input_ids, tmp_path):
    each_student.save_pretrained(tmp_path)
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path)(input_ids).last_hidden_state
        torch.testing.assert_close(states, each_student.base_model(input_ids).last_hidden_state, **CLOSE)


@pytest.mark.parametrize("output_matrix", ["embed_out.weight", "lm_head.weight"])
def test_student_loads_whole_under_either_name_of_the_output_matrix(
    supernet, uneven_subnet, input_ids, tmp_path, output_matrix
):
    student = student_of(supernet, uneven_subnet)
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
    student = student_of(supernet, uneven_subnet)
    _save_with_input(student, input_ids, tmp_path)
    run_python(LOAD.format(imports=imports), tmp_path, "no trust")
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(student, input_ids), **CLOSE)


@pytest.mark.slow
def test_students_of_every_architecture_run_where_hf_whittle_is_not_installed(
    make_stock, make_supernet, input_ids, tmp_path, run_python
):
    students = {}
    for name in ARCHITECTURES:
        supernet = make_supernet(make_stock(model_type=name))
        students[name] = student_of(supernet, uneven_subnet_of(supernet.config))
        _save_with_input(students[name], input_ids, tmp_path / name)
    students["stock"] = student_of(make_supernet(make_stock()), STOCK_SUBNET)
    _save_with_input(students["stock"], input_ids, tmp_path / "stock")
    arguments = [(tmp_path / name, "no trust" if name == "stock" else "trust") for name in students]
    run_python(LOAD.format(imports=WITHOUT_HF_WHITTLE), *itertools.chain(*arguments))
    for name, student in students.items():
        torch.testing.assert_close(torch.load(tmp_path / name / "logits.pt"), logits(student, input_ids), **CLOSE)


def test_saved_code_gives_the_same_model_and_is_saved_again(each_student, input_ids, tmp_path):
    each_student.save_pretrained(tmp_path / "first")
    reference = each_student.config.auto_map["AutoModelForCausalLM"]
    kind = get_class_from_dynamic_module(reference, tmp_path / "first")
    assert kind.__module__.startswith("transformers_modules.") and kind.config_class is not type(each_student.config)
    loaded = kind.from_pretrained(tmp_path / "first")
    torch.testing.assert_close(logits(loaded, input_ids), logits(each_student, input_ids), **CLOSE)
    loaded.save_pretrained(tmp_path / "second")
    code = {path.name: path.read_text() for path in (tmp_path / "first").glob("*.py")}
    assert code == {path.name: path.read_text() for path in (tmp_path / "second").glob("*.py")}
    before, after = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("first", "second"))
    assert before == after


def test_student_is_saved_with_the_code_of_its_architecture_alone(each_student, tmp_path):
    each_student.save_pretrained(tmp_path / "model")
    each_student.base_model.save_pretrained(tmp_path / "backbone")
    kind = each_student.config.model_type
    own = {f"configuration_{kind}.py", f"modeling_{kind}.py", "whittle_configuration.py", "whittle_modeling.py"}
    for folder in (tmp_path / "model", tmp_path / "backbone"):
        assert {path.name for path in folder.glob("*.py")} == own
        saved = json.loads((folder / "config.json").read_text())
        config, model, causal = student_classes(get_architecture(kind))
        assert saved["auto_map"] == {
            "AutoConfig": f"configuration_{kind}.{config.__name__}",
            "AutoModel": f"modeling_{kind}.{model.__name__}",
            "AutoModelForCausalLM": f"modeling_{kind}.{causal.__name__}",
        }


def test_saved_stock_student_has_no_code_of_its_own(supernet, tmp_path):
    student_of(supernet, STOCK_SUBNET).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


# Caches, rotation and embeddings


CACHES = {
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "prompt in chunks": {"prefill_chunk_size": 4},
    "beams": {"num_beams": 2},
}


@pytest.mark.parametrize("settings", CACHES.values(), ids=CACHES)
def test_every_cache_gives_the_same_tokens_behind_sliding_windows(each_student, input_ids, settings):
    def generate(**cache):
        mask = torch.ones_like(input_ids)
        return each_student.generate(input_ids, attention_mask=mask, max_new_tokens=6, do_sample=False, **cache)

    without = {"use_cache": False, **{name: value for name, value in settings.items() if name == "num_beams"}}
    assert torch.equal(generate(**settings), generate(**without))


@pytest.mark.parametrize("layer_type", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize("model_type", [name for name in ARCHITECTURES if get_architecture(name).layer_lists])
def test_layers_of_a_student_may_all_be_of_one_type(make_stock, make_supernet, input_ids, model_type, layer_type):
    supernet = make_supernet(make_stock(model_type=model_type))
    layers = [index for index, found in enumerate(supernet.config.layer_types) if found == layer_type]
    subnet = SubnetConfig(24, layers, num_key_value_heads=[1] * len(layers), intermediate_size=40, head_dim=4)
    student = student_of(supernet, subnet)
    assert type(student) is student_classes(get_architecture(model_type)).causal
    assert student.config.layer_types == [layer_type] * len(layers)
    with supernet.active_subnet(subnet):
        expected = logits(supernet, input_ids)
    torch.testing.assert_close(logits(student, input_ids), expected, **CLOSE)
    generated = [student.generate(input_ids, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False)]
    assert torch.equal(*generated)


@pytest.mark.parametrize("pairs", [[0], [2, 0], [1, 2, 3], [3, 1]], ids=str)
@pytest.mark.parametrize("model_type", [name for name in ARCHITECTURES if get_architecture(name).rotary])
def test_rotary_embedding_is_that_of_the_kept_pairs_of_a_whole_head(make_stock, model_type, pairs):
    changes = {} if model_type != "gpt_neox" else {"rope_parameters": {**ROTARY, "partial_rotary_factor": 1.0}}
    whole = make_stock(model_type=model_type, **changes)
    values = whole.config.to_dict() | {"head_dim": 2 * len(pairs), "rotary_head_dim": 8, "rotary_pairs": pairs}
    values.pop("model_type")
    student = student_classes(get_architecture(model_type)).causal(_config(model_type, **values))
    states, positions = torch.zeros(1, 20, 32), torch.arange(20)[None]
    types = [(name,) for name in set(whole.config.layer_types)] if model_type == "gemma3_text" else [()]
    for layer_type in types:
        ours = student.base_model.rotary_emb(states, positions, *layer_type)
        for own, theirs in zip(ours, whole.base_model.rotary_emb(states, positions, *layer_type), strict=True):
            if get_architecture(model_type).is_interleaved:
                channels = [2 * pair + second for pair in pairs for second in (0, 1)]
            else:
                channels = [*pairs, *(pair + 4 for pair in pairs)]
            assert torch.equal(own, theirs[..., channels])


def test_pairs_may_be_neighbouring_channels():
    class Rotary(WhittleRotaryEmbedding):
        pairs_are_neighbours = True

    rotary = Rotary.__new__(Rotary)
    torch.nn.Module.__init__(rotary)
    for pairs, channels in {(0, 1): [0, 1, 2, 3], (3, 1): [6, 7, 2, 3], (): []}.items():
        rotary.pairs = pairs
        assert rotary._kept(torch.arange(8)).tolist() == channels


def test_partly_rotated_heads_may_keep_any_pairs_and_other_channels(make_stock, make_supernet, input_ids):
    supernet = make_supernet(make_stock(rope_parameters={**ROTARY, "partial_rotary_factor": 0.5}))
    for head_dim, pairs in {(0, 1, 4, 5): [0], (2, 3, 6, 7): [1], (4, 5): [], (0, 1, 2, 3): [0, 1]}.items():
        subnet = SubnetConfig(22, 3, [2, 4, 1], 40, head_dim=list(head_dim))
        student = student_of(supernet, subnet)
        assert student.config.rotary_pairs == pairs
        with supernet.active_subnet(subnet):
            expected = logits(supernet, input_ids)
        torch.testing.assert_close(logits(student, input_ids), expected, **CLOSE)


def test_embeddings_are_scaled_as_configured(tmp_path):
    ids = torch.arange(5)[None]
    for stated, factor in {3.5: 3.5, None: 32**0.5}.items():
        kind = student_classes(get_architecture("gemma3_text")).causal
        student = kind(_config("gemma3_text", embed_scale=stated))
        student.save_pretrained(tmp_path)
        for model in (student, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)):
            embedding = model.get_input_embeddings()
            torch.testing.assert_close(embedding(ids), factor * embedding.weight[ids], **CLOSE)


# The configuration


def _config(model_type, **changes):
    return student_classes(get_architecture(model_type)).config(**settings_of(model_type, **changes))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_head_dim_defaults_to_the_stock_one(model_type):
    table = get_architecture(model_type)
    stock = stock_class(table.config_class)(**settings_of(model_type, head_dim=8))
    assert _config(model_type).head_dim == 8 == Shape.from_config(stock).head_dim


@pytest.mark.parametrize("model_type", ["gpt_neox", "llama", "mistral", "qwen2"])
def test_hidden_size_that_heads_do_not_divide_needs_a_head_dim(model_type):
    with pytest.raises(ValueError, match="hidden_size=30 is not a multiple of num_attention_heads=4; give head_dim"):
        _config(model_type, hidden_size=30, head_dim=None)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        (model_type, name)
        for model_type in ARCHITECTURES
        for name in student_config_class(get_architecture(model_type)).names_by_layer
    ],
)
def test_layer_without_heads_or_neurons_is_an_error_that_names_it(model_type, name):
    if name not in _config(model_type)._names_by_layer():
        with pytest.raises(ValueError, match=f"may differ, got \\['{name}'\\]"):
            _config(model_type, per_layer_config={1: {name: 0}})
        return
    message = f"{name} of layer 1 must be a whole number of at least 1, got 0"
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        _config(model_type, per_layer_config={1: {name: 0}})


@pytest.mark.parametrize("name", ["head_dim", "skip", "num_heads"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_layer_that_differs_in_anything_else_is_an_error_that_names_it(model_type, name):
    with pytest.raises(ValueError, match=f"per_layer_config of layer 1: only .* may differ, got \\['{name}'\\]"):
        _config(model_type, per_layer_config={1: {name: 3}})


def test_query_heads_that_key_value_heads_do_not_divide_are_an_error():
    message = "num_attention_heads of layer 1 must be a multiple of its num_key_value_heads, got 3 and 2"
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        _config("llama", per_layer_config={1: {"num_attention_heads": 3}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_pairs": [0, 1]}, "give both rotary_head_dim and rotary_pairs, or neither, got None and"),
        ({"rotary_head_dim": 8}, "give both rotary_head_dim and rotary_pairs, or neither, got 8 and None"),
        ({"rotary_head_dim": 8, "rotary_pairs": [0, 4]}, "must be different numbers from 0 to 3, got"),
        ({"rotary_head_dim": 8, "rotary_pairs": [1, 1]}, "must be different numbers from 0 to 3, got"),
        ({"rotary_head_dim": 8, "rotary_pairs": [0]}, "head_dim=4 channels cannot have 1 rotary_pairs of 2 channels"),
        ({"rotary_head_dim": 8, "rotary_pairs": [0, 1, 2]}, "head_dim=4 channels cannot have 3 rotary_pairs"),
    ],
)
def test_rotary_pairs_that_do_not_fit_are_an_error(changes, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        _config("llama", head_dim=4, **changes)


def test_sizes_that_contradict_the_weights_are_an_error_whose_report_names_them(
    supernet, uneven_subnet, tmp_path, caplog, monkeypatch
):
    from hf_whittle import extract_subnet

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
