"""Cross-entropy of blocks, whose logits are made some tokens at a time."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_models import draw_subnet, make_other
from torch.utils._python_dispatch import TorchDispatchMode

from hf_whittle import extract_subnet
from hf_whittle.evaluation import blocks, cross_entropy, read_logits
from hf_whittle.models.heads import known_output_layer

VOCABULARY = 99
CHUNK = 5


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(blocks, "default_chunk_size", lambda on_cpu: CHUNK)


class Logits(TorchDispatchMode):
    """Notes the most rows of a product that gives logits."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        is_product = function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        if is_product and found.shape[-1] == VOCABULARY:
            self.rows = max(self.rows, len(found))
        return found


@torch.no_grad()
def mean_of_whole_logits(model, input_ids):
    logits = model(input_ids, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten()).item()


@pytest.mark.parametrize("length", [2, 5, 6, 12])
def test_chunks_give_the_loss_of_whole_logits(stock, input_ids, length):
    own = input_ids[:, :length]
    assert cross_entropy(stock, own, 2) == pytest.approx(mean_of_whole_logits(stock, own), rel=1e-5)


def test_each_kind_of_model_gives_its_logits_in_chunks(any_supernet, input_ids):
    subnet = draw_subnet(any_supernet.config, 3)
    expected = mean_of_whole_logits(any_supernet, input_ids)
    assert cross_entropy(any_supernet, input_ids) == pytest.approx(expected, rel=1e-5)
    student = extract_subnet(any_supernet, subnet)
    expected = mean_of_whole_logits(student, input_ids)
    with Logits() as seen:
        assert cross_entropy(student, input_ids) == pytest.approx(expected, rel=1e-5)
        with any_supernet.active_subnet(subnet):
            assert cross_entropy(any_supernet, input_ids) == pytest.approx(expected, rel=1e-4)
    assert seen.rows == CHUNK


def test_positions_of_what_is_read_are_those_of_the_logits(stock, input_ids):
    found = torch.zeros(*input_ids.shape, VOCABULARY)

    def keep(block, first, logits):
        found[block, first : first + len(logits)] = logits

    read_logits(stock, input_ids, keep)
    with torch.no_grad():
        torch.testing.assert_close(found, stock(input_ids).logits, rtol=1e-4, atol=1e-4)


def capped(make_stock):
    return make_stock(model_type="gemma3_text", final_logit_softcapping=3.0)


def without_a_table(make_stock):
    return make_other(VOCABULARY)


def overridden(make_stock):
    model = copy.deepcopy(make_stock())

    class Halved(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits / 2
            return output

    model.__class__ = Halved
    return model


def patched(make_stock):
    model = copy.deepcopy(make_stock())
    whole = model.forward

    def halved(*args, **kwargs):
        output = whole(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = halved
    return model


@pytest.mark.parametrize("make", [capped, without_a_table, overridden, patched])
def test_models_whose_logits_are_more_than_a_known_product_compute_them_whole(make_stock, input_ids, make):
    model = make(make_stock).eval()
    assert known_output_layer(model) is None
    with Logits() as seen:
        found = cross_entropy(model, input_ids)
    assert found == pytest.approx(mean_of_whole_logits(model, input_ids), rel=1e-5)
    assert seen.rows == input_ids.numel()


def test_a_compiled_model_is_not_compiled_again_for_its_chunks(make_stock, input_ids):
    model = make_stock()
    assert known_output_layer(model) is not None
    assert known_output_layer(torch.compile(model, backend="eager")) is None
    model.compile(backend="eager")
    assert known_output_layer(model) is None


def test_a_model_on_disk_in_part_keeps_its_hooks(make_stock, input_ids, tmp_path):
    from accelerate import cpu_offload

    model = make_stock()
    expected = mean_of_whole_logits(model, input_ids)
    offloaded = cpu_offload(copy.deepcopy(model), torch.device("cpu"))
    assert known_output_layer(offloaded) is None  # its head is loaded for its own forward alone
    assert cross_entropy(offloaded, input_ids) == pytest.approx(expected, rel=1e-5)
