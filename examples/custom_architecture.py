# /// script
# dependencies = ["hf_whittle"]
# ///
"""Add an architecture from a script: StarCoder2, whose table says which axis of which weight runs along what.

Check the table on a tiny random model, offline in seconds, then search and extract a student of that:

    python examples/custom_architecture.py

Do the same with a checkpoint from the Hub and your own text:

    python examples/custom_architecture.py --teacher bigcode/starcoder2-3b --tokenizer bigcode/starcoder2-3b \
        --files "code/**/*.py" --low 2.2e9 --high 2.4e9 --output_dir starcoder2-2.3b

The students of a registered architecture load with its stock class: `stock_only=True`. To cover students whose layers
differ as well, add the table to the package, as docs/adding-an-architecture.md describes.
"""

from dataclasses import dataclass, field, replace

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Starcoder2Config,
)

from hf_whittle import (
    AutoSuperNetForCausalLM,
    EvolutionConfig,
    ParameterBin,
    SearchSpace,
    extract_subnet,
    save_student,
    search_subnets,
)
from hf_whittle.architectures import Axis, Norms, Weight, register_architecture
from hf_whittle.architectures.dimensions import CHANNELS, HEAD_CHANNELS, KEY_VALUE_HEADS, NEURONS, QUERIES, VOCABULARY
from hf_whittle.architectures.llama import ARCHITECTURE as LLAMA
from hf_whittle.cost import num_parameters
from hf_whittle.data import load_documents, pack_documents
from hf_whittle.demo import TEACHER

HEADS, KEYS = Axis(KEY_VALUE_HEADS, QUERIES, HEAD_CHANNELS), Axis(KEY_VALUE_HEADS, HEAD_CHANNELS)
MATRICES = {  # of a layer: outputs, inputs, and the norm before it
    "self_attn.q_proj": (HEADS, Axis(CHANNELS), "input_layernorm"),
    "self_attn.k_proj": (KEYS, Axis(CHANNELS), "input_layernorm"),
    "self_attn.v_proj": (KEYS, Axis(CHANNELS), "input_layernorm"),
    "self_attn.o_proj": (Axis(CHANNELS), HEADS, None),
    "mlp.c_fc": (Axis(NEURONS), Axis(CHANNELS), "post_attention_layernorm"),
    "mlp.c_proj": (Axis(CHANNELS), Axis(NEURONS), None),
}


def starcoder2_weights() -> tuple[Weight, ...]:
    layer, vocabulary, channels = "model.layers.{layer}.", Axis(VOCABULARY), Axis(CHANNELS)
    weights = [Weight("model.embed_tokens.weight", (vocabulary, channels))]
    for norm in (f"{layer}input_layernorm", f"{layer}post_attention_layernorm", "model.norm"):
        weights += [Weight(f"{norm}.weight", (channels,)), Weight(f"{norm}.bias", (channels,))]
    for name, (outputs, inputs, norm) in MATRICES.items():
        before = norm and layer + norm
        weights.append(Weight(f"{layer}{name}.weight", (outputs, inputs), is_matmul=True, norm=before))
        weights.append(Weight(f"{layer}{name}.bias", (outputs,), exists_if="use_bias"))
    head = {"is_matmul": True, "shared_if": "tie_word_embeddings", "norm": "model.norm"}
    return (*weights, Weight("lm_head.weight", (vocabulary, channels), **head))


STARCODER2 = replace(  # what is not named here is as in Llama
    LLAMA,
    model_type="starcoder2",
    prefix="Starcoder2",
    config_class="Starcoder2Config",
    model_class="Starcoder2Model",
    causal_class="Starcoder2ForCausalLM",
    norms=Norms("layer", eps="norm_epsilon"),
    weights=starcoder2_weights(),
)


@dataclass
class ScriptArguments:
    teacher: str | None = field(default=None, metadata={"help": "A StarCoder2; by default a tiny random one."})
    tokenizer: str = field(default=TEACHER, metadata={"help": "Its tokenizer."})
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, or patterns of them; by default the Python standard library."}
    )
    low: float = field(default=0.4e6, metadata={"help": "Fewest parameters of the student."})
    high: float = field(default=0.5e6, metadata={"help": "Most parameters of the student."})
    generations: int = field(default=5, metadata={"help": "Generations of the search."})
    output_dir: str = field(default="starcoder2-student", metadata={"help": "Folder of the student."})


def tiny_supernet(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    config = Starcoder2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    supernet = AutoSuperNetForCausalLM.from_config(config)
    for parameter in supernet.parameters():  # biases of 0 and norms of 1 would hide a wrong slice
        torch.nn.init.normal_(parameter, std=0.1)
    return supernet


def main() -> None:
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    register_architecture(STARCODER2)

    tokenizer = AutoTokenizer.from_pretrained(script.tokenizer)
    documents = load_documents("python-standard-library" if script.files is None else None, script.files)
    held_out = pack_documents(documents.select(range(min(8, len(documents)))), tokenizer, 64)
    held_out = held_out.select(range(min(16, len(held_out))))

    if script.teacher is None:
        supernet = tiny_supernet(tokenizer).eval()
    else:
        supernet = AutoSuperNetForCausalLM.from_pretrained(script.teacher, dtype=torch.float32)

    space = SearchSpace.from_config(supernet.config, stock_only=True)
    result = search_subnets(
        supernet,
        space,
        bin=ParameterBin(script.low, script.high),
        eval_dataset=held_out,
        config=EvolutionConfig(generations=script.generations, population_size=8, num_offspring=8),
        output_dir=script.output_dir,
    )
    student = extract_subnet(supernet, result.best)
    save_student(student, script.output_dir, search_result=result, tokenizer=tokenizer)

    # Three checks that any table must pass
    input_ids = torch.tensor(held_out["input_ids"][:2])
    stock = AutoModelForCausalLM.from_pretrained(script.output_dir, dtype=torch.float32)
    with torch.no_grad(), supernet.active_subnet(result.best):
        difference = (supernet(input_ids).logits - stock(input_ids).logits).abs().max()
    counted = num_parameters(supernet.config, result.best)
    print(f"{type(stock).__name__} of {stock.num_parameters():,} parameters, counted {counted:,}")
    print(f"largest difference between the logits of the slice and of the saved student: {difference:.1e}")


if __name__ == "__main__":
    main()
