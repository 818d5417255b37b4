# /// script
# dependencies = ["hf_whittle"]
# ///
"""Search by a fitness of your own: the share of held-out tokens that a subnet does not predict.

Run it offline in a minute or two on a CPU, with the bundled teacher and the Python standard library:

    python examples/custom_fitness.py

Run it with a checkpoint from the Hub and your own text:

    python examples/custom_fitness.py --teacher EleutherAI/pythia-410m --files "texts/**/*.txt" --block_size 1024 \
        --low 150e6 --high 165e6 --output_dir student

A fitness is any function of a `SubnetConfig`, the lower the better: `fitness=lambda subnet: ...` will do. A subclass of
`TokenFitness`, as here, also counts what it costs, and can evaluate a candidate on a share of the tokens, so that
algorithms that filter candidates on few tokens save time.
"""

from dataclasses import dataclass, field

import torch
from transformers import AutoTokenizer, HfArgumentParser

from hf_whittle import (
    AdditiveSearchConfig,
    AutoSuperNetForCausalLM,
    ParameterBin,
    Perplexity,
    SearchSpace,
    SubnetConfig,
    extract_subnet,
    save_student,
    search_subnets,
)
from hf_whittle.data import load_documents, pack_documents, split_documents
from hf_whittle.demo import TEACHER
from hf_whittle.fitness.base import TokenFitness


class NextTokenErrors(TokenFitness):
    """Share of tokens that are not the most likely one by the subnet's prediction."""

    name = "next-token-errors"

    @torch.no_grad()
    def __call__(self, subnet: SubnetConfig, share: float = 1.0) -> float:
        errors: list[torch.Tensor] = []
        with self.supernet.active_subnet(subnet):
            for input_ids in self.input_ids[self.rows(share)].split(self.blocks_at_a_time):
                input_ids = input_ids.to(self.supernet.device)
                predicted = self.supernet(input_ids=input_ids, use_cache=False).logits[:, :-1].argmax(-1)
                errors.append((predicted != input_ids[:, 1:]).float().mean(1))
        return torch.cat(errors).mean().item()


@dataclass
class ScriptArguments:
    teacher: str = field(default=TEACHER, metadata={"help": "Checkpoint to extract the student from."})
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, or patterns of them; by default the Python standard library."}
    )
    low: float = field(default=0.80e6, metadata={"help": "Fewest parameters of the student."})
    high: float = field(default=0.88e6, metadata={"help": "Most parameters of the student."})
    block_size: int = field(default=256, metadata={"help": "Tokens in a block."})
    generations: int = field(default=5, metadata={"help": "Generations of each search."})
    output_dir: str = field(default="student", metadata={"help": "Folder of the student."})


def main() -> None:
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    tokenizer = AutoTokenizer.from_pretrained(script.teacher)
    documents = load_documents("python-standard-library", script.files)
    splits = split_documents(documents, {"search": 0.05, "test": 0.05}, key="name" if script.files is None else None)
    held_out = pack_documents(splits["search"], tokenizer, script.block_size)
    held_out = held_out.select(range(min(16, len(held_out))))

    supernet = AutoSuperNetForCausalLM.from_pretrained(script.teacher, dtype=torch.float32)
    space = SearchSpace.from_config(supernet.config, layer_wise=True)
    fitnesses = [NextTokenErrors(supernet, held_out), Perplexity(supernet, held_out)]
    results = [
        search_subnets(
            supernet,
            space,
            bin=ParameterBin(script.low, script.high),
            fitness=fitness,
            config=AdditiveSearchConfig(generations=script.generations),
        )
        for fitness in fitnesses
    ]
    for found_by, result in zip(fitnesses, results, strict=True):
        values = ", ".join(f"{fitness.name} {fitness(result.best):.3f}" for fitness in fitnesses)
        print(f"best by {found_by.name}: {values}")
    save_student(
        extract_subnet(supernet, results[0].best), script.output_dir, search_result=results[0], tokenizer=tokenizer
    )


if __name__ == "__main__":
    main()
