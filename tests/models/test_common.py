"""What transformers asks of every model, asked of a student whose layers differ."""

import copy
import json
import re
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    GPTNeoXForCausalLM,
    QuantizedCache,
    StaticCache,
    pipeline,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hf_whittle import SubnetConfig, WhittleGPTNeoXConfig, WhittleGPTNeoXForCausalLM, extract_subnet

# The sections follow `ModelTesterMixin`, `ConfigTester`, `TrainingTesterMixin` and `GenerationTesterMixin` of
# transformers. What of theirs is not here, and why:
#
# ModelTesterMixin
#   flash_attn_*, *_can_dispatch_on_flash, *padding_matches_padding_free* with flash attention   needs a GPU
#   flex_attention_with_grads            flex attention has no backward on a CPU; its forward is tested below
#   cpu_offload, model_parallelism, multi_gpu_data_parallel_forward              needs a GPU, or two
#   disk_offload_bin                     students are saved as safetensors only
#   tensor and expert parallel tests     there are no plans: heads differ by layer
#   *_composite_models, *_subconfig_*, vision, audio, encoder-decoder tests       a student is one decoder
#   problem_types, sequence and token classification            a student has only its language modeling head
#   feed_forward_chunking                GPT-NeoX does not chunk its feed-forward
#   resize_position_vector_embeddings    positions are rotary
#   sdpa_matches_eager_sliding_window    GPT-NeoX has no sliding window
#   save_load_keys_to_ignore_on_save     the class has none
#   reverse_loading_mapping              only the output matrix is renamed; it has tests of its own
#   return_dict=False in the configuration                      fails for stock GPT-NeoX of transformers 5.23 as well
#   head masking, head pruning, torchscript, torch.fx, fast init                  gone from transformers 5
#   num_layers_is_small, model_is_small, generation_tester_mixin_inheritance      about the test suite itself
#   quantization, kernels from the Hub   need libraries of their own (bitsandbytes, kernels, ...)
# GenerationTesterMixin
#   contrastive search, group and constrained beam search, DoLa       moved to code that is downloaded from the Hub
#   cache_implementation="offloaded*"    needs a GPU
#   cache_implementation="quantized" with quanto or hqq               those are not dependencies; fp8 is tested below
#   generate_batch, "paged|*" attention  continuous batching of transformers 5.23 needs layers that are alike
#   custom_generate, watermarks, stop strings, guidance               work on tokens and logits, not on the model

CLOSE = {"rtol": 0, "atol": 1e-5}
HEADS = [2, 4, 1]
VOCABULARY = 99
MASKS = {
    "no padding": [[1] * 12] * 3,
    "left padding": [[1] * 12, [0] * 3 + [1] * 9, [0] * 7 + [1] * 5],
    "right padding": [[1] * 12, [1] * 9 + [0] * 3, [1] * 5 + [0] * 7],
}


@pytest.fixture(scope="module")
def student(supernet, uneven_subnet):
    """Three layers of 2, 4 and 1 heads; 16, 32 and 8 channels of attention beside a hidden size of 22."""
    return extract_subnet(supernet, uneven_subnet)


@pytest.fixture(scope="module", params=["with head", "backbone"])
def model(request, student):
    """The student and its backbone."""
    return student if request.param == "with head" else student.gpt_neox


@pytest.fixture(scope="module")
def assistant(supernet):
    """A smaller student of the same super-network."""
    return extract_subnet(supernet, SubnetConfig(24, 2, 2, 40))


@pytest.fixture
def saved(student, tmp_path):
    """A folder with the student."""
    student.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def first(model, *inputs, **settings):
    """Logits or hidden states, without gradients."""
    with torch.no_grad():
        return model(*inputs, **settings)[0]


def anew(student, **changes):
    """A student of the same sizes with fresh weights and other settings."""
    config = copy.deepcopy(student.config)
    for name, value in changes.items():
        setattr(config, name, value)
    return WhittleGPTNeoXForCausalLM(config).eval()


def gradients(model, input_ids, **inputs):
    model.zero_grad()
    model(input_ids, labels=input_ids, **inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_weights(model, other):
    theirs = other.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


# Saving and loading


def test_reloaded_model_has_the_same_weights_and_outputs(model, input_ids, tmp_path):
    model.save_pretrained(tmp_path)
    reloaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(reloaded, model)
    torch.testing.assert_close(first(reloaded, input_ids), first(model, input_ids), **CLOSE)


@pytest.mark.parametrize("name", ["lm_head.weight", "embed_out.weight"])
def test_output_matrix_is_saved_in_one_safetensors_file_under_its_name_in_files(student, tmp_path, name):
    expected = dict(student.state_dict())
    expected[name] = expected.pop("lm_head.weight")
    student.config.save_pretrained(tmp_path)
    save_file(expected, tmp_path / "model.safetensors", metadata={"format": "pt"})
    AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert [path.name for path in (tmp_path / "again").glob("*model*") if path.suffix != ".py"] == ["model.safetensors"]
    tensors = load_file(tmp_path / "again" / "model.safetensors")
    expected["embed_out.weight"] = expected.pop(name)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_sharded_student_loads_whole(student, input_ids, tmp_path):
    student.save_pretrained(tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 3 and shards == sorted(set(index["weight_map"].values()))
    assert len(index["weight_map"]) == len(student.state_dict())
    assert index["metadata"]["total_size"] == 4 * student.num_parameters()
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 8000
    torch.testing.assert_close(
        first(AutoModelForCausalLM.from_pretrained(tmp_path), input_ids), first(student, input_ids), **CLOSE
    )


def test_variant_of_the_weights_is_saved_and_loaded_by_its_name(student, input_ids, tmp_path):
    student.save_pretrained(tmp_path, variant="half")
    assert (tmp_path / "model.half.safetensors").exists()
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, variant="half")
    torch.testing.assert_close(first(reloaded, input_ids), first(student, input_ids), **CLOSE)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_only_the_main_process_writes(student, tmp_path):
    student.save_pretrained(tmp_path, is_main_process=False)
    assert list(tmp_path.iterdir()) == []


def test_given_state_dict_is_saved_in_place_of_the_weights(student, tmp_path):
    other = {name: tensor + 1 for name, tensor in student.state_dict().items()}
    student.save_pretrained(tmp_path, state_dict=other)
    for name, tensor in AutoModelForCausalLM.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, other[name])


