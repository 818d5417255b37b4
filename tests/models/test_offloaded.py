"""Super-networks with weights in memory of the CPU or on disk: searched, scored and extracted from as one in memory."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import attach_align_device_hook_on_blocks
from transformers import AutoConfig

from hf_whittle import (
    AutoSuperNetForCausalLM,
    HealedPerplexity,
    KLDivergence,
    Perplexity,
    Probe,
    ProbeConfig,
    SubnetConfig,
    SupernetConfig,
    SupernetTrainer,
    extract_subnet,
    score_importance,
    sort_by_importance,
)
from hf_whittle.errors import WeightsError, WhittleError
from hf_whittle.experimental.proxies import GradientNorm, JacobianCovariance, Synflow, WeightMagnitude
from hf_whittle.fingerprints import model_fingerprint
from hf_whittle.models.placement import input_device, is_offloaded
from hf_whittle.models.supernet import SuperNetModel

COARSE = SubnetConfig(24, 4, 3, 40)
FINE = SubnetConfig([*range(20), 25, 31], [0, 2, 4], [[1, 3], 4, [2]], [40, [*range(3, 50, 2)], 64])
GROUPED = SubnetConfig(
    [*range(20), 25, 31], [1, 3, 4], intermediate_size=[40, [*range(3, 50, 2)], 64], num_key_value_heads=[2, 1, [1]]
)
IDS = torch.randint(99, (6, 12), generator=torch.Generator().manual_seed(0))
HEALING = {"heal": True, "calibration_dataset": IDS, "progress": False}
PARTS = {
    "layers": (".layers.1", ".layers.3"),
    "the embedding": ("embed",),
    "the head": ("lm_head",),
    "everything": ("",),
}


@pytest.fixture(scope="module", params=["gpt_neox", "llama tied"])
def saved(request, make_stock, tmp_path_factory):
    folder, kind = tmp_path_factory.mktemp("stock"), request.param.split()
    make_stock(model_type=kind[0], tie_word_embeddings="tied" in kind).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(saved):
    return AutoSuperNetForCausalLM.from_pretrained(saved)


@pytest.fixture(scope="module")
def subnet(whole):
    return FINE if whole.config.model_type == "gpt_neox" else GROUPED


def load(saved, folder, parts):
    """The super-network with modules on disk whose names contain one of some parts."""
    with torch.device("meta"):
        model = AutoSuperNetForCausalLM.from_config(AutoConfig.from_pretrained(saved))
    places = {
        name: "disk" if any(part in name for part in parts) else "cpu"
        for name, module in model.named_modules()
        if not list(module.children()) or name.rpartition(".")[0].endswith(".layers")
    }
    inner = [name for name in places if any(name.startswith(f"{other}.") for other in places)]
    places = {name: place for name, place in places.items() if name not in inner}
    return AutoSuperNetForCausalLM.from_pretrained(saved, device_map=places, offload_folder=folder)


@pytest.fixture(params=PARTS.values(), ids=PARTS)
def offloaded(request, saved, whole, tmp_path):
    if whole.config.tie_word_embeddings and request.param in (PARTS["the embedding"], PARTS["the head"]):
        pytest.skip("tied weights are placed together")
    model = load(saved, tmp_path / "offload", request.param)
    assert any(parameter.is_meta for parameter in model.parameters())
    return model


def kept_of_offloaded(model):
    """Names of the modules that are offloaded and keep slices in memory, or weights."""
    modules = [(name, module) for name, module in model.named_modules() if is_offloaded(module)]
    assert modules
    return [
        name
        for name, module in modules
        if getattr(module, "_gathered", None) or not all(weight.is_meta for weight in module.parameters(recurse=False))
    ]


def assert_same_weights(found, expected):
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and all(map(torch.equal, ours.values(), theirs.values()))


@pytest.mark.slow
def test_fitnesses_are_those_of_the_model_in_memory(offloaded, whole, subnet):
    for make in (
        Perplexity,
        KLDivergence,
        lambda model, ids: HealedPerplexity(model, ids, ids),
        lambda model, ids: KLDivergence(whole, ids, teacher=model),
    ):
        found, expected = make(offloaded, IDS), make(whole, IDS)
        for one in (COARSE if subnet is FINE else subnet, subnet):
            assert found(one) == pytest.approx(expected(one), rel=1e-4)
        assert found.settings == expected.settings
    assert model_fingerprint(offloaded) == model_fingerprint(whole)


def test_super_network_that_does_not_fit_in_memory_goes_to_disk_by_itself(saved, whole, subnet, tmp_path):
    budget = sum(weight.nbytes for weight in whole.parameters()) // 2
    places = {"device_map": "auto", "max_memory": {"cpu": budget}, "offload_folder": str(tmp_path / "offload")}
    model = AutoSuperNetForCausalLM.from_pretrained(saved, **places)
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    assert Perplexity(model, IDS)(subnet) == pytest.approx(Perplexity(whole, IDS)(subnet), rel=1e-4)
    assert_same_weights(extract_subnet(model, subnet), extract_subnet(whole, subnet))


def test_slices_leave_nothing_in_memory(offloaded, subnet):
    with offloaded.active_subnet(subnet), torch.no_grad():
        assert offloaded(IDS, use_cache=False).logits.isfinite().all()
        assert kept_of_offloaded(offloaded) == []


@pytest.mark.slow
@pytest.mark.parametrize("healing", [{}, HEALING], ids=["sliced", "healed"])
def test_student_is_that_of_the_model_in_memory(offloaded, whole, subnet, healing):
    found, expected = (extract_subnet(model, subnet, **healing) for model in (offloaded, whole))
    assert found.device == input_device(offloaded) and not any(weight.is_meta for weight in found.parameters())
    assert_same_weights(found, expected)


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("criterion", ["activation", "magnitude"])
def test_importance_is_that_of_the_model_in_memory(offloaded, whole, criterion):
    options = {"criterion": criterion, "layer_criterion": "removal", "progress": False}
    found, expected = (score_importance(model, IDS, **options) for model in (offloaded, whole))
    assert found.settings == expected.settings
    assert found.layers == pytest.approx(expected.layers, rel=1e-3, abs=1e-5)
    assert found.entries["hidden_size"] == pytest.approx(expected.entries["hidden_size"], rel=1e-4)


def test_probe_is_that_of_the_model_in_memory(offloaded, whole, subnet):
    config = ProbeConfig(steps=2, batch_size=1)
    if offloaded.get_output_embeddings().weight.is_meta:
        with pytest.raises(WhittleError, match="is offloaded; keep it on a device by the device_map, or use another"):
            Probe(offloaded, IDS, IDS, config)
        config = ProbeConfig(steps=2, batch_size=1, beta=0, alpha=1)
    found, expected = (Probe(model, IDS, IDS, config)(subnet) for model in (offloaded, whole))
    assert found == pytest.approx(expected, rel=1e-4)


def test_whatever_takes_gradients_or_changes_weights_refuses_it(saved, tmp_path, whole):
    model: SuperNetModel = cpu_offload(AutoSuperNetForCausalLM.from_pretrained(saved), torch.device("cpu"))
    scores = score_importance(whole, IDS, progress=False)
    args = SupernetConfig(str(tmp_path), use_cpu=True, report_to=[], max_steps=1)
    for use in (
        lambda: GradientNorm(model, IDS),
        lambda: JacobianCovariance(model, IDS),
        lambda: Synflow(model),
        lambda: WeightMagnitude(model),
        lambda: score_importance(model, IDS, criterion="taylor", progress=False),
        lambda: sort_by_importance(model, scores),
        lambda: SupernetTrainer(model, args, train_dataset=[{"input_ids": IDS[0]}]),
    ):
        with pytest.raises(WeightsError, match="is not in memory but offloaded; load the model without a device_map"):
            use()


@pytest.mark.parametrize("inner", ["layers.0", "lm_head"])
def test_modules_that_accelerate_does_not_mark_as_offloaded_are_refused(saved, whole, subnet, inner):
    """Parts of a placed module: an index beside such a weight would be none, and its slice uninitialized memory."""
    model = copy.deepcopy(whole)
    name = next(name for name, _ in model.named_modules() if name.endswith(inner))
    attach_align_device_hook_on_blocks(
        model,
        execution_device=dict.fromkeys(["", name], torch.device("cpu")),
        offload={"": False, name: True},
        weights_map=copy.deepcopy(whole.state_dict()),
    )
    with torch.device("meta"):
        empty = AutoSuperNetForCausalLM.from_config(whole.config)
    for one in (model, empty):
        assert any(parameter.is_meta for parameter in one.parameters())
        for use in (check, lambda one: extract_subnet(one, subnet), lambda one: activate(one, subnet)):
            with pytest.raises(WeightsError, match="is not in memory, and its module does not load it; load the model"):
                use(one)


def check(model):
    Perplexity(model, IDS)


def activate(model, subnet):
    with model.active_subnet(subnet):
        pass


def test_tied_matrices_that_differ_are_found_where_they_are_offloaded(whole):
    if not whole.config.tie_word_embeddings:
        pytest.skip("nothing is tied")
    model = copy.deepcopy(whole)
    model.lm_head.weight = torch.nn.Parameter(2 * model.lm_head.weight.detach())
    with pytest.raises(WeightsError, match="is another matrix than"):
        Perplexity(cpu_offload(model, torch.device("cpu")), IDS)


def test_values_of_evaluations_are_added_on_the_cpu(whole, monkeypatch):
    """Some devices have no double precision."""
    seen = []
    double, cpu = torch.Tensor.double, torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: cpu(self).as_subclass(_OnCpu))
    monkeypatch.setattr(torch.Tensor, "double", lambda self: seen.append(type(self)) or double(self))
    Perplexity(whole, IDS)(COARSE if whole.config.model_type == "gpt_neox" else GROUPED)
    assert set(seen) == {_OnCpu}


class _OnCpu(torch.Tensor):
    pass
