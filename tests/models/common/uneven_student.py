"""Tests that transformers has for every model, for students whose layers differ: constants and helpers."""

import copy
from types import SimpleNamespace

import torch

from hf_whittle.architectures.dimensions import NEURONS
from hf_whittle.architectures.registry import get_architecture

# The sections follow `ModelTesterMixin`, `ConfigTester`, `TrainingTesterMixin` and `GenerationTesterMixin` of
# transformers. Their tests without a counterpart here, and the reason:
#
# ModelTesterMixin
#   flash_attn_*, *_can_dispatch_on_flash, *padding_matches_padding_free* with flash attention   needs a GPU
#   flex_attention_with_grads            flex attention has no backward on a CPU; its forward is tested below
#   cpu_offload, model_parallelism, multi_gpu_data_parallel_forward              needs a GPU, or two
#   disk_offload_bin                     students are saved as safetensors only
#   tensor and expert parallel tests     there are no plans: heads differ by layer
#   *_composite_models, *_subconfig_*, vision, audio, encoder-decoder tests       a student is one decoder
#   problem_types, sequence and token classification            a student has only its language modeling head
#   feed_forward_chunking                no architecture here chunks its feed-forward
#   resize_position_vector_embeddings    positions are rotary
#   sdpa_matches_eager_sliding_window    sliding windows are in tests/models/test_student.py
#   save_load_keys_to_ignore_on_save     the class has none
#   reverse_loading_mapping              only one output matrix is renamed; it has tests of its own
#   return_dict=False in the configuration                      fails for stock models of transformers 5.23 as well
#   head masking, head pruning, torchscript, torch.fx, fast init                  gone from transformers 5
#   num_layers_is_small, model_is_small, generation_tester_mixin_inheritance      about the test suite itself
#   quantization, kernels from the Hub   need libraries of their own (bitsandbytes, kernels, ...)
# GenerationTesterMixin
#   contrastive search, group and constrained beam search, DoLa       moved to code that is downloaded from the Hub
#   cache_implementation="offloaded*"    needs a GPU
#   cache_implementation="quantized" with quanto or hqq               those are not dependencies; fp8 is tested below
#   generate_batch, "paged|*" attention  continuous batching of transformers 5.23 needs layers that are alike
#   custom_generate, watermarks, stop strings, guidance               work on tokens and logits, not on the model

CLOSE = {"rtol": 1e-5, "atol": 2e-5}
VOCABULARY = 99
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
SETTINGS = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 4, "use_sliding_window": False},
    "qwen3": {**GROUPED, "use_sliding_window": False},
    "cohere": {**GROUPED, "tie_word_embeddings": False},
    "gemma3_text": {**GROUPED, "sliding_window": 64, "tie_word_embeddings": False},
    "gpt2": {"tie_word_embeddings": False},
    "opt": {"tie_word_embeddings": False},
}
"""Settings of the super-network beside those of all tests."""
MASKS = {
    "no padding": [[1] * 12] * 3,
    "left padding": [[1] * 12, [0] * 3 + [1] * 9, [0] * 7 + [1] * 5],
    "right padding": [[1] * 12, [1] * 9 + [0] * 3, [1] * 5 + [0] * 7],
}


def first(model, *inputs, **settings):
    """Logits or hidden states, without gradients."""
    with torch.no_grad():
        return model(*inputs, **settings)[0]


def anew(student, **changes):
    """A student of the same sizes with fresh weights and other settings."""
    config = copy.deepcopy(student.config)
    for name, value in changes.items():
        setattr(config, name, value)
    return type(student)(config).eval()


def heads_of(model):
    return [layer.num_attention_heads for layer in model.config.per_layer_config]


def key_value_heads_of(model):
    return [getattr(layer, "num_key_value_heads", layer.num_attention_heads) for layer in model.config.per_layer_config]


def layers_of(model):
    """The list of layers of a model, with or without a head."""
    return model.base_model.get_submodule(get_architecture(model.config).layers.partition(".")[2])


ATTENDING = ("attention", "self_attn", "attn")
"""Names of attention in a layer."""


def attention_of(layer):
    return next(getattr(layer, name) for name in ATTENDING if hasattr(layer, name))


def names_of(model):
    """Names of modules: the embedding, the first matrix of neurons of layer 1, and the norm after the last layer."""
    weights = get_architecture(model.config).weights
    neurons = next(weight for weight in weights if weight.is_matmul and NEURONS in weight.outputs.dimensions)
    return SimpleNamespace(
        embedding=weights[0].module, neurons=neurons.module.format(layer=1), norm=str(weights[-1].norm)
    )


def norm_of(model):
    return model.get_submodule(names_of(model).norm)


def gradients(model, input_ids, **inputs):
    model.zero_grad()
    model(input_ids, labels=input_ids, **inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_weights(model, other):
    theirs = other.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def greedy(model, input_ids, **settings):
    """Six new tokens each, unless the settings say otherwise."""
    settings = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 6, "do_sample": False} | settings
    return model.generate(input_ids, **settings)
