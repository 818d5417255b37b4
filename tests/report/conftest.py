"""Folders of runs to report on: copies of those in `model_cards/`."""

import shutil
from pathlib import Path

import pytest

CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.fixture
def copy_of(tmp_path):
    """A function that copies a folder of `model_cards/` under a name."""

    def copy(card, name=None):
        return Path(shutil.copytree(CARDS / card, tmp_path / (name or card)))

    return copy
