"""Hash of a user's function or object: its code and the objects it holds or reads."""

import copyreg
import hashlib
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..compat.others import dataset_fingerprint

_INSTALLED = {"site-packages", "dist-packages"}  # of an environment, of the user or of the system
_LIBRARIES = tuple({str(Path(sysconfig.get_paths()[name]).resolve()) for name in ("stdlib", "purelib", "platlib")})
_OWN = __name__.partition(".")[0]
_CODE_ATTRIBUTES = (
    "co_code",
    "co_argcount",
    "co_kwonlyargcount",
    "co_posonlyargcount",
    "co_flags",
    "co_names",
    "co_varnames",
)


class NotHashableError(TypeError):
    """An object whose state cannot be read, so that others of its type look the same."""


def fitness_settings(fitness: Any) -> dict[str, Any]:
    """Settings that identify a fitness, so that a search resumes only with the same one.

    These are its attribute `settings`, with a hash of its code if its class derives from one of `hf_whittle`. Without
    this attribute, they are its name and a hash of its code and of the objects it holds: variables of a closure,
    attributes, global variables it reads.

    Returns:
        `dict`: the settings; `code` is `None` where an object cannot be hashed.
    """
    stated = getattr(fitness, "settings", None)
    if not isinstance(stated, Mapping):
        name = getattr(fitness, "__name__", type(fitness).__name__)
        return {"name": name, "code": _hash(fitness)}
    derived = any(base.__module__.partition(".")[0] == _OWN for base in type(fitness).__mro__)
    return {**stated, "code": _hash(type(fitness))} if derived and not _is_library(type(fitness)) else {**stated}


def _hash(value: Any) -> str | None:
    try:
        return _Digest().of(value).hex()
    except (NotHashableError, RecursionError):
        return None


def _is_library(value: Any) -> bool:
    """Whether a function, class or module belongs to an installed library, so that its name identifies it."""
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    if name is None or name.partition(".")[0] in (_OWN, "builtins"):
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    if name == "__main__" or file is None:
        return name != "__main__"
    path = Path(file).resolve()
    return not _INSTALLED.isdisjoint(path.parts) or any(map(path.is_relative_to, _LIBRARIES))


