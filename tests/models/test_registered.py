"""An architecture that a script registers: the table of examples/custom_architecture.py."""

import runpy
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_whittle
from hf_whittle import HealedPerplexity, ParameterBin, SearchSpace, SubnetConfig, extract_subnet, sort_by_importance
from hf_whittle.architectures import Norms, register_architecture, registry
from hf_whittle.architectures.llama import ARCHITECTURE as LLAMA
from hf_whittle.cost import num_parameters
from hf_whittle.demo import TEACHER
from hf_whittle.errors import ArchitectureError, SubnetError

EXAMPLE = runpy.run_path(str(Path(hf_whittle.__file__).parents[1] / "examples" / "custom_architecture.py"))
STARCODER2 = EXAMPLE["STARCODER2"]
CLOSE = {"rtol": 0, "atol": 1e-4}
BIN = ParameterBin(0.4e6, 0.5e6)


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_architecture(STARCODER2)
    register_architecture(EXAMPLE["replace"](STARCODER2))  # as a cell of a notebook that is run again
    yield
    del registry._registered["starcoder2"]


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    return EXAMPLE["tiny_supernet"](AutoTokenizer.from_pretrained(TEACHER)).eval()


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


@pytest.mark.parametrize("granularity", ["coarse", "fine"])
def test_slice_is_the_student_that_stock_transformers_load(supernet, granularity, input_ids, tmp_path):
    space = SearchSpace.from_config(supernet.config, granularity=granularity, stock_only=True)
    subnet = space.sample(Random(1), BIN)
    extract_subnet(supernet, subnet).save_pretrained(tmp_path)
    student = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(student).__name__ == "Starcoder2ForCausalLM"
    assert student.num_parameters() == num_parameters(supernet.config, subnet)
    with supernet.active_subnet(subnet):
        torch.testing.assert_close(logits(supernet, input_ids), logits(student, input_ids), **CLOSE)


@pytest.mark.slow
def test_checkpoint_is_loaded_healed_and_sorted_as_those_of_other_architectures(supernet, sample_text, tmp_path):
    supernet.save_pretrained(tmp_path)
    loaded = hf_whittle.AutoSuperNetForCausalLM.from_pretrained(tmp_path)
    text = sample_text(supernet, 48)
    before = logits(loaded, text[:2])
    sort_by_importance(loaded, hf_whittle.score_importance(loaded, text[:4], progress=False))
    torch.testing.assert_close(logits(loaded, text[:2]), before, **CLOSE)
    subnet = SearchSpace.from_config(supernet.config, stock_only=True).sample(Random(0), BIN)
    healed, sliced = HealedPerplexity(loaded, text[:16], text[16:]), hf_whittle.Perplexity(loaded, text[:16])
    assert healed(subnet) < sliced(subnet)


def test_students_that_the_stock_class_cannot_hold_are_refused(supernet):
    with pytest.raises(SubnetError, match=r"'starcoder2' is a registered architecture.*stock_only=True"):
        SearchSpace.from_config(supernet.config, layer_wise=True)
    uneven = SubnetConfig(hidden_size=64, num_hidden_layers=2, num_key_value_heads=1, intermediate_size=[8, 16])
    with pytest.raises(SubnetError, match=r"no class holds this student \(its layers must all be alike\)"):
        extract_subnet(supernet, uneven)


def test_other_table_of_a_known_architecture_is_refused():
    for table in (STARCODER2, LLAMA):
        with pytest.raises(ArchitectureError, match=f"there is a table of {table.model_type!r} already"):
            register_architecture(replace(table, norms=Norms("rms", eps=1e-3)))
    with pytest.raises(ArchitectureError, match=r"the architecture is 'nonesuch'; hf_whittle knows .*starcoder2"):
        registry.get_architecture("nonesuch")
