"""Students whose layers differ, for the tests that transformers has for every model."""

import copy

import pytest

from hf_whittle import SubnetConfig, extract_subnet


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


@pytest.fixture(scope="module")
def eager(student):
    model = copy.deepcopy(student)
    model.set_attn_implementation("eager")
    return model
