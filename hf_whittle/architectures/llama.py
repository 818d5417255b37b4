"""The table of Llama, and of models with its architecture, such as SmolLM2 and TinyLlama."""

from . import rotary_decoder as decoder
from .table import Architecture, Norms

ARCHITECTURE = Architecture(
    model_type="llama",
    prefix="Llama",
    config_class="LlamaConfig",
    model_class="LlamaModel",
    causal_class="LlamaForCausalLM",
    dimensions=decoder.DIMENSIONS,
    weights=decoder.weights(input_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    layers="model.layers",
    norms=Norms("rms", eps="rms_norm_eps"),
    heads=decoder.ATTENDING,
    keys=decoder.KEYS,
    read_sizes=decoder.read_sizes,
    write_sizes=decoder.write_sizes,
    module_sizes=decoder.module_sizes,
    stock_problem=decoder.heads_must_divide_channels,
    oldest_transformers=decoder.oldest_transformers,
    rotary="model.rotary_emb",
    rotated=decoder.all_channels_rotated,
    former_settings=decoder.former_rotary_settings,
    former_names=("rope_theta", "rope_scaling"),
)
