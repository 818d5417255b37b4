"""Names of torch."""

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def uncompiled(model: Any) -> Any:
    """Return the model that `torch.compile` wrapped, any other as it is: `_orig_mod`; torch has no public way back."""
    return getattr(model, "_orig_mod", model)


def is_compiled_in_place(module: Any) -> bool:
    """Return whether `module.compile()` was called: `_compiled_call_impl`; torch has no public test for that."""
    return getattr(module, "_compiled_call_impl", None) is not None


def version_of(tensor: "torch.Tensor") -> int:
    """Return the number of changes to a tensor in place: `_version`; publicly, only comparing all values would do."""
    return tensor._version


def rehearsing(watch: Any) -> Any:
    """Context managers in which tensors have shapes but no memory, and every operation is given to a function.

    `torch._subclasses.fake_tensor` and `torch.utils._python_dispatch` are documented, and have no public names.

    Args:
        watch (`Callable`): called as `watch(operation, args, kwargs)`; gives the result of the operation.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return watch(func, args, kwargs or {})

    stack = contextlib.ExitStack()
    stack.enter_context(FakeTensorMode())
    stack.enter_context(Watching())
    return stack
