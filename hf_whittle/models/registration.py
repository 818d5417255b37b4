"""Register our classes with `AutoConfig` and `AutoModel*` as soon as a program imports these.

Transformers' configurations and auto classes import each other, so registration waits until none of the modules
concerned is halfway through its import.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ..architectures.registry import ARCHITECTURES, get_architecture
from ..compat.transformers import CONFIGURATION_AUTO, MODELING_AUTO
from .students import student_classes, student_config_class

_OURS = "hf_whittle.models.students."


def register() -> None:
    """Register with auto classes that are imported already now, and with the others once they are."""
    watcher = next((finder for finder in sys.meta_path if isinstance(finder, _Watcher)), None)
    if watcher is None:
        watcher = _Watcher()
        sys.meta_path.insert(0, watcher)
    watcher.settle()


def _register_with_imported() -> None:
    architectures = [get_architecture(model_type) for model_type in ARCHITECTURES]
    if CONFIGURATION_AUTO in sys.modules:
        auto_config = sys.modules[CONFIGURATION_AUTO].AutoConfig
        for architecture in architectures:
            config = student_config_class(architecture)
            auto_config.register(config.model_type, config, exist_ok=True)
    if MODELING_AUTO in sys.modules:
        auto = sys.modules[MODELING_AUTO]
        for architecture in architectures:
            own = student_classes(architecture)
            auto.AutoModel.register(own.config, own.model, exist_ok=True)
            auto.AutoModelForCausalLM.register(own.config, own.causal, exist_ok=True)


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds modules as Python does, and registers after the outermost import of a watched module."""

    def __init__(self) -> None:
        self.depth = 0
        self._registered: set[str] = set()

    def settle(self) -> None:
        """Register, unless a watched module is halfway through its import or nothing is new."""
        present = {CONFIGURATION_AUTO, MODELING_AUTO} & sys.modules.keys()
        if self.depth == 0 and present != self._registered:
            self.depth += 1
            try:
                _register_with_imported()
                self._registered = present
            finally:
                self.depth -= 1

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(("transformers.", _OURS)):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(importlib.abc.Loader):
    """Wraps a watched module's own loader to count how deeply imports are nested."""

    def __init__(self, loader: Any, watcher: _Watcher):
        self._loader = loader
        self._watcher = watcher

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._watcher.depth += 1
        try:
            self._loader.exec_module(module)
        finally:
            self._watcher.depth -= 1
        self._watcher.settle()
