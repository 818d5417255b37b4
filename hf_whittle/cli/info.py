"""`hf-whittle info`: say what a checkpoint, a student, a search or a store of a teacher's predictions is."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, WhittleError
from .output import Outcome, add_json

if TYPE_CHECKING:
    from ..subnet import Shape, SubnetConfig

HELP = "Say what a checkpoint, student, search or store is: sizes, subnet, costs and lineage."
EXAMPLE = "hf-whittle info my-student"
INTERRUPTED = "nothing was changed"

Facts = dict[str, Any]
"""Facts by name, in the order in which they are printed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder, or a name on the Hub")
    parser.add_argument(
        "--sequence-length", type=int, default=1024, help="length of the sequences that FLOPs are for (default: 1024)"
    )
    add_json(parser)


def main(options: argparse.Namespace) -> Outcome:
    found = described(options.source, options.sequence_length)
    return Outcome(found, in_words(found))


def described(source: str, sequence_length: int = 1024) -> dict[str, Facts]:
    """Facts of what a folder or a repository holds, by section.

    Raises:
        CheckpointError: if it holds nothing that is known, or a file is damaged.
        WhittleError: if `sequence_length` is below 1.
    """
    from ..files.sources import fetch_folder

    if sequence_length < 1:
        raise WhittleError(f"--sequence-length must be at least 1, got {sequence_length}")
    sections = _sections(sequence_length)
    folder = fetch_folder(source, [], optional=[file for file, _ in sections.values()])
    found = {
        name: _read(folder, file, describe) for name, (file, describe) in sections.items() if (folder / file).is_file()
    }
    if not any(found.values()):
        files = ", ".join(file for file, _ in sections.values())
        raise CheckpointError(f"{source} holds no checkpoint, search or store: it has none of {files}")
    return {name: facts for name, facts in found.items() if facts}


def _read(folder: Path, file: str, describe: Callable[[Path], Facts]) -> Facts:
    try:
        return describe(folder)
    except WhittleError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / file} is damaged, or of another version: {error!r}") from error


def in_words(found: dict[str, Facts]) -> str:
    """Facts as lines, with a heading for each section."""
    width = max(len(name) for facts in found.values() for name in facts)
    return "\n\n".join(
        "\n".join([section, *(f"  {name.ljust(width)}  {_in_words(value)}" for name, value in facts.items())])
        for section, facts in found.items()
    )


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _sections(sequence_length: int) -> dict[str, tuple[str, Callable[[Path], Facts]]]:
    """For each section the file that it needs, and a function that reads it from a folder."""
    from ..distillation.store.files import STORE_FILE
    from ..record.files import RESULTS_FILE
    from ..search.result import SEARCH_FILE
    from ..subnet import SUBNET_FILE

    return {
        "model": ("config.json", lambda folder: _model(folder, sequence_length)),
        "adapter": ("adapter_config.json", _adapter),
        "subnet": (SUBNET_FILE, _subnet),
        "making": (RESULTS_FILE, _making),
        "search": (SEARCH_FILE, _search),
        "store": (STORE_FILE, _store),
    }


def _model(folder: Path, sequence_length: int) -> Facts:
    import hf_whittle  # noqa: F401 (registers the classes of students)

    from ..architectures.registry import has_architecture
    from ..cost import flops_per_token, kv_cache_bytes_per_token, num_parameters, weight_bytes
    from ..files.sources import read_config
    from ..subnet import Shape

    config = read_config(folder)
    facts: Facts = {"class": ", ".join(config.architectures or ()) or config.model_type}
    if not has_architecture(config):
        return {**facts, "architecture": f"{config.model_type}, which hf_whittle has no table of"}
    shape = Shape.from_config(config)
    return {
        **facts,
        "parameters": num_parameters(config),
        "without embeddings": num_parameters(config, embeddings=False),
        "layers": shape.num_hidden_layers,
        **_sizes(shape),
        "vocabulary": config.vocab_size,
        "FLOPs per token": flops_per_token(config, sequence_length=sequence_length),
        "bytes in bfloat16": weight_bytes(config),
        "KV cache bytes per token": kv_cache_bytes_per_token(config),
        **_weights(folder),
    }


def _sizes(shape: "Shape") -> Facts:
    return {dimension.label: _size(getattr(shape, dimension.name)) for dimension in shape.dimensions}


