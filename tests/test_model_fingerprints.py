"""Fingerprints of models: any changed value, scale or buffer gives another one."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from hf_whittle.distillation.teacher import load_teacher
from hf_whittle.fingerprints import model_fingerprint


def test_fingerprint_knows_one_changed_value_and_the_dtype(supernet):
    changed = copy.deepcopy(supernet)
    before = model_fingerprint(changed)
    assert before == model_fingerprint(supernet)
    with torch.no_grad():
        changed.gpt_neox.layers[1].mlp.dense_4h_to_h.weight[3, 5] += 1e-3
    assert model_fingerprint(changed) != before
    assert model_fingerprint(copy.deepcopy(supernet).double()) != before
    half = copy.deepcopy(supernet).bfloat16()
    assert model_fingerprint(supernet, torch.bfloat16) == model_fingerprint(half) != before


@pytest.mark.parametrize("bits", [4, 8])
def test_fingerprint_of_a_quantized_model_knows_its_scales(make_stock, tmp_path, bits):
    make_stock().save_pretrained(tmp_path)
    models = [load_teacher(tmp_path, {f"load_in_{bits}bit": True}) for _ in range(2)]
    before = model_fingerprint(models[0])
    assert model_fingerprint(models[1]) == before
    weight = models[1].gpt_neox.layers[1].mlp.dense_4h_to_h.weight
    (weight.quant_state.absmax if bits == 4 else weight.SCB)[0] *= 2
    assert model_fingerprint(models[1]) != before


def test_fingerprint_knows_buffers_also_offloaded_ones():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "qk_rope_head_dim": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "v_head_dim": 8, "qk_nope_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "first_k_dense_replace": 1, "num_hidden_layers": 2}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(vocab_size=99, **sizes, **heads, **experts, **ranks))
    before = model_fingerprint(model)
    assert model_fingerprint(cpu_offload(copy.deepcopy(model), torch.device("cpu"), offload_buffers=True)) == before
    model.model.layers[1].mlp.gate.e_score_correction_bias += 1
    assert model_fingerprint(model) != before
