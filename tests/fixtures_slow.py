"""What of a test's parameters runs where slow tests are left out."""

import pytest


def slow_but(values, *fast):
    """Mark all parameters as slow but those named."""
    assert set(fast) <= set(values), "a parameter named fast is not there"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