def test_pickled_state_dict_loads_strictly(student, input_ids, tmp_path):
    torch.save(student.state_dict(), tmp_path / "weights.pt")
    other = anew(student)
    assert not torch.equal(first(other, input_ids), first(student, input_ids))
    other.load_state_dict(torch.load(tmp_path / "weights.pt"), strict=True)
    torch.testing.assert_close(first(other, input_ids), first(student, input_ids), **CLOSE)


def test_copy_of_a_model_gives_the_same_outputs_from_weights_of_its_own(model, input_ids):
    twin = copy.deepcopy(model)
    expected = first(model, input_ids)
    torch.testing.assert_close(first(twin, input_ids), expected, **CLOSE)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(first(model, input_ids), expected)


def test_missing_weight_is_named_and_drawn_anew(student, saved):
    missing = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    tensors = load_file(saved / "model.safetensors")
    del tensors[missing]
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    loaded, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert info["missing_keys"] == {missing}
    assert loaded.get_parameter(missing).std().item() == pytest.approx(student.config.initializer_range, rel=0.15)
    kept = "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"
    assert torch.equal(loaded.get_parameter(kept), student.get_parameter(kept))


def test_unexpected_weight_is_named_and_left_out(student, saved, input_ids):
    tensors = load_file(saved / "model.safetensors") | {"gpt_neox.layers.3.extra": torch.ones(2)}
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    loaded, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert info["unexpected_keys"] == {"gpt_neox.layers.3.extra"}
    torch.testing.assert_close(first(loaded, input_ids), first(student, input_ids), **CLOSE)


def test_other_vocabulary_size_is_an_error_unless_mismatched_sizes_are_ignored(student, saved):
    with pytest.raises(RuntimeError, match="You set `ignore_mismatched_sizes` to `False`"):
        AutoModelForCausalLM.from_pretrained(saved, vocab_size=50)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        saved, vocab_size=50, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {name for name, *_ in info["mismatched_keys"]} == {"gpt_neox.embed_in.weight", "lm_head.weight"}
    assert loaded.get_input_embeddings().weight.shape == loaded.get_output_embeddings().weight.shape == (50, 22)
    for ours, theirs in zip(loaded.gpt_neox.layers.parameters(), student.gpt_neox.layers.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_saved_backbone_loads_under_a_head(student, input_ids, tmp_path, tied):
    backbone = anew(student, tie_word_embeddings=tied).gpt_neox
    backbone.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is WhittleGPTNeoXForCausalLM
    assert info["missing_keys"] == (set() if tied else {"lm_head.weight"})
    torch.testing.assert_close(first(loaded.gpt_neox, input_ids), first(backbone, input_ids), **CLOSE)


def test_head_stands_on_the_backbone_that_its_prefix_names(student):
    assert student.base_model_prefix == "gpt_neox"
    assert student.base_model is student.get_decoder() is student.gpt_neox
    assert student.gpt_neox.base_model is student.gpt_neox
    assert student.main_input_name == "input_ids"
    assert student.config.num_hidden_layers == len(student.gpt_neox.layers) == 3


# Plans of tensor and pipeline parallelism


def test_student_has_no_plan_which_is_not_an_empty_one(model):
    assert model.config.base_model_tp_plan is model.config.base_model_pp_plan is model.config.base_model_ep_plan is None
    assert type(model)._tp_plan is type(model)._pp_plan is type(model)._ep_plan is None
    assert not model.supports_tp_plan and not model.supports_pp_plan
    assert not model.tp_plan and not model.pp_plan


def test_every_entry_of_the_plan_of_a_super_network_is_a_module_of_it(supernet):
    names = {re.sub(r"\.\d+", ".*", name) for name, _ in supernet.named_modules()}
    assert supernet.supports_tp_plan and set(supernet.tp_plan) <= names


# Dtypes and devices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_student_loads_in_the_dtype_asked_for(student, saved, dtype):
    expected = copy.deepcopy(student).to(dtype)
    for asked in (dtype, str(dtype).removeprefix("torch.")):
        loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=asked)
        assert loaded.config.dtype == loaded.dtype == dtype
        assert_same_weights(loaded, expected)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [{}, {"dtype": "auto"}, {"torch_dtype": "auto"}], ids=str)
def test_student_loads_in_the_dtype_it_was_saved_in(student, tmp_path, dtype, settings):
    expected = copy.deepcopy(student).to(dtype)
    expected.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path, **settings), expected)


def test_dtype_under_its_old_name_in_the_configuration_is_read(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config.pop("dtype") == "float32"
    config["torch_dtype"] = "bfloat16"
    (saved / "config.json").write_text(json.dumps(config))
    assert AutoModelForCausalLM.from_pretrained(saved).dtype == torch.bfloat16


def test_rotary_frequencies_are_the_same_in_every_dtype(student, saved):
    loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    assert torch.equal(loaded.gpt_neox.rotary_emb.inv_freq, student.gpt_neox.rotary_emb.inv_freq)


def test_modules_kept_in_float32_stay_in_float32(saved, monkeypatch):
    monkeypatch.setattr(WhittleGPTNeoXForCausalLM, "_keep_in_fp32_modules_strict", {"final_layer_norm"})
    loaded = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {"gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"}


def test_model_built_on_the_meta_device_holds_no_memory_and_takes_the_weights(student, input_ids):
    with torch.device("meta"):
        empty = anew(student)
    assert {tensor.device.type for tensor in (*empty.parameters(), *empty.buffers())} == {"meta"}
    empty.load_state_dict(student.state_dict(), assign=True)
    empty.gpt_neox.rotary_emb = copy.deepcopy(student.gpt_neox.rotary_emb)
    assert torch.equal(first(empty, input_ids), first(student, input_ids))


def test_loading_on_the_meta_device_is_an_error(saved):
    with torch.device("meta"), pytest.raises(RuntimeError, match="with a meta device context manager"):
        AutoModelForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, torch.device("cpu")], ids=str)
