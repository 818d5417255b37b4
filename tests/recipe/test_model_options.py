"""How a recipe's models are loaded: checked key by key, and one model unless the recipe says otherwise."""

import copy

import pytest

from hf_whittle.errors import RecipeError
from hf_whittle.recipe import Recipe

MINIMAL = {
    "teacher": "someone/teacher",
    "output_dir": "out",
    "data": {"dataset": "someone/text"},
    "bin": {"low": 1000, "high": 2000},
}
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
TEXT = """
teacher: someone/teacher
supernet: someone/supernet
output_dir: out
data: {dataset: someone/text}
bin: {low: 1000, high: 2000}
teacher_options:
  dtype: bfloat16
  quantization_config: {load_in_4bit: yes, bnb_4bit_compute_dtype: bfloat16}
supernet_options:
  dtype: bfloat16
  device_map: auto
  max_memory: {0: 20GiB, cpu: 64 GB}
  offload_folder: ~/offload
"""


def make(**changes):
    return Recipe.from_dict(copy.deepcopy(MINIMAL | changes))


def test_options_of_a_file_are_arguments_of_from_pretrained(tmp_path):
    (tmp_path / "recipe.yaml").write_text(TEXT)
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    given = recipe.supernet_loading.arguments
    assert given["offload_folder"].endswith("/offload") and "~" not in given.pop("offload_folder")
    assert given == {"dtype": "bfloat16", "device_map": "auto", "max_memory": {0: "20GiB", "cpu": "64 GB"}}
    quantizer = recipe.teacher_loading.arguments["quantization_config"]
    assert quantizer.load_in_4bit and str(quantizer.bnb_4bit_compute_dtype) == "torch.bfloat16"
    recipe.save(tmp_path / "again.yaml")
    assert Recipe.load(tmp_path / "again.yaml") == recipe
    assert make().teacher_loading.arguments == {"dtype": "float32"}


@pytest.mark.parametrize("section", ["teacher_options", "supernet_options"])
@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtyp": "bfloat16"}, "unknown key '{}.dtyp'; did you mean 'dtype'"),
        ({"dtype": "int8"}, "{}.dtype: expected 'float32' or 'bfloat16' or 'float16' or 'auto' or null, got 'int8'"),
        ({"dtype": "float64"}, "{}.dtype: expected"),
        ({"device_map": "atuo"}, "{}: device_map must be auto, balanced, balanced_low_0, sequential, a device such as"),
        ({"device_map": {"lm_head": "gpu"}}, "{}: device_map: 'lm_head' must be the number of a GPU, a device, cpu"),
        ({"device_map": {"lm_head": True}}, "{}: device_map: 'lm_head' must be"),
        ({"device_map": {"": 0, "lm_head": "cpu"}}, "{}: device_map: 'lm_head' is part of '', which has a place too"),
        ({"device_map": {"a.b.1": 0, "a.b": 1}}, "{}: device_map: 'a.b.1' is part of 'a.b', which has a place too"),
        ({"device_map": 3}, "{}.device_map: expected str or dict"),
        ({"max_memory": {0: "1GB"}}, "{}: max_memory has no effect without device_map; give device_map: auto too"),
        ({"offload_folder": "x"}, "{}: offload_folder has no effect without device_map"),
        ({"device_map": "cpu", "max_memory": {0: "1GB"}}, "{}: max_memory needs device_map: auto or balanced"),
        ({"device_map": "auto", "max_memory": {"gpu": "1GB"}}, "{}: max_memory: a device is the number of a GPU, cpu"),
        ({"device_map": "auto", "max_memory": {0: "much"}}, "{}: max_memory: 0 must have a size such as 20GiB, got"),
        ({"quantization_config": {"bits": 4}}, "{}: quantization_config: .*has no `quant_method`"),
        ({"quantization_config": {"quant_method": "none"}}, "{}: quantization_config: Unknown quantization type, got"),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_typ": "nf4"}}, "did you mean 'bnb_4bit_quant_"),
        ({"quantization_config": {"load_in_4bit": "four"}}, "{}: quantization_config: .*must be a boolean"),
    ],
    ids=str,
)
def test_what_cannot_be_loaded_is_named(section, options, message):
    with pytest.raises(RecipeError, match=message.format(section)):
        make(supernet="someone/supernet", **{section: options})


@pytest.mark.parametrize(
    "changes, section",
    [
        ({"teacher_options": {"quantization_config": FOUR_BITS}}, "teacher"),
        ({"supernet_options": {"quantization_config": FOUR_BITS}}, "supernet"),
        ({"supernet": "someone/supernet", "supernet_options": {"quantization_config": FOUR_BITS}}, "supernet"),
    ],
    ids=["the teacher is sliced", "the super-network is the teacher", "a super-network of its own"],
)
def test_a_quantized_super_network_is_refused(changes, section):
    with pytest.raises(RecipeError, match=f"{section}_options.quantization_config: no slice of a quantized super-net"):
        make(**changes)


@pytest.mark.parametrize(
    "changes, is_one, dtypes",
    [
        ({}, True, (None, None)),
        ({"teacher_options": {"dtype": "bfloat16"}}, True, ("bfloat16", "bfloat16")),
        ({"supernet_options": {"dtype": "bfloat16"}}, True, ("bfloat16", "bfloat16")),
        ({"teacher_options": {"dtype": "auto"}, "supernet_options": {"dtype": "float32"}}, False, ("auto", "float32")),
        ({"supernet": "other", "teacher_options": {"dtype": "bfloat16"}}, False, ("bfloat16", None)),
        ({"supernet": "other", "supernet_options": {"dtype": "bfloat16"}}, False, (None, "bfloat16")),
    ],
    ids=str,
)  # fmt: skip
def test_options_of_one_stand_for_both_where_they_are_one_checkpoint(changes, is_one, dtypes):
    recipe = make(**changes)
    assert recipe.is_one_model == is_one
    assert (recipe.teacher_loading.dtype, recipe.supernet_loading.dtype) == dtypes


def test_a_recipe_is_read_where_the_library_of_its_quantizer_is_missing(monkeypatch):
    monkeypatch.setattr("transformers.utils.quantization_config.is_hqq_available", lambda: False)
    options = {"quantization_config": {"quant_method": "hqq", "nbits": 4}}
    recipe = make(supernet="other", teacher_options=options)
    with pytest.raises(RecipeError, match=r"teacher_options.quantization_config: .*HQQ"):
        recipe.teacher_loading.check_quantizer("teacher_options")


@pytest.mark.parametrize("section", ["training", "baseline"])
def test_arguments_of_a_teacher_belong_to_its_options(section):
    with pytest.raises(RecipeError, match=f"{section}.teacher_model_init_kwargs: .*give teacher_options"):
        make(**{section: {"teacher_model_init_kwargs": {"dtype": "bfloat16"}}})
