"""Symmetric sums of products, of which half is kept, compared with the whole matrix."""

import pytest
import torch

from hf_whittle.healing.symmetric import SymmetricSums

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 50])
def test_sums_are_the_gram_matrix(width):
    features, sums = torch.randn(40, width, generator=torch.Generator().manual_seed(width)), SymmetricSums(width, CPU)
    for batch in features.split(17):
        sums.add(batch)
    torch.testing.assert_close(sums.full(), features.T @ features)
    assert sum(tensor.numel() for tensor in sums.tensors) == SymmetricSums.numbers(width) <= width**2
    assert width < 8 or SymmetricSums.numbers(width) <= 0.7 * width**2


@pytest.mark.parametrize("seed", range(20))
def test_any_part_is_that_of_the_gram_matrix(seed):
    generator = torch.Generator().manual_seed(seed)
    width = int(torch.randint(1, 40, (), generator=generator))
    features, sums = torch.randn(30, width, generator=generator), SymmetricSums(width, CPU, torch.float64)
    sums.add(features)
    rows, columns = (torch.nonzero(torch.rand(width, generator=generator) < share).flatten() for share in (0.3, 0.8))
    expected = (features.T @ features)[rows][:, columns].double()
    torch.testing.assert_close(sums(rows, columns), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums(columns, rows), expected.T, rtol=1e-5, atol=1e-5)


def test_part_without_rows_or_columns_is_empty():
    sums, some, none = SymmetricSums(9, CPU), torch.tensor([0, 5]), torch.tensor([], dtype=torch.long)
    assert sums(none, some).shape == (0, 2) and sums(some, none).shape == (2, 0)