def test_device_map_places_the_whole_student(student, saved, input_ids, device_map):
    loaded = AutoModelForCausalLM.from_pretrained(saved, device_map=device_map)
    assert loaded.device == torch.device("cpu")
    torch.testing.assert_close(first(loaded, input_ids), first(student, input_ids), **CLOSE)


OFFLOADED = {
    "gpt_neox.embed_in": "cpu",
    "gpt_neox.layers.0": "cpu",
    "gpt_neox.layers.1": "disk",
    "gpt_neox.layers.2": "disk",
    "gpt_neox.final_layer_norm": "disk",
    "gpt_neox.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def test_student_with_layers_on_disk_runs_and_is_saved_as_it_is(student, saved, input_ids, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(saved, device_map=OFFLOADED, offload_folder=tmp_path / "offload")
    on_disk = {name for name, parameter in loaded.named_parameters() if parameter.device.type == "meta"}
    prefixes = tuple(name for name, place in OFFLOADED.items() if place == "disk")
    assert on_disk == {name for name in student.state_dict() if name.startswith(prefixes)}
    torch.testing.assert_close(first(loaded, input_ids), first(student, input_ids), **CLOSE)
    with pytest.warns(UserWarning, match="Attempting to save a model with offloaded modules"):
        loaded.save_pretrained(tmp_path / "again")
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), student)


def test_student_that_does_not_fit_in_memory_goes_to_disk_in_whole_layers(student, saved, input_ids, tmp_path):
    budget = student.get_memory_footprint() * 3 // 4
    loaded = AutoModelForCausalLM.from_pretrained(
        saved, device_map="auto", max_memory={"cpu": budget}, offload_folder=tmp_path / "offload"
    )
    assert set(loaded.hf_device_map.values()) == {"cpu", "disk"}
    for layer in loaded.gpt_neox.layers:
        assert len({parameter.device for parameter in layer.parameters()}) == 1
    torch.testing.assert_close(first(loaded, input_ids), first(student, input_ids), **CLOSE)


# Initialization


def _built(config):
    return WhittleGPTNeoXForCausalLM(config)


def _loaded_from_nothing(config):
    return WhittleGPTNeoXForCausalLM.from_pretrained(None, config=config, state_dict={})


