"""Bytes of models that a recipe loads in half precision, quantized or on disk, and what the plan makes of them."""

from dataclasses import replace

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from hf_whittle.models.weights import all_weights
from hf_whittle.plan import plan_recipe
from hf_whittle.plan.loaded import largest_layer, loaded
from hf_whittle.recipe.loading import LoadingSection

LARGE = 10**12


def all_names(config):
    return [weight.name.format(layer=layer) for weight, layer in all_weights(config)]


@pytest.fixture(scope="module", params=["gpt_neox", "llama"])
def saved(request, make_stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    make_stock(model_type=request.param, hidden_size=64, intermediate_size=192, head_dim=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(saved):
    return AutoConfig.from_pretrained(saved)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_bytes_are_those_of_the_loaded_model(saved, config, dtype):
    section = LoadingSection(dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(saved, **section.arguments)
    found = loaded(config, section, LARGE, on_cpu=True)
    assert found.bytes == found.on_device == sum(weight.nbytes for weight in model.parameters())
    assert (found.offloaded, found.dtype, found.is_known) == (0, model.dtype, True)


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}])
def test_bytes_of_a_quantized_model_are_those_of_its_weights_and_scales(saved, config, bits):
    section = LoadingSection(dtype="bfloat16", quantization_config=bits)
    model = AutoModelForCausalLM.from_pretrained(saved, **section.arguments)
    states = [weight.quant_state for weight in model.parameters() if hasattr(weight, "quant_state")]
    scales = sum(state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0) for state in states)
    expected = sum(weight.nbytes for weight in model.parameters()) + scales
    assert states and loaded(config, section, LARGE, on_cpu=True).bytes == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "quantizer, is_so",
    [
        ({"load_in_4bit": True}, False),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}, True),
        ({"load_in_8bit": True}, True),
        (None, False),
    ],
)
def test_products_of_quantized_layers_run_in_the_precision_of_their_quantizer(config, quantizer, is_so):
    assert loaded(config, LoadingSection(quantization_config=quantizer), LARGE, on_cpu=False).is_in_16_bits == is_so
    in_half = LoadingSection(dtype="bfloat16", quantization_config=quantizer)
    assert loaded(config, in_half, LARGE, on_cpu=False).is_in_16_bits == (is_so or quantizer is None)


def test_bytes_of_a_quantizer_without_known_bits_are_those_of_the_precision(config):
    section = LoadingSection(dtype="bfloat16", quantization_config={"quant_method": "aqlm"})
    found = loaded(config, section, LARGE, on_cpu=False)
    assert not found.is_known and found.bytes == loaded(config, LoadingSection(dtype="bfloat16"), LARGE, False).bytes


@pytest.mark.parametrize(
    "quantizer, bits", [({"quant_method": "hqq", "nbits": 4, "group_size": 64}, 4.5), ({"quant_method": "eetq"}, 8)]
)
def test_bits_of_other_quantizers_are_read_off_their_settings(config, quantizer, bits):
    whole, found = (
        loaded(config, LoadingSection(quantization_config=each), LARGE, on_cpu=False) for each in (None, quantizer)
    )
    model = AutoModelForCausalLM.from_config(config)
    quantized = sum(part.numel() for name, part in model.named_parameters() if "layers." in name and part.ndim > 1)
    assert whole.bytes - found.bytes == pytest.approx(quantized * (4 - bits / 8), rel=1e-4)


