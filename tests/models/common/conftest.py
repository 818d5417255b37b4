"""Students whose layers differ, for the tests that transformers has for every model."""

import copy

import pytest
from small_models import draw_subnet
from small_students import student_of, uneven_subnet_of
from uneven_student import SETTINGS

from hf_whittle.architectures.registry import ARCHITECTURES

FIRST = ("gpt_neox", "llama", "gemma3_text")
"""With attention of its own, with stock layers alone, and with layers of two types; all others are like one of them."""
EACH = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]


@pytest.fixture(scope="module", params=EACH)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def make_own(architecture, make_stock, make_supernet):
    """A function that builds a super-network of the architecture."""

    def build(**changes):
        return make_supernet(make_stock(model_type=architecture, **SETTINGS.get(architecture, {}) | changes))

    return build


@pytest.fixture(scope="module")
def own_supernet(make_own):
    return make_own()


@pytest.fixture(scope="module")
def student(own_supernet):
    return student_of(own_supernet, uneven_subnet_of(own_supernet.config))


@pytest.fixture(scope="module", params=["with head", "backbone"])
def model(request, student):
    """The student and its backbone."""
    return student if request.param == "with head" else student.base_model


@pytest.fixture(scope="module")
def assistant(own_supernet):
    """A smaller student of the same super-network."""
    return student_of(own_supernet, draw_subnet(own_supernet.config, 3))


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
