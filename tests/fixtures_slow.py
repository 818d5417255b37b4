"""Choose the parameters of a test that run where slow tests are left out."""

import pytest


def slow_but(values, *fast):
    """Mark all parameters as slow except those named."""
    assert set(fast) <= set(values), "a parameter named fast is not there"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
