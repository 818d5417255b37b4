"""Two processes train to the weights of one."""

import fixtures_distillation
import pytest
import torch
from fixtures_distillation import CASES, evaluate, logged_numbers, make_trainer, projections
from fixtures_processes import ENDED, on_two_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    """A folder with the weights and numbers of every case."""
    folder = tmp_path_factory.mktemp("processes")
    assert on_two_processes(fixtures_distillation.__file__, folder).count(ENDED) == 2  # maybe in one line
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_weights_and_logs_of_one(trained_by_two, case, tmp_path):
    one = make_trainer(tmp_path, hidden_weight=CASES[case].get("hidden_weight", 0.0))
    one.train()
    two = torch.load(trained_by_two / f"{case}.pt")
    torch.testing.assert_close(two.pop("logs"), logged_numbers(one), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two.pop("evaluated"), evaluate(one), rtol=1e-5, atol=0)
    torch.testing.assert_close(two, {**one.model.state_dict(), **projections(one)}, rtol=0, atol=1e-5)
