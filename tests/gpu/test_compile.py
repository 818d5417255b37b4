"""Compiled models on the device; in a file of their own, since compiling takes longest."""

import pytest
import torch
from fixtures_distillation import logged_numbers, make_trainer
from small_models import draw_subnet

from .comparing import DEVICE, HAS_GPU, SUBNETS, assert_near, needs_gpu, on_device

pytestmark = pytest.mark.gpu
BACKEND = "inductor" if HAS_GPU else "aot_eager"
MODES = [
    pytest.param({}, 2e-2, id="float32"),  # transformers compiles with TF32
    pytest.param({"bf16": True}, 5e-2, id="bfloat16"),
    pytest.param({"fp16": True}, 2e-2, id="float16", marks=needs_gpu),
]


@pytest.mark.parametrize("changes, tolerance", MODES)
def test_compiled_student_trains_as_a_plain_one(tmp_path, changes, tolerance):
    settings = {"torch_compile": True, "torch_compile_backend": BACKEND, "use_cpu": not HAS_GPU}
    numbers = []
    for arguments in ({**settings, **changes}, {"use_cpu": True}):  # in turn: accelerate knows one device at a time
        trainer = make_trainer(tmp_path, max_steps=5, **arguments)
        trainer.train()
        numbers.append(logged_numbers(trainer))
    assert_near(*numbers, tolerance)


def test_compiled_super_network_gives_the_logits_of_a_plain_one(supernet, input_ids):
    plain = on_device(supernet)
    compiled = torch.compile(on_device(supernet), backend=BACKEND)
    for subnet in (SUBNETS["coarse"], SUBNETS["fine"]):
        with torch.no_grad(), plain.active_subnet(subnet), compiled.active_subnet(subnet):
            found, expected = (model(input_ids.to(DEVICE), use_cache=False).logits for model in (compiled, plain))
        assert_near(found, expected, 1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_compiled_norms_and_rotations_give_the_logits_of_plain_ones(make_stock, make_supernet, model_type, input_ids):
    plain = on_device(make_supernet(make_stock(model_type=model_type)))
    compiled = torch.compile(on_device(plain), backend=BACKEND)
    subnet = draw_subnet(plain.config, 0)
    with torch.no_grad(), plain.active_subnet(subnet), compiled.active_subnet(subnet):
        found, expected = (model(input_ids.to(DEVICE), use_cache=False).logits for model in (compiled, plain))
    assert_near(found, expected, 1e-4)
