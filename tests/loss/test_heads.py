"""Output layers: which of them the fused loss can stand in for."""

import pytest
from small_models import draw_subnet
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from hf_whittle.loss.heads import output_module

CONFIG = GPTNeoXConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


class Subclass(nn.Linear):
    """A linear layer by another name, as FSDP2 makes of one."""


class Scaled(nn.Linear):
    """A layer whose output is not that of its matrix."""

    def forward(self, hidden_states):
        return super().forward(hidden_states) / 2


@pytest.mark.parametrize("layer, is_plain", [(nn.Linear, True), (Subclass, True), (Scaled, False)])
def test_output_module_is_a_linear_layer_by_any_name_and_nothing_more(layer, is_plain):
    model = GPTNeoXForCausalLM(CONFIG)
    model.set_output_embeddings(layer(16, 40, bias=False))
    assert output_module(model) is (model.lm_head if is_plain else None)


def test_fused_loss_in_a_head_sharded_by_fsdp2_has_the_gradients_of_one_that_is_not(run_python):
    """Norm and head share a unit, as accelerate shards them; the group has one process."""
    script = """
        import copy, tempfile, warnings
        import torch
        from torch.distributed.fsdp import fully_shard
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
        from hf_whittle.loss.fused import fused_distillation_loss
        from hf_whittle.loss.heads import head_of, in_place_of, output_module
        from hf_whittle.loss.targets import DenseTargets, Head

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
            head = output_module(model)

            def loss(states):
                return fused_distillation_loss(
                    states.flatten(0, 1), head_of(head), targets, input_ids.flatten()
                ).total.reshape(1, 1, 1)

            with in_place_of(head, loss):
                model(input_ids=input_ids, use_cache=False).logits.sum().backward()
            gradients.append([getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters()])
        print(type(head).__name__, all(torch.allclose(*pair, atol=1e-6) for pair in zip(*gradients, strict=True)))
        torch.distributed.destroy_process_group()
    """
    assert run_python(script) == "FSDPLinear True\n"


def test_output_module_of_each_architecture_is_its_head(each_supernet):
    assert output_module(each_supernet) is each_supernet.lm_head
    with each_supernet.active_subnet(draw_subnet(each_supernet.config, 2)):
        assert output_module(each_supernet) is each_supernet.lm_head


def test_capped_logits_have_no_output_module_not_even_where_weights_are_sharded(make_stock, monkeypatch):
    capped = make_stock(model_type="gemma3_text", final_logit_softcapping=3.0)
    assert output_module(capped) is None
    monkeypatch.setattr("hf_whittle.loss.heads.is_partitioned", lambda parameter: True)
    plain = make_stock(model_type="gemma3_text")
    assert output_module(capped) is None and output_module(plain) is plain.lm_head
