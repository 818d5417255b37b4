"""Slices of a super-network on the device against the same slices on the CPU."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from small_models import draw_subnet

from hf_whittle import SubnetConfig, extract_subnet
from hf_whittle.architectures.registry import ARCHITECTURES

from .comparing import DEVICE, DTYPES, SUBNETS, assert_near, needs_gpu, on_cpu, on_device, relative_error

pytestmark = pytest.mark.gpu
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.1}


@needs_gpu
def test_tf32_is_there_where_it_is_asked_for_alone(tf32):
    """All tolerances below rest on this."""
    first, second = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = on_cpu(first) @ on_cpu(second)
    assert relative_error(first @ second, expected) < 1e-6
    with tf32():
        assert relative_error(first @ second, expected) > 1e-5
    assert relative_error(first @ second, expected) < 1e-6


def as_subnet(supernet, subnet):
    return contextlib.nullcontext() if subnet is None else supernet.active_subnet(subnet)


@torch.no_grad()
def logits_of(supernet, subnet, input_ids, **inputs):
    device = supernet.device
    with as_subnet(supernet, subnet):
        return supernet(
            input_ids.to(device), **{name: x.to(device) for name, x in inputs.items()}, use_cache=False
        ).logits


def gradients_of(supernet, subnet, input_ids):
    ids = input_ids.to(supernet.device)
    supernet.zero_grad()
    with as_subnet(supernet, subnet):
        logits = supernet(ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        F.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    return {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subnet", SUBNETS.values(), ids=SUBNETS)
def test_logits_are_those_of_the_cpu(supernet, subnet, dtype, input_ids):
    expected = logits_of(supernet, subnet, input_ids)
    found = logits_of(on_device(supernet, DTYPES[dtype]), subnet, input_ids)
    assert found.dtype == DTYPES[dtype] and found.device == DEVICE
    assert_near(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("subnet", SUBNETS.values(), ids=SUBNETS)
def test_every_kind_of_model_gives_the_logits_of_the_cpu(variant_supernet, subnet, input_ids):
    found = logits_of(on_device(variant_supernet), subnet, input_ids)
    assert_near(found, logits_of(variant_supernet, subnet, input_ids), TOLERANCE["float32"])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_gives_logits_and_gradients_of_the_cpu(
    make_stock, make_supernet, model_type, seed, input_ids
):
    cpu = make_supernet(make_stock(model_type=model_type))
    device, subnet = on_device(cpu), draw_subnet(cpu.config, seed)
    assert_near(logits_of(device, subnet, input_ids), logits_of(cpu, subnet, input_ids), TOLERANCE["float32"])
    found, expected = (gradients_of(model, subnet, input_ids) for model in (device, on_device(cpu).cpu()))
    assert found.keys() == expected.keys()
    # Together: the bias of keys has a gradient of zero, which rounding alone makes differ.
    assert_near(*(torch.cat([one[name].flatten() for name in sorted(one)]) for one in (found, expected)), 1e-4)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padded_rows_give_the_logits_of_the_cpu(make_stock, make_supernet, implementation, input_ids):
    supernet = make_supernet(make_stock(attn_implementation=implementation))
    mask = torch.ones_like(input_ids)
    mask[0, :5] = mask[2, :1] = 0
    kept = mask.bool()
    found = logits_of(on_device(supernet), SUBNETS["fine"], input_ids, attention_mask=mask)
    expected = logits_of(supernet, SUBNETS["fine"], input_ids, attention_mask=mask)
    assert_near(found[kept.to(DEVICE)], expected[kept], TOLERANCE["float32"])


@pytest.mark.parametrize("subnet", SUBNETS.values(), ids=SUBNETS)
def test_gradients_are_those_of_the_cpu(on_a_copy, subnet, input_ids):
    cpu, device = on_a_copy
    assert_near(gradients_of(device, subnet, input_ids), gradients_of(cpu, subnet, input_ids), 1e-4)


@pytest.fixture
def on_a_copy(supernet):
    """The super-network on the CPU and on the device, to be changed."""
    return on_device(supernet).cpu(), on_device(supernet)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subnet", list(SUBNETS.values())[1:], ids=list(SUBNETS)[1:])
def test_student_is_the_active_subnet(supernet, subnet, dtype, input_ids):
    model = on_device(supernet, DTYPES[dtype])
    student = extract_subnet(model, subnet)
    assert student.device == DEVICE and student.dtype == DTYPES[dtype]
    with torch.no_grad():
        found = student(input_ids.to(DEVICE), use_cache=False).logits
    assert_near(found, logits_of(model, subnet, input_ids), 1e-6 if dtype == "float32" else 0.05)


@pytest.mark.parametrize("subnet", SUBNETS.values(), ids=SUBNETS)
def test_generation_with_a_cache_is_that_without_and_that_of_the_cpu(supernet, subnet, input_ids):
    model = on_device(supernet)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with as_subnet(model, subnet):
        cached, plain = (
            model.generate(
                input_ids.to(DEVICE),
                attention_mask=torch.ones_like(input_ids).to(DEVICE),
                use_cache=use_cache,
                **settings,
            ).cpu()
            for use_cache in (True, False)
        )
    with as_subnet(supernet, subnet):
        expected = supernet.generate(input_ids, attention_mask=torch.ones_like(input_ids), **settings)
    assert cached.tolist() == plain.tolist() == expected.tolist()


def test_indices_of_a_subnet_lie_on_the_device(supernet):
    model = on_device(supernet)
    with model.active_subnet(SUBNETS["fine"]):
        assert {weight.device for weight in model.weights_in_use()} == {DEVICE}
        inner = SubnetConfig(tuple(range(8)), (0, 4), 1, 8)
        with model.active_subnet(inner):
            assert {weight.device for weight in model.weights_in_use()} == {DEVICE}