def test_a_map_of_modules_says_what_lies_elsewhere(saved, config, tmp_path):
    layers = "gpt_neox.layers" if config.model_type == "gpt_neox" else "model.layers"
    places = dict.fromkeys({name.rpartition(".")[0] for name in all_names(config)}, 0)
    places = {name: place for name, place in places.items() if not name.startswith((f"{layers}.0.", f"{layers}.3."))}
    places |= {f"{layers}.0": "disk", f"{layers}.3": "disk", "lm_head": "disk"}
    section = LoadingSection(device_map=places, offload_folder=str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(saved, **LoadingSection().arguments)
    elsewhere = sum(
        part.nbytes
        for name, part in model.named_parameters()
        if name.startswith((f"{layers}.0.", f"{layers}.3.", "lm_head."))
    )
    found = loaded(config, section, LARGE, on_cpu=False)
    assert found.offloaded == elsewhere
    assert found.on_device == found.bytes - elsewhere + largest_layer(config)


def test_what_does_not_fit_lies_elsewhere(config):
    whole = loaded(config, LoadingSection(), LARGE, on_cpu=False).bytes
    half = loaded(config, LoadingSection(device_map="auto"), whole // 2, on_cpu=False)
    assert half.offloaded == whole - int(0.9 * (whole // 2))
    section = LoadingSection(device_map="auto", max_memory={0: whole // 4, 1: whole // 4, "cpu": "1GB"})
    two = loaded(config, section, LARGE, on_cpu=False)
    assert two.offloaded == whole - 2 * (whole // 4)
    assert two.on_device == pytest.approx(whole / 4 + largest_layer(config), abs=2)


@pytest.mark.parametrize(
    "options",
    [{"device_map": "cpu"}, {"device_map": {"": "disk"}}, {"device_map": "auto", "max_memory": {"cpu": "1GB"}}],
    ids=str,
)
def test_a_model_without_a_place_on_the_device_runs_on_the_cpu(config, options):
    found = loaded(config, LoadingSection(**options), LARGE, on_cpu=False)
    assert (found.on_device, found.offloaded) == (0, 0) and found.bytes > 0
    assert loaded(config, LoadingSection(**options), LARGE, on_cpu=True).on_device > 0


@pytest.mark.slow
def test_stages_hold_the_models_they_need_as_they_are_loaded(make, recipe, plan, teacher_folder):
    half = plan_recipe(make(teacher_options={"dtype": "bfloat16"}))
    assert half.stage("teacher").memory.weights == 2 * plan.teacher
    assert plan.stage("search").memory.weights - half.stage("search").memory.weights == 2 * plan.supernet
    assert plan.stage("student").memory.weights - half.stage("student").memory.weights == 2 * plan.teacher
    assert half.stage("teacher").precision == "bf16" and half.stage("search").precision == "fp32"  # students are healed
    assert half.stage("healing").memory.weights < plan.stage("healing").memory.weights
    assert plan.stage("baseline").memory.weights == 4 * plan.student
    search = {"algorithm": "evolution", "fitness": "kl"}
    one, two = (plan_recipe(make(search=search, **more)) for more in ({}, {"supernet": str(teacher_folder)}))
    assert two.stage("search").memory.weights - one.stage("search").memory.weights == 4 * plan.teacher
    assert two.stage("student").memory == one.stage("student").memory


@pytest.mark.slow
def test_notes_say_what_the_plan_does_not_know(make):
    options = {"device_map": {"gpt_neox": 0, "lm_head": "disk"}, "offload_folder": "somewhere"}
    teacher = {"dtype": "auto", "device_map": "cpu"}
    notes = " ".join(plan_recipe(make(supernet_options=options, teacher_options=teacher)).notes)
    assert "The teacher lies and runs on the CPU; the hours are those of the device." in notes
    assert "of the super-network do not lie on the device and are copied there in each forward pass; the hours" in notes
    options = {"quantization_config": {"quant_method": "aqlm"}}
    notes = " ".join(plan_recipe(make(teacher_options=options, supernet_options={"dtype": "float32"})).notes)
    assert "The bits of the teacher's quantizer are not known; it is planned as if it were not quantized." in notes


@pytest.mark.slow
def test_precision_of_weights_is_advised_where_models_do_not_fit(make, plan):
    small = replace(plan.device, memory=plan.stage("teacher").memory.weights)
    changes = {each.stage: " ".join(each.changes) for each in plan_recipe(make(), small).problems}
    assert "supernet_options.dtype: bfloat16" in changes["search"] and "device_map: auto" in changes["search"]
    assert "teacher_options.dtype: bfloat16" in changes["teacher"] and "teacher_options.dtype" in changes["student"]
    half = plan_recipe(make(teacher_options={"dtype": "bfloat16"}), small).problems
    assert not any("dtype: bfloat16" in change for problem in half for change in problem.changes)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_a_store_is_advised_where_a_recipe_may_have_one(make, recipe, plan, streaming):
    small = replace(plan.device, memory=plan.stage("student").memory.weights)
    problems = plan_recipe(make(data=recipe.to_dict()["data"] | {"streaming": streaming}), small).problems
    (changes,) = (" ".join(each.changes) for each in problems if each.stage == "student")
    assert ("teacher_store" in changes) == (not streaming)
