"""Tests that transformers has for every model, for a student whose layers differ: constants and helpers."""

import copy

import torch

from hf_whittle import WhittleGPTNeoXForCausalLM

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
#   feed_forward_chunking                GPT-NeoX does not chunk its feed-forward
#   resize_position_vector_embeddings    positions are rotary
#   sdpa_matches_eager_sliding_window    GPT-NeoX has no sliding window
#   save_load_keys_to_ignore_on_save     the class has none
#   reverse_loading_mapping              only the output matrix is renamed; it has tests of its own
#   return_dict=False in the configuration                      fails for stock GPT-NeoX of transformers 5.23 as well
#   head masking, head pruning, torchscript, torch.fx, fast init                  gone from transformers 5
#   num_layers_is_small, model_is_small, generation_tester_mixin_inheritance      about the test suite itself
#   quantization, kernels from the Hub   need libraries of their own (bitsandbytes, kernels, ...)
# GenerationTesterMixin
#   contrastive search, group and constrained beam search, DoLa       moved to code that is downloaded from the Hub
#   cache_implementation="offloaded*"    needs a GPU
#   cache_implementation="quantized" with quanto or hqq               those are not dependencies; fp8 is tested below
#   generate_batch, "paged|*" attention  continuous batching of transformers 5.23 needs layers that are alike
#   custom_generate, watermarks, stop strings, guidance               work on tokens and logits, not on the model

CLOSE = {"rtol": 0, "atol": 1e-5}
HEADS = [2, 4, 1]
VOCABULARY = 99
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
    return WhittleGPTNeoXForCausalLM(config).eval()


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
