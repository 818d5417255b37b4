"""Names of torch mean what `hf_whittle.compat` takes them for."""

import torch
from relying import relies_on
from torch import nn

from hf_whittle.compat.torch import is_compiled_in_place, rehearsing, uncompiled, version_of


def test_compiled_model_leads_back_to_its_own():
    model = nn.Linear(2, 2)
    with relies_on("torch", "OptimizedModule._orig_mod"):
        compiled = torch.compile(model, backend="eager")
        assert [name for name, _ in compiled.named_parameters()] == ["_orig_mod.weight", "_orig_mod.bias"]
        assert uncompiled(compiled) is model and uncompiled(model) is model


def test_model_compiled_in_place_is_told():
    model = nn.Linear(2, 2)
    assert not is_compiled_in_place(model)
    with relies_on("torch", "nn.Module._compiled_call_impl"):
        model.compile(backend="eager")
        assert is_compiled_in_place(model)


def test_a_change_in_place_is_counted():
    tensor = torch.zeros(2, requires_grad=True)
    with relies_on("torch", "Tensor._version"):
        before = version_of(tensor)
        tensor.detach().add_(1)
        with torch.no_grad():
            tensor[0] = 3
        assert version_of(tensor) == before + 2


def test_operations_of_a_rehearsal_are_watched_and_take_no_memory():
    seen = []

    def watch(operation, args, kwargs):
        seen.append(operation.name())
        return operation(*args, **kwargs)

    with relies_on("torch", "FakeTensorMode and TorchDispatchMode"), rehearsing(watch):
        product = torch.zeros(2**20, 2**20).T @ torch.zeros(2**20, 3)  # 4 TB
        assert product.shape == (2**20, 3) and "aten::mm" in seen
