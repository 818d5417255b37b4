"""Batches whose size nobody chose, and those that do not fit."""

import pytest
import torch

from hf_whittle.errors import WhittleError
from hf_whittle.evaluation import batches, blocks, cross_entropy, sums_of_blocks
from hf_whittle.evaluation.batches import batches_fit, blocks_for, divided, tokens_at_a_time
from hf_whittle.evaluation.windows import Window, Windows


@pytest.fixture
def seen(monkeypatch):
    """Numbers of blocks and tokens of each batch that is evaluated."""
    found, read = [], blocks.read_logits

    def noted(model, batch, *args):
        found.append(tuple(batch.shape))
        return read(model, batch, *args)

    monkeypatch.setattr(blocks, "read_logits", noted)
    return found


def test_a_batch_has_the_tokens_of_its_device(monkeypatch, stock, input_ids, seen):
    length = input_ids.shape[1]
    monkeypatch.setattr(batches, "ON_CPU", 3 * length - 1)
    expected = cross_entropy(stock, input_ids, 3)
    assert cross_entropy(stock, input_ids) == pytest.approx(expected, rel=1e-6)
    assert seen == [(3, length), (2, length), (1, length)]


def test_another_device_gets_more_and_all_logits_of_a_batch_take_a_gigabyte(make_stock):
    assert tokens_at_a_time(on_cpu=False) > tokens_at_a_time(on_cpu=True) > 1000
    assert 4 * 262144 * tokens_at_a_time(False, 262144) == 2**30
    assert tokens_at_a_time(True, 2**30) == 1
    capped = make_stock(model_type="gemma3_text", final_logit_softcapping=3.0, vocab_size=2**17)
    assert blocks_for(capped, 512) == 2**11 // 512 and blocks_for(capped, 512, in_chunks=True) == 8
    assert blocks_for(capped, 10**6) == 1


def test_blocks_are_divided_by_the_tokens_that_padding_makes():
    assert divided([9, 4, 4, 4, 1, 1], 8) == [range(1), range(1, 3), range(3, 5), range(5, 6)]
    assert divided([], 8) == []


def test_shorter_windows_share_a_batch(monkeypatch, stock, seen):
    monkeypatch.setattr(batches, "ON_CPU", 12)
    ids = torch.arange(12).numpy()
    windows = Windows(Window(ids[:length], ids[1 : length + 1], 0) for length in (2, 6, 3, 3, 2, 11))

    def count(block, first, logits):
        return torch.tensor(float(len(logits)))

    counted = sums_of_blocks(stock, windows, None, count)
    assert seen == [(1, 11), (2, 6), (3, 3)] and counted.tolist() == [11, 6, 6, 3, 3, 3]


def limited(monkeypatch, most):
    """A device with room for some blocks alone."""
    read = blocks.read_logits

    def limited_read(model, batch, *args):
        if len(batch) > most:
            raise torch.OutOfMemoryError("out of memory")
        return read(model, batch, *args)

    monkeypatch.setattr(blocks, "read_logits", limited_read)


def test_a_batch_that_does_not_fit_is_halved(monkeypatch, stock, input_ids):
    expected = cross_entropy(stock, input_ids, 1)
    limited(monkeypatch, 2)
    with pytest.warns(UserWarning, match="3 blocks do not fit .* in halves, of 1; a smaller batch_size"):
        assert cross_entropy(stock, input_ids) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("is_sharded, batch_size", [(True, 3), (False, 1)])
def test_one_block_and_a_batch_of_a_sharded_model_are_not_halved(monkeypatch, stock, input_ids, is_sharded, batch_size):
    limited(monkeypatch, 0)
    monkeypatch.setattr(blocks, "is_sharded", lambda model: is_sharded)
    with pytest.raises(torch.OutOfMemoryError):
        cross_entropy(stock, input_ids, batch_size)


def test_what_cannot_be_halved_says_what_to_set():
    for batch_size, advice in ((9, "9 blocks at a time .* give a batch_size of 4 or less"), (1, "use shorter blocks")):
        with pytest.raises(WhittleError, match=advice), batches_fit(batch_size):
            raise torch.OutOfMemoryError("out of memory")
