# /// script
# dependencies = ["hf_whittle"]
# ///
"""Search for subnets of several sizes, and keep every evaluation; nothing is extracted or trained.

Run it offline in a minute or two on a CPU, with the bundled teacher and the Python standard library:

    python examples/search_only.py

Run it with a checkpoint from the Hub and your own text, and publish the archive as a dataset:

    python examples/search_only.py --teacher EleutherAI/pythia-410m --files "texts/**/*.txt" --block_size 1024 \
        --sizes 125e6 160e6 250e6 --output_dir search --archive_id me/pythia-410m-search

If it is interrupted, the same command goes on. OUTPUT_DIR then has the archive (search.json, candidates.jsonl), and for
each size pictures and subnet.json, which `hf-whittle extract TEACHER --subnet FOLDER` makes a student of.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer, HfArgumentParser

from hf_whittle import (
    AdditiveSearchConfig,
    AutoSuperNetForCausalLM,
    ParameterBin,
    Perplexity,
    SearchSpace,
    push_search_archive,
    search_subnets,
)
from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.demo import TEACHER


@dataclass
class ScriptArguments:
    teacher: str = field(default=TEACHER, metadata={"help": "Checkpoint to search."})
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, or patterns of them; by default the Python standard library."}
    )
    sizes: list[float] = field(
        default_factory=lambda: [0.6e6, 0.85e6, 1.2e6], metadata={"help": "Parameters of the students."}
    )
    tolerance: float = field(default=0.05, metadata={"help": "Share by which a student may be larger or smaller."})
    granularity: str = field(default="coarse", metadata={"help": "Granularity of the search space: coarse or fine."})
    block_size: int = field(default=256, metadata={"help": "Tokens in a block."})
    blocks: int = field(default=16, metadata={"help": "Held-out blocks that each candidate is evaluated on."})
    generations: int = field(default=5, metadata={"help": "Generations of the search in each bin."})
    output_dir: str = field(default="search", metadata={"help": "Folder of the archive and of the results by size."})
    archive_id: str | None = field(default=None, metadata={"help": "Dataset on the Hub to publish the archive in."})


def main() -> None:
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(script.teacher)
    documents = load_documents("python-standard-library", script.files)
    splits = split_documents(documents, {"search": 0.05, "test": 0.05}, key="name" if script.files is None else None)
    held_out = pack_documents(splits["search"], tokenizer, script.block_size)

    supernet = AutoSuperNetForCausalLM.from_pretrained(script.teacher, dtype=torch.float32)
    spread = 1 - script.tolerance, 1 + script.tolerance
    result = search_subnets(
        supernet,
        SearchSpace.from_config(supernet.config, granularity=script.granularity, layer_wise=True),
        bin=[ParameterBin(*(size * factor for factor in spread)) for size in script.sizes],
        fitness=Perplexity(supernet, held_out.select(range(min(script.blocks, len(held_out))))),
        config=AdditiveSearchConfig(generations=script.generations),
        output_dir=script.output_dir,
    )

    print(f"{len(result.evaluations)} evaluations on {result.tokens:,} tokens, {result.flops:.1e} FLOPs")
    for index, size in enumerate(script.sizes):
        in_bin = result.in_bin(index)
        folder = Path(script.output_dir) / f"{size:.0f}"
        in_bin.plot(folder)  # search.png, pareto.png, architecture.png
        in_bin.best.save_pretrained(folder)
        for evaluation in in_bin.pareto_front():
            print(f"{folder}: {evaluation.parameters:,} parameters, perplexity {evaluation.fitness:.1f}")

    archive = result.candidates.to_pandas()  # a row for each evaluation; share is that of the tokens read for it
    print(archive.groupby(["origin", "share"]).agg(evaluations=("digest", "size"), tokens=("tokens", "sum")))
    if script.archive_id is not None:
        print(push_search_archive(result, script.archive_id).commit_url)


if __name__ == "__main__":
    main()
