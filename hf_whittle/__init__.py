"""Small language models from large ones: sub-network search, extraction and distillation for `transformers`."""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register

if TYPE_CHECKING:
    from .cost import ParameterBin
    from .distillation.config import DistillationConfig
    from .distillation.trainer import DistillationTrainer
    from .extraction import extract_subnet
    from .hub.card import SubnetModelCardData
    from .models.gpt_neox.configuration_whittle_gpt_neox import WhittleGPTNeoXConfig
    from .models.gpt_neox.modeling_whittle_gpt_neox import WhittleGPTNeoXForCausalLM
    from .models.gpt_neox.supernet import GPTNeoXSuperNetForCausalLM
    from .search.evolution import EvolutionConfig
    from .search.result import SearchResult
    from .search.runner import search_subnets
    from .search_space import SearchSpace
    from .subnet import SubnetConfig

__version__ = "0.1.0.dev0"

_MODULES = {
    "DistillationConfig": "distillation.config",
    "DistillationTrainer": "distillation.trainer",
    "EvolutionConfig": "search.evolution",
    "GPTNeoXSuperNetForCausalLM": "models.gpt_neox.supernet",
    "ParameterBin": "cost",
    "SearchResult": "search.result",
    "SearchSpace": "search_space",
    "SubnetConfig": "subnet",
    "SubnetModelCardData": "hub.card",
    "WhittleGPTNeoXConfig": "models.gpt_neox.configuration_whittle_gpt_neox",
    "WhittleGPTNeoXForCausalLM": "models.gpt_neox.modeling_whittle_gpt_neox",
    "extract_subnet": "extraction",
    "search_subnets": "search.runner",
}

__all__ = [
    "DistillationConfig",
    "DistillationTrainer",
    "EvolutionConfig",
    "GPTNeoXSuperNetForCausalLM",
    "ParameterBin",
    "SearchResult",
    "SearchSpace",
    "SubnetConfig",
    "SubnetModelCardData",
    "WhittleGPTNeoXConfig",
    "WhittleGPTNeoXForCausalLM",
    "extract_subnet",
    "search_subnets",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register()
