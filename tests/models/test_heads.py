"""Output layers: which of them a function can stand in for."""

import pytest
import torch
from small_models import draw_subnet
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from hf_whittle.architectures.registry import get_architecture
from hf_whittle.loss.divergences import LossWeights, naive_distillation_loss
from hf_whittle.loss.fused import fused_distillation_loss
from hf_whittle.loss.targets import dense_targets
from hf_whittle.models import heads
from hf_whittle.models.heads import OutputLayer, head_of, in_place_of, output_layer

CONFIG = GPTNeoXConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


class Subclass(nn.Linear):
    """A linear layer by another name, as FSDP2 makes of one."""


class Scaled(nn.Linear):
    """A layer whose output is not that of its matrix."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) / 2


@pytest.mark.parametrize("layer, is_plain", [(nn.Linear, True), (Subclass, True), (Scaled, False)])
def test_output_layer_is_a_linear_layer_by_any_name_and_nothing_more(layer, is_plain):
    model = GPTNeoXForCausalLM(CONFIG)
    model.set_output_embeddings(layer(16, 40, bias=False))
    assert output_layer(model) == (OutputLayer(model.lm_head) if is_plain else None)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_scale_of_logits_is_that_of_the_architecture(make_stock, monkeypatch, is_sharded):
    monkeypatch.setattr(heads, "is_partitioned", lambda parameter: is_sharded)
    scaled = make_stock(model_type="cohere", logit_scale=0.3)
    assert output_layer(scaled) == OutputLayer(scaled.lm_head, 0.3)
    scaled.lm_head.bias = nn.Parameter(torch.ones(99))
    assert output_layer(scaled) is None


def test_loss_in_place_of_the_output_layer_is_that_of_scaled_logits(make_stock, input_ids):
    student, teacher = (make_stock(seed, model_type="cohere", logit_scale=0.3) for seed in (0, 1))
    with torch.no_grad():
        targets = dense_targets(teacher, output_layer(teacher), input_ids=input_ids)
        of_teacher = teacher(input_ids).logits.flatten(0, 1)
    torch.testing.assert_close(targets.logits(torch.arange(36), 99), of_teacher)
    labels, layer, weights = input_ids.flatten(), output_layer(student), LossWeights(0.5, 1.0)
    expected = naive_distillation_loss(student(input_ids).logits.flatten(0, 1), of_teacher, labels, weights).total

    def loss(states):
        parts = fused_distillation_loss(states.flatten(0, 1), head_of(layer), targets, labels, weights)
        return parts.total.view(1, 1, 1)

    with in_place_of(layer, loss):
        found = student(input_ids).logits.sum()
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(total, list(student.parameters())) for total in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fused_loss_in_a_head_sharded_by_fsdp2_has_the_gradients_of_one_that_is_not(run_warm):
    """Norm and head share a unit, as accelerate shards them; the group has one process."""
    script = """
        import copy, tempfile, warnings
        import torch
        from torch.distributed.fsdp import fully_shard
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
        from hf_whittle.loss.fused import fused_distillation_loss
        from hf_whittle.loss.targets import DenseTargets
        from hf_whittle.models.heads import Head, head_of, in_place_of, output_layer

        warnings.simplefilter("ignore")
        store = f"file://{tempfile.mkdtemp()}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        torch.manual_seed(0)
        whole = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=40, **sizes))
        sharded = copy.deepcopy(whole)
        fully_shard([sharded.gpt_neox.final_layer_norm, sharded.lm_head], mesh=mesh, reshard_after_forward=False)
        fully_shard(sharded, mesh=mesh)
        input_ids = torch.arange(24).view(2, 12)
        targets = DenseTargets(torch.randn(24, 16), Head(torch.randn(40, 16)))
        gradients = []
        for model in (whole, sharded):
            layer = output_layer(model)

            def loss(states):
                return fused_distillation_loss(
                    states.flatten(0, 1), head_of(layer), targets, input_ids.flatten()
                ).total.reshape(1, 1, 1)

            with in_place_of(layer, loss):
                model(input_ids=input_ids, use_cache=False).logits.sum().backward()
            gradients.append([getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters()])
        is_same = all(torch.allclose(*pair, atol=1e-6) for pair in zip(*gradients, strict=True))
        print(type(layer.module).__name__, is_same)
        torch.distributed.destroy_process_group()
    """
    assert run_warm(script) == "FSDPLinear True\n"


def test_output_layer_of_each_architecture_is_its_head(each_supernet):
    scale = get_architecture(each_supernet.config).logit_factor(each_supernet.config)
    expected = OutputLayer(each_supernet.lm_head, scale)
    assert output_layer(each_supernet) == expected
    with each_supernet.active_subnet(draw_subnet(each_supernet.config, 0)):
        assert output_layer(each_supernet) == expected


@pytest.mark.parametrize("is_sharded", [False, True])
def test_capped_logits_have_no_output_layer_not_even_where_weights_are_sharded(make_stock, monkeypatch, is_sharded):
    monkeypatch.setattr(heads, "is_partitioned", lambda parameter: is_sharded)
    capped = make_stock(model_type="gemma3_text", final_logit_softcapping=3.0)
    plain = make_stock(model_type="gemma3_text")
    assert output_layer(capped) is None and output_layer(plain) == OutputLayer(plain.lm_head)