@pytest.mark.parametrize("build", [_built, _loaded_from_nothing])
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_fresh_weights_are_normal_biases_zero_and_norms_one(student, build, std):
    config = copy.deepcopy(student.config)
    config.initializer_range = std
    torch.manual_seed(0)
    model = build(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            error = std / parameter.numel() ** 0.5
            assert parameter.mean().item() == pytest.approx(0, abs=5 * error), name
            assert parameter.std().item() == pytest.approx(std, abs=5 * error), name
    for ours, theirs in zip(model.buffers(), student.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("build", [_built, _loaded_from_nothing])
def test_fresh_weights_depend_on_the_seed_alone(student, build):
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(build(student.config).get_input_embeddings().weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# Embeddings


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("size", [120, 50], ids=["bigger", "smaller"])
def test_resized_vocabulary_keeps_what_it_had_and_is_saved(student, input_ids, tmp_path, tied, size):
    model = anew(student, tie_word_embeddings=tied)
    input_ids, kept = input_ids % min(size, VOCABULARY), min(size, VOCABULARY)
    before = first(model, input_ids)
    model.resize_token_embeddings(size)
    after = first(model, input_ids)
    assert after.shape[-1] == model.config.vocab_size == model.get_input_embeddings().num_embeddings == size
    torch.testing.assert_close(after[..., :kept], before[..., :kept], **CLOSE)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied

    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(first(reloaded, input_ids), after, **CLOSE)
    assert torch.equal(greedy(reloaded, input_ids), greedy(model, input_ids))


def test_new_entries_of_a_resized_vocabulary_run_and_learn(student):
    model = copy.deepcopy(student)
    model.resize_token_embeddings(VOCABULARY + 1)
    new = torch.full((1, 4), VOCABULARY)
    computed = gradients(model, new)
    assert computed["gpt_neox.embed_in.weight"][VOCABULARY].any()
    assert computed["lm_head.weight"][VOCABULARY].any()


def test_resized_vocabulary_is_padded_to_a_multiple(student, input_ids):
    model = copy.deepcopy(student)
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == 128
    torch.testing.assert_close(first(model, input_ids)[..., :VOCABULARY], first(student, input_ids), **CLOSE)


def test_backbone_with_a_resized_vocabulary_gives_the_same_states(student, input_ids):
    backbone = copy.deepcopy(student.gpt_neox)
    backbone.resize_token_embeddings(120)
    assert backbone.config.vocab_size == 120
    torch.testing.assert_close(first(backbone, input_ids), first(student.gpt_neox, input_ids), **CLOSE)


def test_embeddings_that_are_set_are_the_ones_that_run(student, input_ids):
    model, other = copy.deepcopy(student), anew(student)
    model.set_input_embeddings(other.get_input_embeddings())
    model.set_output_embeddings(other.get_output_embeddings())
    assert model.get_input_embeddings() is model.gpt_neox.get_input_embeddings() is other.gpt_neox.embed_in
    assert model.get_output_embeddings() is other.lm_head
    assert model.gpt_neox.get_output_embeddings() is None
    states = first(student.gpt_neox, inputs_embeds=other.gpt_neox.embed_in(input_ids))
    torch.testing.assert_close(first(model, input_ids), states @ other.lm_head.weight.T, **CLOSE)


def test_tied_output_matrix_is_saved_once_and_tied_again(student, input_ids, tmp_path):
    model = anew(student, tie_word_embeddings=True)
    assert model.lm_head.weight is model.gpt_neox.embed_in.weight
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys() - {"lm_head.weight"}
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert reloaded.lm_head.weight is reloaded.gpt_neox.embed_in.weight
    torch.testing.assert_close(first(reloaded, input_ids), first(model, input_ids), **CLOSE)


def test_tied_weight_gets_the_gradients_of_both_its_uses(student, input_ids):
    tied = anew(student, tie_word_embeddings=True)
    untied = anew(student)
    untied.load_state_dict(tied.state_dict())
    assert untied.lm_head.weight is not untied.gpt_neox.embed_in.weight
    of_untied = gradients(untied, input_ids)
    both = of_untied["gpt_neox.embed_in.weight"] + of_untied["lm_head.weight"]
    torch.testing.assert_close(gradients(tied, input_ids)["gpt_neox.embed_in.weight"], both, **CLOSE)


# The forward


def test_embeddings_as_inputs_equal_their_tokens(model, student, input_ids):
    embeddings = student.get_input_embeddings()(input_ids)
    torch.testing.assert_close(first(model, inputs_embeds=embeddings), first(model, input_ids), **CLOSE)


@pytest.mark.parametrize("both", [True, False], ids=["both", "neither"])
def test_tokens_and_embeddings_exclude_each_other(model, student, input_ids, both):
    inputs = {"input_ids": input_ids, "inputs_embeds": student.get_input_embeddings()(input_ids)} if both else {}
    with pytest.raises(ValueError, match="You must specify exactly one of input_ids or inputs_embeds"):
        model(**inputs)


def test_hidden_states_are_the_embeddings_and_what_each_layer_gives(model, student, input_ids):
    given = []
    hooks = [layer.register_forward_hook(lambda *call: given.append(call[-1])) for layer in student.gpt_neox.layers]
    with torch.no_grad():
        states = model(input_ids, output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    norm = student.gpt_neox.final_layer_norm
    expected = [student.get_input_embeddings()(input_ids), *given[:-1], norm(given[-1])]
    for ours, theirs in zip(states, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_attentions_are_causal_distributions_of_as_many_heads_as_the_layer_has(model, input_ids):
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(input_ids, output_attentions=True).attentions
    assert [tuple(attention.shape) for attention in attentions] == [(3, heads, 12, 12) for heads in HEADS]
    for attention in attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
        assert not attention.triu(1).any()


def test_tuple_of_outputs_equals_the_named_outputs(model, input_ids):
    wanted = {"output_hidden_states": True, "output_attentions": True}
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    named = model(input_ids, **wanted).to_tuple()
    unnamed = model(input_ids, **wanted, return_dict=False)
    assert type(unnamed) is tuple and len(unnamed) == len(named) == 4
    for ours, theirs in ((unnamed[0], named[0]), *zip(unnamed[2] + unnamed[3], named[2] + named[3], strict=True)):
        assert torch.equal(ours, theirs)


def test_what_to_return_may_be_set_in_the_configuration(student, input_ids):
    model = copy.deepcopy(student)
    model.config.output_hidden_states = True
    model.config.use_cache = False
    output = model(input_ids)
    assert len(output.hidden_states) == 4
    assert output.past_key_values is None
    assert model(input_ids, use_cache=True).past_key_values.get_seq_length() == 12


def test_gradients_of_hidden_states_and_attentions_are_kept(model, input_ids):
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    output = model(input_ids, output_hidden_states=True, output_attentions=True)
    inner = (*output.hidden_states, *output.attentions)
    for tensor in inner:
        tensor.retain_grad()
    output[0].square().sum().backward()
    assert len(inner) == 7 and all(tensor.grad.any() for tensor in inner)


def test_logits_to_keep_are_those_of_the_full_output(student, input_ids):
    logits = first(student, input_ids)
    torch.testing.assert_close(first(student, input_ids, logits_to_keep=2), logits[:, -2:], **CLOSE)
    chosen = torch.tensor([0, 5, 7])
    torch.testing.assert_close(first(student, input_ids, logits_to_keep=chosen), logits[:, chosen], **CLOSE)


def test_output_depends_on_differences_of_positions_alone(student, input_ids):
    positions = torch.arange(12)[None]
    logits = first(student, input_ids)
    torch.testing.assert_close(first(student, input_ids, position_ids=positions), logits, **CLOSE)
    torch.testing.assert_close(first(student, input_ids, position_ids=positions + 20), logits, rtol=0, atol=1e-4)
    assert (first(student, input_ids, position_ids=2 * positions, use_cache=False) - logits).abs().max() > 0.1


def test_mask_of_pairs_of_tokens_equals_the_mask_of_tokens(student, input_ids):
    mask = torch.tensor(MASKS["right padding"])
    pairs = torch.ones(12, 12, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    expected = first(student, input_ids, attention_mask=mask)
    torch.testing.assert_close(first(student, input_ids, attention_mask=pairs), expected, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_sequences_equal_each_sequence_alone(student, input_ids, attention):
    model = copy.deepcopy(student)
    model.set_attn_implementation(attention)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    packed = first(model, input_ids[:1], position_ids=positions, use_cache=False)
    alone = [first(model, part) for part in input_ids[:1].split([5, 7], dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), **CLOSE)


def test_rows_of_a_batch_equal_each_row_alone(model, input_ids):
    together = first(model, input_ids)
    for row, ids in zip(together, input_ids, strict=True):
        torch.testing.assert_close(first(model, ids[None])[0], row, **CLOSE)


def test_dropout_acts_in_training_and_nowhere_else(student, input_ids):
    model = anew(student, hidden_dropout=0.5, attention_dropout=0.5)
    assert torch.equal(first(model, input_ids), first(model, input_ids))
    model.train()
    assert not torch.allclose(first(model, input_ids), first(model, input_ids))


ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 16},
    "longrope": {
        "factor": 2.0,
        "short_factor": [1.0, 1.5, 2.0, 3.0],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("rope_type", ROPES)
def test_scaled_rotations_are_those_of_the_super_network(make_stock, make_supernet, uneven_subnet, rope_type):
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "partial_rotary_factor": 1.0, **ROPES[rope_type]}
    supernet = make_supernet(make_stock(max_position_embeddings=32, rope_parameters=rope))
    student = extract_subnet(supernet, uneven_subnet)
    long = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(1))
    for input_ids in (long[:, :8], long):
        with supernet.active_subnet(uneven_subnet):
            expected = first(supernet, input_ids)
        torch.testing.assert_close(first(student, input_ids), expected, **CLOSE)


# Attention kernels


@pytest.fixture(scope="module")
def eager(student):
    model = copy.deepcopy(student)
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("padding", MASKS.values(), ids=MASKS)
def test_eager_attention_equals_sdpa(student, eager, input_ids, padding):
    mask = torch.tensor(padding)
    ours, theirs = (first(model, input_ids, attention_mask=mask) for model in (eager, student))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], **CLOSE)


def test_eager_attention_equals_sdpa_token_by_token(student, eager, input_ids):
    mask = torch.tensor(MASKS["left padding"])
    steps = {}
    for model in (eager, student):
        cache, steps[model] = DynamicCache(config=model.config), []
        for end in range(1, 13):
            token = input_ids[:, end - 1 : end]
            steps[model].append(first(model, token, attention_mask=mask[:, :end], past_key_values=cache)[:, 0])
    ours, theirs = (torch.stack(steps[model], dim=1)[mask.bool()] for model in (eager, student))
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_eager_attention_has_the_gradients_of_sdpa(student, eager, input_ids):
    mask = torch.tensor(MASKS["right padding"])
    expected = gradients(copy.deepcopy(student), input_ids, attention_mask=mask)
    for name, gradient in gradients(copy.deepcopy(eager), input_ids, attention_mask=mask).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_kernel_is_chosen_by_argument_by_configuration_and_at_any_time(student, saved, input_ids):
    expected = first(student, input_ids)
    config = copy.deepcopy(student.config)
    config._attn_implementation = "eager"
    for model in (
        AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager"),
        AutoModelForCausalLM.from_config(student.config, attn_implementation="eager"),
        WhittleGPTNeoXForCausalLM(config),
    ):
        assert model(input_ids, output_attentions=True).attentions[0] is not None
        model.load_state_dict(student.state_dict())
        model.eval().set_attn_implementation("sdpa")
        assert {layer.attention.config._attn_implementation for layer in model.gpt_neox.layers} == {"sdpa"}
        torch.testing.assert_close(first(model, input_ids), expected, **CLOSE)


def test_registered_kernel_gets_the_heads_of_each_layer(student, input_ids, monkeypatch):
    seen = []

    def recording(module, query, key, value, *args, **kwargs):
        seen.append((module.layer_idx, query.shape[1], key.shape[1], value.shape[1]))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, "recording", recording)
    model = copy.deepcopy(student)
    model.set_attn_implementation("recording")
    logits = first(model, input_ids)
    assert seen == [(layer, heads, heads, heads) for layer, heads in enumerate(HEADS)]
    torch.testing.assert_close(logits, first(student, input_ids), **CLOSE)


def test_unknown_kernel_is_an_error_that_names_it(student):
    with pytest.raises(ValueError, match='Specified `attn_implementation="nonsense"` is not supported'):
        copy.deepcopy(student).set_attn_implementation("nonsense")


@pytest.mark.slow
def test_flex_attention_equals_sdpa(student, input_ids):
    model = copy.deepcopy(student)
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(first(model, input_ids), first(student, input_ids), **CLOSE)


# Training


def test_every_weight_gets_a_gradient(student, input_ids):
    for name, gradient in gradients(anew(student), input_ids).items():
        assert gradient.any(), name


def test_student_learns_a_sentence_by_heart(student, input_ids):
    torch.manual_seed(0)
    model = anew(student, initializer_range=0.02).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(input_ids, labels=input_ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(float(VOCABULARY)).log().item(), rel=0.05)
    assert losses[-1] < 0.05 * losses[0]
    sentence = input_ids[:1]
    assert torch.equal(greedy(model.eval(), sentence[:, :1], max_new_tokens=11), sentence)


CHECKPOINTING = {
    "default": {},
    "reentrant": {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    "not reentrant": {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    "every second layer": {"every_n_layers": 2},
}


@pytest.mark.parametrize("settings", CHECKPOINTING.values(), ids=CHECKPOINTING)
def test_gradients_with_checkpoints_are_those_without(student, input_ids, settings):
    model = anew(student, hidden_dropout=0.1).train()
    torch.manual_seed(0)
    expected = gradients(model, input_ids)
    calls = Counter()
    for index, layer in enumerate(model.gpt_neox.layers):
        layer.attention.register_forward_hook(lambda *_, index=index: calls.update([index]))
    model.activation_checkpointing_enable(**settings)
    torch.manual_seed(0)
    for name, gradient in gradients(model, input_ids).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    recomputed = (0, 2) if "every_n_layers" in settings else (0, 1, 2)
    assert calls == {layer: 2 if layer in recomputed else 1 for layer in range(3)}


def test_checkpoints_are_switched_on_and_off(student):
    model = copy.deepcopy(student)
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    assert not model.is_activation_checkpointing
    assert not any(module.gradient_checkpointing for module in model.gpt_neox.layers)


def test_inputs_of_a_frozen_student_can_require_gradients(student, input_ids):
    model = copy.deepcopy(student).requires_grad_(False)
    assert not model(input_ids).logits.requires_grad
    model.enable_input_require_grads()
    assert model(input_ids).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(input_ids).logits.requires_grad


def test_lora_adapters_attach_to_layers_of_every_width_and_are_saved_apart(student, saved, input_ids, tmp_path):
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=2, target_modules=["query_key_value", "dense"], init_lora_weights=False)
    torch.manual_seed(0)
    model = copy.deepcopy(student)
    model.add_adapter(adapters)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == sum(2 * (22 + 24 * heads) + 2 * (8 * heads + 22) for heads in HEADS)
    adapted = first(model, input_ids)
    assert (adapted - first(student, input_ids)).abs().max() > 0.1
    model.save_pretrained(tmp_path / "adapters")
    model.disable_adapters()
    torch.testing.assert_close(first(model, input_ids), first(student, input_ids), **CLOSE)
    reloaded = AutoModelForCausalLM.from_pretrained(saved)
    reloaded.load_adapter(str(tmp_path / "adapters"))
    torch.testing.assert_close(first(reloaded, input_ids), adapted, **CLOSE)


# Compilation: `aot_eager` traces the forward and the backward as `inductor` does, and does not wait for a C++ compiler


@pytest.fixture
def compiled():
    """A function that compiles a copy of a model into one graph."""
    torch._dynamo.reset()
    yield lambda model, backend="aot_eager", **settings: torch.compile(
        copy.deepcopy(model), fullgraph=True, backend=backend, **settings
    )
    torch._dynamo.reset()


BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_student_is_one_graph_with_the_same_loss_and_gradients(student, input_ids, compiled, backend):
    model = compiled(student, backend)
    output = model(input_ids, labels=input_ids, use_cache=False)
    output.loss.backward()
    torch.testing.assert_close(output.logits, first(student, input_ids), rtol=0, atol=2e-5)
    expected = gradients(copy.deepcopy(student), input_ids)
    for name, parameter in model._orig_mod.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_student_compiled_with_a_static_cache_generates_the_same_tokens(student, input_ids, compiled, backend):
    model = copy.deepcopy(student)
    model.forward = torch.compile(model.forward, fullgraph=True, backend=backend)
    generated = greedy(model, input_ids, cache_implementation="static")
    assert torch.equal(generated, greedy(student, input_ids))


@pytest.mark.slow
def test_student_compiled_for_any_length_is_compiled_once(student, input_ids, compiled):
    model = compiled(student, dynamic=True)
    first(model, input_ids[:, :5].contiguous(), use_cache=False)
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (7, 12):
            ids = input_ids[:2, :length].contiguous()
            torch.testing.assert_close(first(model, ids, use_cache=False), first(student, ids), **CLOSE)


def test_exported_student_gives_the_same_logits(student, input_ids):
    exported = torch.export.export(student, (), {"input_ids": input_ids, "use_cache": False}, strict=False)
    other = input_ids.flip(1)
    torch.testing.assert_close(
        exported.module()(input_ids=other, use_cache=False).logits, first(student, other), **CLOSE
    )


# The configuration


def test_configuration_survives_every_way_of_writing_it(student, tmp_path):
    config = copy.deepcopy(student.config)
    config.save_pretrained(tmp_path / "folder" / "sub")  # notes in the configuration where its code is
    config.to_json_file(tmp_path / "plain.json")
    for read in (
        WhittleGPTNeoXConfig.from_dict(config.to_dict()),
        WhittleGPTNeoXConfig(**config.to_diff_dict()),
        WhittleGPTNeoXConfig(**json.loads(config.to_json_string())),
        WhittleGPTNeoXConfig.from_json_file(tmp_path / "plain.json"),
        WhittleGPTNeoXConfig.from_pretrained(tmp_path / "folder", subfolder="sub"),
        copy.deepcopy(config),
    ):
        assert {**read.to_dict(), "_name_or_path": None} == {**config.to_dict(), "_name_or_path": None}
        assert [layer.num_attention_heads for layer in read.per_layer_config] == HEADS
        assert [layer.intermediate_size for layer in read.per_layer_config] == [40, 24, 64]


def test_configuration_without_arguments_is_the_stock_one():
    ours, stock = WhittleGPTNeoXConfig().to_dict(), GPTNeoXForCausalLM.config_class().to_dict()
    assert ours.pop("head_dim") == stock["hidden_size"] // stock["num_attention_heads"]
    assert (ours.pop("model_type"), stock.pop("model_type")) == ("whittle_gpt_neox", "gpt_neox")
    assert {k: ours[k] for k in stock if k in ours} == stock


def test_sizes_that_differ_by_layer_cannot_be_read_as_if_they_did_not(student):
    assert student.config.is_heterogeneous
    for name in ("num_attention_heads", "intermediate_size"):
        with pytest.raises(RuntimeError, match=f"'{name}' is a per-layer attribute and may vary across layers"):
            getattr(student.config, name)


def test_parameters_are_counted_whole_and_without_embeddings(student):
    layers = sum(parameter.numel() for parameter in student.gpt_neox.layers.parameters())
    assert student.num_parameters() == layers + 2 * 22 + 2 * 22 * VOCABULARY
    assert student.num_parameters(exclude_embeddings=True) == student.num_parameters() - 22 * VOCABULARY


# Generation


def greedy(model, input_ids, **settings):
    """Six new tokens each, unless the settings say otherwise."""
    settings = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 6, "do_sample": False} | settings
    return model.generate(input_ids, **settings)


def token_by_token(model, input_ids, choose, new_tokens=6):
    """What generation does, without a cache and without its machinery."""
    for _ in range(new_tokens):
        input_ids = torch.cat([input_ids, choose(first(model, input_ids, use_cache=False)[:, -1])], dim=1)
    return input_ids


def log_likelihood(model, sequences, prompt):
    """Of what follows the prompt, for each sequence and token."""
    predicted = first(model, sequences)[:, prompt - 1 : -1].log_softmax(-1)
    return predicted.gather(2, sequences[:, prompt:, None])[..., 0]


def test_greedy_tokens_are_the_likeliest(student, input_ids):
    expected = token_by_token(student, input_ids, lambda logits: logits.argmax(-1, keepdim=True))
    assert torch.equal(greedy(student, input_ids), expected)


CACHES = {
    "none": {"use_cache": False},
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "longer static": {"cache_implementation": "static", "max_cache_len": 40},
    "prompt in chunks": {"prefill_chunk_size": 5},
    "prompt in chunks, static": {"prefill_chunk_size": 5, "cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.parametrize("settings", CACHES.values(), ids=CACHES)
def test_every_cache_gives_the_same_tokens(student, input_ids, settings):
    assert torch.equal(greedy(student, input_ids, **settings), greedy(student, input_ids))


def test_caches_hold_the_heads_of_each_layer(student, input_ids):
    dynamic, static = DynamicCache(config=student.config), StaticCache(config=student.config, max_cache_len=20)
    for cache in (dynamic, static):
        first(student, input_ids, past_key_values=cache)
    for layer, heads in enumerate(HEADS):
        assert dynamic.layers[layer].keys.shape == (3, heads, 12, 8)
        assert static.layers[layer].keys.shape == (3, heads, 20, 8)
        for name in ("keys", "values"):
            kept, expected = (getattr(cache.layers[layer], name)[:, :, :12] for cache in (static, dynamic))
            torch.testing.assert_close(kept, expected, **CLOSE)


def test_static_cache_laid_out_before_the_first_token_gives_the_same_logits(student, input_ids):
    cache = StaticCache(config=student.config, max_cache_len=20)
    cache.early_initialization(batch_size=3, num_heads=HEADS, head_dim=8, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(first(student, input_ids, past_key_values=cache), first(student, input_ids), **CLOSE)


def test_cache_in_eight_bits_stays_close(student, input_ids):
    cache = QuantizedCache("fp8", student.config)
    torch.testing.assert_close(
        first(student, input_ids[:, :6], past_key_values=cache), first(student, input_ids[:, :6]), **CLOSE
    )
    expected = first(student, input_ids)
    for position in range(6, 12):
        logits = first(student, input_ids[:, position : position + 1], past_key_values=cache)[:, 0]
        assert nn.functional.cosine_similarity(logits, expected[:, position]).min() > 0.95


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}, {"num_beams": 3}], ids=str)
def test_generation_from_embeddings_equals_that_from_tokens(student, input_ids, settings):
    embeddings = student.get_input_embeddings()(input_ids)
    expected = greedy(student, input_ids, **settings)
    mask = torch.ones_like(input_ids)
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, **settings}
    assert torch.equal(student.generate(inputs_embeds=embeddings, **settings), expected[:, 12:])
    assert torch.equal(student.generate(input_ids, inputs_embeds=embeddings, **settings), expected)


def test_generation_continues_from_a_cache(student, input_ids):
    begun = greedy(student, input_ids, max_new_tokens=3, return_dict_in_generate=True)
    assert begun.past_key_values.get_seq_length() == 14
    continued = greedy(student, begun.sequences, max_new_tokens=3, past_key_values=begun.past_key_values)
    assert torch.equal(continued, greedy(student, input_ids))


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_left_padded_rows_generate_what_they_generate_alone(student, input_ids, settings):
    mask = torch.tensor(MASKS["left padding"])
    together = greedy(student, input_ids, attention_mask=mask, **settings)
    for row, ids, kept in zip(together, input_ids, mask, strict=True):
        assert torch.equal(row[12:], greedy(student, ids[None, kept.bool()], **settings)[0, kept.sum() :])


def test_positions_may_be_left_to_generation(student, input_ids):
    positions = torch.arange(12).expand(3, 12)
    assert torch.equal(greedy(student, input_ids, position_ids=positions), greedy(student, input_ids))


def test_rows_end_at_the_end_token_and_are_padded(student, input_ids):
    free = greedy(student, input_ids, max_new_tokens=10)
    end = free[0, 14].item()
    ended = greedy(student, input_ids, max_new_tokens=10, eos_token_id=end, pad_token_id=0)
    for row, whole in zip(ended, free, strict=True):
        ends = (whole[12:] == end).nonzero()
        kept = 12 + int(ends[0]) + 1 if len(ends) else len(whole)
        assert torch.equal(row[:kept], whole[:kept])
        assert not row[kept:].any()


def test_end_token_does_not_come_before_the_least_length(student, input_ids):
    end = greedy(student, input_ids[:1])[0, 12].item()
    generated = greedy(student, input_ids[:1], eos_token_id=end, pad_token_id=0, min_new_tokens=4)
    assert len(greedy(student, input_ids[:1], eos_token_id=end, pad_token_id=0)[0]) == 13
    assert end not in generated[0, 12:16]


def test_sampled_tokens_are_drawn_from_the_distribution_of_the_logits(student, input_ids):
    torch.manual_seed(5)
    sampled = greedy(student, input_ids, do_sample=True, top_k=0)
    torch.manual_seed(5)
    expected = token_by_token(student, input_ids, lambda logits: torch.multinomial(logits.softmax(-1), 1))
    assert torch.equal(sampled, expected)
    assert not torch.equal(sampled, greedy(student, input_ids))


def test_several_samples_of_a_prompt_begin_with_it(student, input_ids):
    torch.manual_seed(0)
    samples = greedy(student, input_ids, do_sample=True, num_return_sequences=4)
    assert torch.equal(samples[:, :12], input_ids.repeat_interleave(4, dim=0))
    assert len({tuple(sample.tolist()) for sample in samples}) == 12


SCORES = {"return_dict_in_generate": True, "output_scores": True}


def test_beams_as_many_as_the_vocabulary_find_the_likeliest_pair_of_tokens(student, input_ids):
    prompt = input_ids[:1]
    first_token = first(student, prompt)[0, -1].log_softmax(-1)
    prompts = torch.cat([prompt.expand(VOCABULARY, -1), torch.arange(VOCABULARY)[:, None]], dim=1)
    pairs = first_token[:, None] + first(student, prompts)[:, -1].log_softmax(-1)
    found = greedy(student, prompt, max_new_tokens=2, num_beams=VOCABULARY, **SCORES)
    assert found.sequences[0, 12:].tolist() == list(divmod(pairs.argmax().item(), VOCABULARY))
    torch.testing.assert_close(found.sequences_scores[0], pairs.max() / 2, **CLOSE)


@pytest.mark.parametrize("do_sample", [False, True], ids=["search", "sample"])
def test_scores_of_beams_are_the_likelihoods_of_their_tokens(student, input_ids, do_sample):
    torch.manual_seed(0)
    settings = {"top_k": 0} if do_sample else {}
    found = greedy(student, input_ids, num_beams=4, num_return_sequences=3, do_sample=do_sample, **settings, **SCORES)
    expected = log_likelihood(student, found.sequences, 12)
    torch.testing.assert_close(found.sequences_scores, expected.mean(1), **CLOSE)
    assert (found.sequences_scores.view(3, 3).diff() <= 0).all()
    of_tokens = student.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    if not do_sample:
        torch.testing.assert_close(of_tokens, expected, **CLOSE)


def test_beam_sample_depends_on_the_seed_alone(student, input_ids):
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(greedy(student, input_ids, do_sample=True, num_beams=3))
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_beams_find_the_same_with_every_cache(student, input_ids, settings):
    assert torch.equal(greedy(student, input_ids, num_beams=4, **settings), greedy(student, input_ids, num_beams=4))


SPECULATION = {"greedy": {}, "sample of one": {"do_sample": True, "top_k": 1}}


@pytest.mark.parametrize("settings", SPECULATION.values(), ids=SPECULATION)
@pytest.mark.parametrize("helper", ["smaller student", "itself", "prompt"])
def test_speculative_decoding_gives_the_greedy_tokens(student, assistant, settings, helper):
    prompt = torch.tensor([[5, 9, 14, 3, 5, 9, 14, 3, 5, 9]])
    helpers = {
        "smaller student": {"assistant_model": assistant},
        "itself": {"assistant_model": copy.deepcopy(student)},
        "prompt": {"prompt_lookup_num_tokens": 3},
    }
    expected = greedy(student, prompt, max_new_tokens=15)
    assert torch.equal(greedy(student, prompt, max_new_tokens=15, **helpers[helper], **settings), expected)


def test_speculative_decoding_from_the_prompt_stops_at_the_end_token(student, input_ids):
    prompt = input_ids[:1]
    end = greedy(student, prompt)[0, 15].item()
    settings = {"eos_token_id": end, "pad_token_id": 0}
    expected = greedy(student, prompt, **settings)
    assert expected[0, -1] == end
    assert torch.equal(greedy(student, prompt, prompt_lookup_num_tokens=3, **settings), expected)


def test_generation_returns_the_logits_attentions_and_states_of_every_step(eager, input_ids):
    wanted = {"output_logits": True, "output_scores": True, "output_attentions": True, "output_hidden_states": True}
    found = greedy(eager, input_ids, return_dict_in_generate=True, **wanted)
    with torch.no_grad():
        whole = eager(found.sequences[:, :-1], output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(torch.stack(found.logits, dim=1), whole.logits[:, 11:], **CLOSE)
    torch.testing.assert_close(torch.stack(found.scores, dim=1), whole.logits[:, 11:], **CLOSE)
    for layer in range(4):
        states = torch.cat([step[layer] for step in found.hidden_states], dim=1)
        torch.testing.assert_close(states, whole.hidden_states[layer], **CLOSE)
    for layer in range(3):
        for end, step in enumerate(found.attentions, start=12):
            expected = whole.attentions[layer][:, :, :end, :end]
            torch.testing.assert_close(step[layer], expected[:, :, -step[layer].shape[2] :], **CLOSE)


def test_generation_without_a_prompt_begins_with_the_first_token(student):
    model = copy.deepcopy(student)
    with pytest.raises(ValueError, match="`bos_token_id` has to be defined when no `input_ids` are provided"):
        model.generate(max_new_tokens=4)
    model.generation_config.bos_token_id = 7
    assert torch.equal(model.generate(max_new_tokens=4, do_sample=False), greedy(model, torch.tensor([[7]]))[:, :5])


def test_generation_configuration_is_saved_with_the_student(student, input_ids, tmp_path):
    model = copy.deepcopy(student)
    model.generation_config = GenerationConfig(max_new_tokens=3, num_beams=2, pad_token_id=0)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    mask = torch.ones_like(input_ids)
    expected = greedy(student, input_ids, max_new_tokens=3, num_beams=2)
    assert torch.equal(reloaded.generate(input_ids, attention_mask=mask), expected)


def test_pipelines_run_a_student(teacher_folder, make_supernet, uneven_subnet):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    student = extract_subnet(make_supernet(AutoModelForCausalLM.from_pretrained(teacher_folder)), uneven_subnet)
    text = "The quick brown fox"
    inputs = tokenizer(text, return_tensors="pt")
    written = pipeline("text-generation", model=student, tokenizer=tokenizer)(text, max_new_tokens=5, do_sample=False)
    expected = greedy(student, inputs.input_ids, max_new_tokens=5)
    assert written[0]["generated_text"] == tokenizer.decode(expected[0], skip_special_tokens=True)
    features = pipeline("feature-extraction", model=student.gpt_neox, tokenizer=tokenizer)(text, return_tensors=True)
    torch.testing.assert_close(features, first(student.gpt_neox, **inputs), **CLOSE)
