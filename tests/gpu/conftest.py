"""Fixtures of the tests of the device."""

import contextlib

import pytest
import torch
from transformers.utils.import_utils import enable_tf32

from .comparing import use_ieee


@pytest.fixture(autouse=True)
def ieee_products():
    """Switch TF32 off before each test, and empty the device's cache after it."""
    use_ieee()
    yield
    use_ieee()
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def text(supernet, sample_text):
    """Blocks of the super-network's own text: to calibrate or train on, and others."""
    return sample_text(supernet, 96).split([64, 32])


@pytest.fixture(scope="session")
def saved(stock, tmp_path_factory):
    """The stock model in a folder."""
    folder = tmp_path_factory.mktemp("saved")
    stock.save_pretrained(folder)
    return folder


@pytest.fixture
def tf32():
    """A block inside which products of single precision numbers are in TF32, as a trainer's `tf32=True` leaves it."""

    @contextlib.contextmanager
    def block():
        enable_tf32(True)
        try:
            yield
        finally:
            use_ieee()

    return block