def _size(size: int | tuple[int, ...]) -> int | str:
    """A size, or the sizes of the layers in words if they differ."""
    if isinstance(size, int) or len(set(size)) == 1:
        return size if isinstance(size, int) else size[0]
    return f"{min(size)} to {max(size)} by layer: {', '.join(map(str, size))}"


def _weights(folder: Path) -> Facts:
    """Bytes of the weights' files; nothing of a repository, of which they are not downloaded."""
    files = sorted(folder.glob("*.safetensors"))
    return {"bytes on disk": sum(file.stat().st_size for file in files)} if files else {}


def _adapter(folder: Path) -> Facts:
    from ..files.text import read_json

    values = read_json(folder / "adapter_config.json")
    names = {"peft_type": "type", "base_model_name_or_path": "of", "r": "rank", "lora_alpha": "alpha"}
    return {name: values[key] for key, name in names.items() if values.get(key) is not None}


def _subnet(folder: Path) -> Facts:
    from ..subnet import SubnetConfig

    return kept(SubnetConfig.from_pretrained(folder))


def kept(subnet: "SubnetConfig") -> Facts:
    """What a subnet keeps of each dimension."""
    layers = ", ".join(map(str, subnet.layers))
    return {"digest": subnet.digest, "layers kept": f"{len(subnet.layers)}: {layers}", **_sizes(subnet.shape)}


def _making(folder: Path) -> Facts:
    from ..record.results import Results

    results = Results.load(folder)
    facts: Facts = {}
    if results.supernet is not None and results.supernet.name:
        facts["extracted from"] = results.supernet.name
    if results.began_with is not None and results.began_with.name:
        facts["training began with"] = results.began_with.name
    if results.healing is not None:
        healing = results.healing
        facts["healed"] = healing.is_healed
        facts["perplexity before and after healing"] = (
            f"{healing.perplexity_before:.4g}, {healing.perplexity_after:.4g} ({healing.tokens:,} tokens)"
        )
    if results.teacher is not None and results.teacher.name:
        facts["teacher"] = results.teacher.name
    if results.vocabulary is not None:
        facts["vocabulary of student and teacher"] = f"{results.vocabulary.size:,}, {results.vocabulary.teacher_size:,}"
        facts["tokens per byte"] = results.vocabulary.tokens_per_byte
    for name, training in (("trained", results.student), ("baseline trained", results.baseline)):
        if training is not None and training.tokens:
            facts[f"{name} on tokens"] = training.tokens
        if training is not None and training.final_perplexity is not None:
            facts[f"{name} to perplexity"] = training.final_perplexity
        if training is not None and training.final_bits_per_byte is not None:
            facts[f"{name} to bits per byte"] = training.final_bits_per_byte
    match = results.to_match
    if match is not None and match.flops_ratio is not None:
        facts["FLOPs ratio to match the baseline"] = match.flops_ratio
    if results.environment is not None and results.environment.hf_whittle:
        facts["hf_whittle"] = results.environment.hf_whittle
    return facts


def _search(folder: Path) -> Facts:
    from ..search.result import SearchResult

    result = SearchResult.load(folder)
    settings, bins = result.settings, result.settings["bins"]
    facts: Facts = {
        "algorithm": settings["algorithm"]["name"],
        "fitness": settings["fitness"]["name"],
        "bins": "; ".join(f"{bin['cost']} {bin['low']:,.0f} to {bin['high']:,.0f}" for bin in bins),
        "evaluations": len(result.evaluations),
        "tokens": result.tokens,
        "FLOPs": result.flops,
    }
    if not result.answers:
        return {**facts, "best": "none yet"}
    best = result.best_evaluation
    found = {f"best {name}": value for name, value in kept(best.subnet).items()}
    return {**facts, "best fitness": best.fitness, "best parameters": best.parameters, **found}


def _store(folder: Path) -> Facts:
    from ..distillation.store.files import read_settings

    settings, is_complete = read_settings(folder)
    tokens = settings.blocks * settings.block_size
    return {
        "kept of the teacher": settings.encoding.in_words,
        "complete": is_complete,
        "tokens": tokens,
        "block size": settings.block_size,
        "temperature": settings.temperature,
        "bytes per token": settings.encoding.bytes_per_token,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    }
