"""Reports of names of other libraries that changed."""

import contextlib
import importlib.metadata

import pytest

from hf_whittle import compat


@contextlib.contextmanager
def relies_on(library, name):
    """Report whatever fails inside the block as a change of a name."""
    try:
        yield
    except Exception as error:
        installed, seen = importlib.metadata.version(library), compat.SEEN_IN[library]
        pytest.fail(
            f"{name} of {library} {installed} is not what hf_whittle/compat takes it for, which it was in {seen}: "
            f"{type(error).__name__}: {error}"
        )
