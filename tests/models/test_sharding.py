"""Models whose parameters are spread over processes: one notion of them, held to each way to shard."""

import copy
import re

import pytest
import torch

from hf_whittle import HealedPerplexity, KLDivergence, Perplexity, Probe, ProbeConfig
from hf_whittle.errors import WeightsError, WhittleError
from hf_whittle.experimental.proxies import Synflow
from hf_whittle.fingerprints import model_fingerprint
from hf_whittle.models.placement import is_sharded
from hf_whittle.models.weights import check_plain_weights

ZERO3 = {"ds_id": 0, "ds_shape": torch.Size([99, 32]), "ds_tensor": torch.zeros(1584)}
REFUSED = "the weights of this GPTNeoXSuperNetForCausalLM are sharded by FSDP1 or DeepSpeed ZeRO-3 and no process has"


def mark(parameter, attributes):
    for name, value in attributes.items():
        setattr(parameter, name, value)


@pytest.fixture
def zero3(supernet):
    """A super-network with the attributes and the empty data that DeepSpeed ZeRO-3 gives to parameters."""
    model = copy.deepcopy(supernet)
    for parameter in model.parameters():
        sizes = {"ds_id": id(parameter), "ds_shape": parameter.shape, "ds_tensor": parameter.detach().flatten()}
        mark(parameter, sizes)
        parameter.data = torch.empty(0)
    return model


@pytest.mark.parametrize("attributes", [ZERO3, {"_is_flat_param": True}], ids=["ZeRO-3", "FSDP1"])
def test_one_sharded_parameter_is_a_sharded_model_without_a_fingerprint(supernet, attributes):
    model = copy.deepcopy(supernet)
    assert not is_sharded(model)
    mark(model.gpt_neox.embed_in.weight, attributes)
    assert is_sharded(model)
    with pytest.raises(WeightsError, match=re.escape(REFUSED)):
        model_fingerprint(model)


def test_whole_shape_of_empty_shards_is_checked(zero3):
    check_plain_weights(zero3)
    zero3.gpt_neox.embed_in.weight.ds_shape = torch.Size([98, 32])
    with pytest.raises(WeightsError, match=re.escape("has the shape (98, 32), the configuration says (99, 32)")):
        check_plain_weights(zero3)


def test_fitnesses_of_empty_shards_run_together_or_are_refused(zero3, input_ids):
    fitness = Perplexity(zero3, input_ids)
    assert fitness.is_sharded
    with pytest.raises(WeightsError, match=re.escape(REFUSED)):
        _ = fitness.settings
    with pytest.raises(WeightsError, match=re.escape(REFUSED)):
        KLDivergence(zero3, input_ids)
    with pytest.raises(WhittleError, match="healed-perplexity needs the whole model in each process"):
        HealedPerplexity(zero3, input_ids, input_ids)
    with pytest.raises(WhittleError, match="needs the whole super-network in each process"):
        Probe(zero3, input_ids, input_ids, ProbeConfig(steps=1, batch_size=2))
    with pytest.raises(WhittleError, match="whole"):
        Synflow(zero3)


@pytest.mark.slow
def test_models_that_torch_shards_are_recognized_and_evaluated_whole(run_warm, supernet, tmp_path):
    """FSDP2, and FSDP1 with its flat and its original parameters, each on a group of one process."""
    supernet.save_pretrained(tmp_path)
    script = """
        import sys, warnings
        import torch
        from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
        from hf_whittle import GPTNeoXSuperNetForCausalLM
        from hf_whittle.errors import WeightsError
        from hf_whittle.evaluation import cross_entropy
        from hf_whittle.fingerprints import model_fingerprint
        from hf_whittle.models.placement import is_sharded

        warnings.simplefilter("ignore")
        folder, store = sys.argv[1:]
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        mesh, cpu = torch.distributed.device_mesh.init_device_mesh("cpu", (1,)), torch.device("cpu")
        input_ids = torch.arange(60).view(3, 20)

        def load():
            return GPTNeoXSuperNetForCausalLM.from_pretrained(folder).eval()

        whole, sharded = load(), load()
        fully_shard(sharded, mesh=mesh)
        print(is_sharded(whole), is_sharded(sharded), model_fingerprint(whole) == model_fingerprint(sharded))
        print(abs(cross_entropy(whole, input_ids, 2) - cross_entropy(sharded, input_ids, 2)) < 1e-6)
        for keeps_parameters in (False, True):
            model = load()
            wrapper = FullyShardedDataParallel(model, use_orig_params=keeps_parameters, device_id=cpu)
            try:
                model_fingerprint(model)
            except WeightsError as error:
                print(is_sharded(model), is_sharded(wrapper), "sharded by FSDP1" in str(error))
        torch.distributed.destroy_process_group()
    """
    assert run_warm(script, tmp_path, tmp_path / "store").split() == ["False", *["True"] * 9]