class _Digest:
    """Hashes values by their contents, with cycles of references."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, bytes]] = {}  # keeps the value, since ids are used again
        self._under_way: dict[int, int] = {}

    def of(self, value: Any) -> bytes:
        """Hash a value, to 16 bytes.

        Raises:
            NotHashableError: if its state cannot be read.
        """
        if value is None or type(value) in (bool, int, float, complex, str, bytes):
            return _mix(type(value).__name__.encode(), repr(value).encode())
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._under_way:  # it refers to itself
            return _mix(b"again", str(len(self._under_way) - self._under_way[id(value)]).encode())
        self._under_way[id(value)] = len(self._under_way)
        found = self._of_object(value)
        del self._under_way[id(value)]
        self._known[id(value)] = value, found
        return found

    def _of_object(self, value: Any) -> bytes:
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return self._all(type(value).__name__, value)
        if isinstance(value, set | frozenset):
            return _mix(b"set", *sorted(map(self.of, value)))
        if isinstance(value, dict | types.MappingProxyType):
            return _mix(b"dict", *sorted(_mix(self.of(name), self.of(each)) for name, each in value.items()))
        if isinstance(value, types.CodeType):
            return self.of_code(value, {})
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.MethodType):
            return self._all("method", (value.__func__, value.__self__))
        if isinstance(value, property):
            return self._all("property", (value.fget, value.fset, value.fdel))
        if isinstance(value, staticmethod | classmethod):
            return self._all(type(value).__name__, (value.__func__,))
        if isinstance(value, types.ModuleType):
            return _mix(b"module", value.__name__.encode())
        if isinstance(value, type):
            return self._of_class(value)
        return self._of_model_or_text(value) or self._of_state(value)

    def _all(self, kind: str, values: Any) -> bytes:
        return _mix(kind.encode(), *map(self.of, values))

    def _of_function(self, function: types.FunctionType) -> bytes:
        if _is_library(function):
            return _mix(b"function", f"{function.__module__}.{function.__qualname__}".encode())
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        held = (function.__defaults__, function.__kwdefaults__, cells, function.__dict__)
        return _mix(self.of_code(function.__code__, function.__globals__), *map(self.of, held))

    def of_code(self, code: types.CodeType, read_from: Mapping[str, Any]) -> bytes:
        """Hash code with the global variables that it reads."""
        constants = [
            self.of_code(each, read_from) if isinstance(each, types.CodeType) else each for each in code.co_consts
        ]
        parts = [getattr(code, name) for name in _CODE_ATTRIBUTES]
        read = {name: self._of_global(read_from[name], code.co_names) for name in code.co_names if name in read_from}
        return self._all("code", (*parts, constants, read))

    def _of_global(self, value: Any, names: tuple[str, ...]) -> bytes:
        """Hash a global variable; of a user's module, only attributes whose names the code uses."""
        if not isinstance(value, types.ModuleType) or _is_library(value):
            return self.of(value)
        return self.of({name: self._of_global(vars(value)[name], names) for name in names if name in vars(value)})

    def _of_class(self, kind: type) -> bytes:
        name = f"{kind.__module__}.{kind.__qualname__}".encode()
        if _is_library(kind):
            return _mix(b"class", name)
        skipped = ("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__")
        own = {
            name: each
            for name, each in vars(kind).items()
            if name not in skipped and not name.startswith("_abc_") and not isinstance(each, _SLOTS)
        }
        return _mix(b"class", kind.__qualname__.encode(), self.of(own), *map(self.of, kind.__bases__))

    def _of_model_or_text(self, value: Any) -> bytes | None:
        """Hash a tensor, a model or a dataset; `None` for anything else."""
        if "torch" in sys.modules:
            import torch

            if isinstance(value, torch.Tensor):
                return _of_tensor(value)
            if isinstance(value, torch.nn.Module):
                config: Any = getattr(value, "config", None)
                fields = config.to_diff_dict() if hasattr(config, "to_diff_dict") else {}
                fields.pop("transformers_version", None)
                return _mix(b"model", *map(self.of, (fields, type(value), dict(value.state_dict()))))
        if "datasets" in sys.modules:
            import datasets

            if isinstance(value, datasets.Dataset):
                return _mix(b"dataset", dataset_fingerprint(value).encode())
        return None

    def _of_state(self, value: Any) -> bytes:
        """Hash the state that pickling an object would store."""
        if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | None):
            return _mix(b"builtin", f"{value.__module__}.{value.__qualname__}".encode())
        reduce = copyreg.dispatch_table.get(type(value))  # of regular expressions, NumPy's functions and others
        try:
            state: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception as error:  # any type, since objects raise what they like
            raise NotHashableError(f"the state of a {type(value).__name__} cannot be read: {error}") from error
        if isinstance(state, str):
            wrapped = getattr(value, "__wrapped__", None)
            return _mix(b"name", state.encode(), self.of(wrapped))
        made, given, *rest = state
        later = [
            list(part) if isinstance(part, types.GeneratorType) or hasattr(part, "__next__") else part for part in rest
        ]
        return self._all("object", (made, given, later))


_SLOTS = (types.MemberDescriptorType, types.GetSetDescriptorType)


def _of_tensor(value: Any) -> bytes:
    import torch

    try:
        array: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    except (RuntimeError, NotImplementedError, TypeError) as error:  # a sparse one, or one on the meta device
        raise NotHashableError(f"the values of a tensor cannot be read: {error}") from error
    return _mix(b"tensor", f"{value.dtype}{tuple(value.shape)}".encode(), array.tobytes())


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (raises where it is empty)
    except ValueError:
        return False
    return True


def _mix(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
