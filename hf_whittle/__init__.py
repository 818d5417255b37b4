"""Small language models from large ones: sub-network search, extraction and distillation for `transformers`."""

import importlib
from typing import TYPE_CHECKING, Any

from .architectures.registry import class_modules
from .models.registration import register

if TYPE_CHECKING:
    from .cost.bins import FlopsBin, KVCacheBin, ParameterBin, WeightBytesBin
    from .cost.latency import LatencyBin, LatencyModel
    from .cost.timing import measure_latency
    from .distillation.config import DistillationConfig
    from .distillation.store.reader import LogitStore
    from .distillation.store.writer import store_targets
    from .distillation.trainer import DistillationTrainer
    from .extraction.extraction import extract_subnet
    from .fitness.bits_per_byte import BitsPerByte
    from .fitness.divergence import KLDivergence
    from .fitness.healed import HealedPerplexity
    from .fitness.perplexity import Perplexity
    from .fitness.probe import Probe, ProbeConfig
    from .fitness.staged import StagedFitness
    from .healing.config import HealingConfig
    from .hub.archive import push_search_archive
    from .hub.card import SubnetModelCardData
    from .hub.push import push_subnet_to_hub
    from .hub.saving import save_student
    from .importance.scores import ImportanceScores, score_importance
    from .importance.sorting import sort_by_importance
    from .models.supernets import AutoSuperNetForCausalLM
    from .search.algorithms.additive import AdditiveSearchConfig
    from .search.algorithms.evolution import EvolutionConfig
    from .search.algorithms.local import LocalSearchConfig
    from .search.algorithms.multi_fidelity import MultiFidelityConfig
    from .search.algorithms.nsga2 import NSGA2Config
    from .search.algorithms.random import RandomSearchConfig
    from .search.algorithms.regularized import RegularizedEvolutionConfig
    from .search.algorithms.surrogate import SurrogateSearchConfig
    from .search.result import SearchResult
    from .search.runner import search_subnets
    from .space.search_space import SearchSpace
    from .subnet import SubnetConfig
    from .training.recording import RecordTraining
    from .training.subnet_search import SubnetSearchCallback
    from .training.supernet_trainer import SupernetConfig, SupernetTrainer

__version__ = "0.1.0.dev0"

_MODULES = {
    "AdditiveSearchConfig": "search.algorithms.additive",
    "AutoSuperNetForCausalLM": "models.supernets",
    "BitsPerByte": "fitness.bits_per_byte",
    "DistillationConfig": "distillation.config",
    "DistillationTrainer": "distillation.trainer",
    "EvolutionConfig": "search.algorithms.evolution",
    "FlopsBin": "cost.bins",
    "HealedPerplexity": "fitness.healed",
    "HealingConfig": "healing.config",
    "ImportanceScores": "importance.scores",
    "KLDivergence": "fitness.divergence",
    "KVCacheBin": "cost.bins",
    "LatencyBin": "cost.latency",
    "LatencyModel": "cost.latency",
    "LocalSearchConfig": "search.algorithms.local",
    "LogitStore": "distillation.store.reader",
    "MultiFidelityConfig": "search.algorithms.multi_fidelity",
    "NSGA2Config": "search.algorithms.nsga2",
    "ParameterBin": "cost.bins",
    "Perplexity": "fitness.perplexity",
    "Probe": "fitness.probe",
    "ProbeConfig": "fitness.probe",
    "RandomSearchConfig": "search.algorithms.random",
    "RecordTraining": "training.recording",
    "RegularizedEvolutionConfig": "search.algorithms.regularized",
    "SearchResult": "search.result",
    "SearchSpace": "space.search_space",
    "StagedFitness": "fitness.staged",
    "SubnetConfig": "subnet",
    "SubnetModelCardData": "hub.card",
    "SubnetSearchCallback": "training.subnet_search",
    "SupernetConfig": "training.supernet_trainer",
    "SupernetTrainer": "training.supernet_trainer",
    "SurrogateSearchConfig": "search.algorithms.surrogate",
    "WeightBytesBin": "cost.bins",
    "extract_subnet": "extraction.extraction",
    "measure_latency": "cost.timing",
    "push_search_archive": "hub.archive",
    "push_subnet_to_hub": "hub.push",
    "save_student": "hub.saving",
    "score_importance": "importance.scores",
    "search_subnets": "search.runner",
    "sort_by_importance": "importance.sorting",
    "store_targets": "distillation.store.writer",
}

__all__ = [
    "AdditiveSearchConfig",
    "AutoSuperNetForCausalLM",
    "BitsPerByte",
    "DistillationConfig",
    "DistillationTrainer",
    "EvolutionConfig",
    "FlopsBin",
    "HealedPerplexity",
    "HealingConfig",
    "ImportanceScores",
    "KLDivergence",
    "KVCacheBin",
    "LatencyBin",
    "LatencyModel",
    "LocalSearchConfig",
    "LogitStore",
    "MultiFidelityConfig",
    "NSGA2Config",
    "ParameterBin",
    "Perplexity",
    "Probe",
    "ProbeConfig",
    "RandomSearchConfig",
    "RecordTraining",
    "RegularizedEvolutionConfig",
    "SearchResult",
    "SearchSpace",
    "StagedFitness",
    "SubnetConfig",
    "SubnetModelCardData",
    "SubnetSearchCallback",
    "SupernetConfig",
    "SupernetTrainer",
    "SurrogateSearchConfig",
    "WeightBytesBin",
    "extract_subnet",
    "measure_latency",
    "push_search_archive",
    "push_subnet_to_hub",
    "save_student",
    "score_importance",
    "search_subnets",
    "sort_by_importance",
    "store_targets",
]


_MODULES |= class_modules()
__all__ = sorted([*__all__, *class_modules()])


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
