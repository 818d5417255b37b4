"""Models with unusual weights: resized, of several types, hooked, quantized, adapted, of other modules.

Their slices run as their students do, or they are refused wherever a model is run, scored, sorted or extracted from.
"""

import copy
import math
import re

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import attach_align_device_hook
from fixtures_slow import slow_but
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import BitsAndBytesConfig, GPTNeoXForCausalLM

from hf_whittle import (
    GPTNeoXSuperNetForCausalLM,
    HealedPerplexity,
    KLDivergence,
    ParameterBin,
    Perplexity,
    Probe,
    ProbeConfig,
    SearchSpace,
    SubnetConfig,
    SupernetConfig,
    SupernetTrainer,
    extract_subnet,
    measure_latency,
    score_importance,
    search_subnets,
    sort_by_importance,
    store_targets,
)
from hf_whittle.cost import num_parameters
from hf_whittle.errors import ArchitectureError, CheckpointError, SubnetError, WeightsError
from hf_whittle.evaluation import cross_entropy
from hf_whittle.experimental.proxies import GradientNorm, JacobianCovariance, Snip, Synflow, WeightMagnitude
from hf_whittle.fingerprints import model_fingerprint
from hf_whittle.models.elastic import Elastic, make_elastic
from hf_whittle.models.placement import input_device
from hf_whittle.models.weights import check_finite, check_plain_weights

COARSE = SubnetConfig(24, 4, 3, 40)
FINE = SubnetConfig([*range(20), 25, 31], [0, 2, 4], [[1, 3], 4, [2]], [40, [*range(3, 50, 2)], 64])


@pytest.fixture
def model(supernet):
    return copy.deepcopy(supernet)


@pytest.fixture(scope="module")
def saved(stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    stock.save_pretrained(folder)
    return folder


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids, use_cache=False).logits


def assert_slices_are_students(model, input_ids, **tolerances):
    for subnet in (COARSE, FINE):
        with model.active_subnet(subnet):
            active = logits(model, input_ids)
        student = extract_subnet(model, subnet)
        assert active.isfinite().all()
        torch.testing.assert_close(logits(student, input_ids), active, **tolerances)


# Another vocabulary


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("size", "arguments"), [(120, {}), (90, {}), (None, {"pad_to_multiple_of": 64})])
def test_resized_super_network_runs_in_slices(make_stock, make_supernet, input_ids, tied, size, arguments):
    stock = make_stock(tie_word_embeddings=tied)
    supernet, ids = make_supernet(stock), input_ids % 80
    before = logits(supernet, ids)
    embedding = supernet.resize_token_embeddings(size, mean_resizing=False, **arguments)
    size = size or 128
    assert supernet.config.vocab_size == size == embedding.num_embeddings
    assert supernet.full_config is supernet.config and isinstance(supernet.lm_head, Elastic)
    kept = min(size, before.shape[-1])
    torch.testing.assert_close(logits(supernet, ids)[..., :kept], before[..., :kept])
    assert_slices_are_students(supernet, ids)
    assert extract_subnet(supernet, COARSE).config.vocab_size == size
    whole = SubnetConfig.full(supernet.config)
    assert num_parameters(supernet.config) == extract_subnet(supernet, whole).num_parameters()
    assert math.isfinite(Perplexity(supernet, ids)(FINE))


def test_space_made_before_the_vocabulary_was_resized_is_an_error(model, input_ids):
    space = SearchSpace.from_config(copy.deepcopy(model.config))
    model.resize_token_embeddings(120)
    for options in ({"eval_dataset": input_ids}, {"fitness": Perplexity(model, input_ids)}):
        with pytest.raises(SubnetError, match=r"make it with SearchSpace.from_config\(supernet.config\)"):
            search_subnets(model, space, bin=ParameterBin(0, 1e9), progress=False, **options)


def test_new_embeddings_are_those_of_slices(model, make_stock, input_ids):
    other = make_stock(seed=5)
    model.set_input_embeddings(copy.deepcopy(other.get_input_embeddings()))
    model.set_output_embeddings(copy.deepcopy(other.get_output_embeddings()))
    assert_slices_are_students(model, input_ids)


def test_plain_modules_put_in_by_hand_are_those_of_slices(model, make_stock, input_ids):
    other = copy.deepcopy(make_stock(seed=5))
    model.gpt_neox.embed_in, model.lm_head = other.gpt_neox.embed_in, other.lm_head
    model.gpt_neox.layers[0].mlp.dense_h_to_4h = other.gpt_neox.layers[0].mlp.dense_h_to_4h
    assert_slices_are_students(model, input_ids)


def test_vocabulary_stays_while_a_subnet_is_active(model, input_ids):
    before = logits(model, input_ids)
    changes = [
        lambda: model.resize_token_embeddings(120),
        lambda: model.set_input_embeddings(nn.Embedding(99, 24)),
        lambda: model.set_output_embeddings(nn.Linear(24, 99, bias=False)),
    ]
    with model.active_subnet(COARSE):
        for change in changes:
            with pytest.raises(SubnetError, match="a subnet is active: leave the active_subnet block first"):
                change()
    torch.testing.assert_close(logits(model, input_ids), before)
    assert model.config.vocab_size == 99


# Types and devices


@pytest.mark.slow_after(3)
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.float16, "bfloat16", "auto"])
def test_slices_in_other_types_are_their_students(saved, input_ids, name, dtype):
    model = GPTNeoXSuperNetForCausalLM.from_pretrained(saved, **{name: dtype})
    expected = torch.float32 if dtype == "auto" else getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert model.dtype == expected == extract_subnet(model, FINE).dtype
    assert_slices_are_students(model, input_ids, rtol=0.05, atol=0.5 if dtype != "auto" else 1e-4)
    scores = score_importance(model, input_ids, criterion="taylor", layer_criterion="removal", progress=False)
    assert len(scores.entries["hidden_size"]) == 32
    assert Perplexity(model, input_ids)(FINE) == pytest.approx(
        Perplexity(GPTNeoXSuperNetForCausalLM.from_pretrained(saved), input_ids)(FINE), rel=0.2
    )


def test_hooks_that_only_place_inputs_do_not_matter(model, input_ids):
    whole = logits(model, input_ids)
    attach_align_device_hook(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(logits(model, input_ids), whole)
    assert_slices_are_students(model, input_ids)


def test_device_map_of_one_device_does_not_matter(saved, input_ids):
    assert_slices_are_students(GPTNeoXSuperNetForCausalLM.from_pretrained(saved, device_map="cpu"), input_ids)


def test_weights_are_checked_without_a_state_dict(model, monkeypatch):
    """For one, FSDP1 would gather all weights."""
    monkeypatch.setattr(type(model), "state_dict", lambda *_, **__: pytest.fail("a state dict was made"))
    check_plain_weights(model)


def test_indices_lie_where_their_weight_does(model, monkeypatch):
    monkeypatch.setattr("hf_whittle.models.supernet.check_plain", lambda *_, **__: None)
    model.gpt_neox.layers[2].to("meta")  # another device that every machine has
    with model.active_subnet(FINE):
        for _, _, module in model._sliced_modules():
            for chosen in module.chosen or ():
                assert not torch.is_tensor(chosen) or chosen.device == module.weight.device


FITNESSES = {
    "perplexity": Perplexity,
    "kl": KLDivergence,
    "healed perplexity": lambda model, ids: HealedPerplexity(model, ids, ids),
    "magnitude": lambda model, ids: WeightMagnitude(model),
    "gradient norm": GradientNorm,
    "snip": Snip,
    "synflow": lambda model, ids: Synflow(model),
    "jacobian": JacobianCovariance,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_but(FITNESSES, "snip"))
def test_fitness_of_a_compiled_super_network_is_that_of_the_one_it_wraps(model, input_ids, name):
    plain, compiled = (FITNESSES[name](each, input_ids) for each in (model, torch.compile(model, backend="eager")))
    assert compiled(FINE) == pytest.approx(plain(FINE), rel=1e-4)
    assert compiled.settings == plain.settings


def test_compiled_super_network_is_scored_sorted_and_extracted_from_as_the_one_it_wraps(model, input_ids):
    compiled = torch.compile(model, backend="eager")
    options = {"layer_criterion": "removal", "progress": False}
    scores = score_importance(compiled, input_ids, **options)
    assert scores.settings == score_importance(model, input_ids, **options).settings
    assert sort_by_importance(compiled, scores).entries
    ours, theirs = (extract_subnet(each, FINE).state_dict() for each in (compiled, model))
    assert ours.keys() == theirs.keys() and all(map(torch.equal, ours.values(), theirs.values()))


# Models that cannot be sliced


class Packed(torch.Tensor):
    pass


class Scaled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def of_modules(kind):
    def make(saved):
        model = GPTNeoXSuperNetForCausalLM.from_pretrained(saved)
        if kind == "adapters":
            return inject_adapter_in_model(LoraConfig(target_modules=["query_key_value"]), model)
        if kind == "wrapped":
            return get_peft_model(model, LoraConfig(target_modules=["dense"], task_type="CAUSAL_LM"))
        if kind == "subclass":
            model.gpt_neox.layers[1].mlp.dense_4h_to_h = Scaled(64, 32)
        if kind == "bias":
            model.lm_head = nn.Linear(32, 99)
        if kind == "size":
            model.lm_head = nn.Linear(32, 120, bias=False)
        if kind == "packed":  # like weights of torchao
            weight = torch.Tensor._make_subclass(Packed, model.lm_head.weight.detach())
            model.lm_head.weight = nn.Parameter(weight)
        if kind == "integers":
            weight = model.lm_head.weight.detach().to(torch.int8)
            model.lm_head.weight = nn.Parameter(weight, requires_grad=False)
        return model

    return make


def quantized(bits):
    def make(saved):
        config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
        return GPTNeoXForCausalLM.from_pretrained(saved, quantization_config=config)

    return make


KINDS = {
    "adapters": (of_modules("adapters"), r"query_key_value.*merge adapters into it \(merge_and_unload\)"),
    "wrapped": (
        of_modules("wrapped"),
        r"base_layer.weight, which no slice .* \(merge_and_unload\)",
    ),
    "another bias": (of_modules("bias"), "has lm_head.bias, which no slice would have"),
    "another size": (
        of_modules("size"),
        r"lm_head.weight has the shape \(120, 32\), the configuration",
    ),
    "integers": (
        of_modules("integers"),
        "lm_head.weight is a Parameter of int8; .* load the model",
    ),
    "packed": (of_modules("packed"), "lm_head.weight is a Packed of float32; .* load the model without quantization"),
    "8 bit": (quantized(8), "is quantized; .* load the model without quantization"),
    "4 bit": (quantized(4), "is quantized; .* load the model without quantization"),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def refused(request, saved):
    make, message = request.param
    return make(saved), message


def uses_of(model, ids, scores, folder):
    """Every function that takes a super-network and runs, scores, sorts or extracts slices of it."""
    args = SupernetConfig(str(folder), use_cpu=True, report_to=[], max_steps=1)
    fitnesses = (Perplexity, KLDivergence, GradientNorm, Snip, JacobianCovariance)
    space = SearchSpace.from_config(GPTNeoXForCausalLM.config_class.from_dict(model.config.to_dict()))
    made = {one.__name__: (lambda one=one: one(model, ids)) for one in fitnesses}
    return made | {
        "extract_subnet": lambda: extract_subnet(model, FINE),
        "healed": lambda: extract_subnet(model, FINE, heal=True, calibration_dataset=ids),
        "activation": lambda: score_importance(model, ids, progress=False),
        "magnitude": lambda: score_importance(
            model, ids, criterion="magnitude", layer_criterion="magnitude", progress=False
        ),
        "taylor": lambda: score_importance(model, ids, criterion="taylor", progress=False),
        "sort_by_importance": lambda: sort_by_importance(model, scores),
        "HealedPerplexity": lambda: HealedPerplexity(model, ids, ids),
        "Probe": lambda: Probe(model, ids, ids, ProbeConfig(steps=1, batch_size=1)),
        "WeightMagnitude": lambda: WeightMagnitude(model),
        "Synflow": lambda: Synflow(model),
        "search_subnets": lambda: search_subnets(
            model, space, bin=ParameterBin(0, 1e9), eval_dataset=ids, progress=False
        ),
        "SupernetTrainer": lambda: SupernetTrainer(model, args, train_dataset=[{"input_ids": ids[0]}]),
    }


def test_every_entry_refuses_weights_that_are_not_plain(refused, supernet, input_ids, tmp_path):
    model, message = refused
    scores = score_importance(supernet, input_ids, progress=False)
    for name, use in uses_of(model, input_ids, scores, tmp_path).items():
        if name in ("search_subnets", "SupernetTrainer") and not isinstance(model, GPTNeoXSuperNetForCausalLM):
            continue
        with pytest.raises(WeightsError, match=message):
            use()
            pytest.fail(f"{name} took it")


@pytest.mark.parametrize("kind", ["adapters", "subclass", "integers", "packed"])
def test_no_slice_of_them_is_run_and_the_model_stays_whole(saved, input_ids, kind):
    model = of_modules(kind)(saved)
    for subnet in (COARSE, FINE):
        with pytest.raises(WeightsError), model.active_subnet(subnet):
            pass
    assert model.config.hidden_size == 32 and model.full_config is model.config
    if kind != "integers":
        assert logits(model, input_ids).isfinite().all()


@pytest.mark.parametrize("module", [Scaled(3, 3), nn.RMSNorm(3), nn.Bilinear(2, 2, 2)])
def test_module_without_an_elastic_class_is_an_error_that_names_it(module):
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    message = f"layers.0.mlp is a {kind}, of which no slice can be run; a super-network is made of Linear, LayerNorm"
    with pytest.raises(WeightsError, match=re.escape(message)):
        make_elastic(module, "layers.0.mlp")


def test_merged_adapters_are_part_of_slices(saved, input_ids):
    model = get_peft_model(
        GPTNeoXSuperNetForCausalLM.from_pretrained(saved),
        LoraConfig(target_modules=["query_key_value", "dense"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    before = logits(model, input_ids)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, input_ids), before, rtol=1e-3, atol=1e-3)
    assert_slices_are_students(merged, input_ids)


def test_quantized_super_network_is_refused_before_it_is_loaded(saved, tmp_path):
    config = BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(WeightsError, match="no slice of a quantized super-network can be run; load it without"):
        GPTNeoXSuperNetForCausalLM.from_pretrained(saved, quantization_config=config)
    quantized(8)(saved).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="no slice of a quantized super-network can be run; load it without"):
        GPTNeoXSuperNetForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"is quantized; give the one it was made from"):
        extract_subnet(tmp_path, FINE)


def test_model_without_a_head_is_an_error_everywhere(stock, input_ids):
    for use in (
        lambda: extract_subnet(stock.gpt_neox, FINE),
        lambda: score_importance(stock.gpt_neox, input_ids, progress=False),
    ):
        with pytest.raises((ArchitectureError, WeightsError)):
            use()


class Quantized(torch.Tensor):
    """A tensor that supports only the operations needed for loading, like those of torchao."""

    @staticmethod
    def __new__(cls, stored):
        return torch.Tensor._make_wrapper_subclass(cls, stored.shape, dtype=torch.bfloat16)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten.detach.default:
            return cls(args[0])
        raise NotImplementedError(operation)


def test_only_plain_tensors_are_checked_for_nan_and_inf():
    check_finite("quantized", nn.Parameter(Quantized(torch.zeros(2, 2)), requires_grad=False))
    with pytest.raises(CheckpointError, match="plain contains NaN or Inf"):
        check_finite("plain", nn.Parameter(torch.tensor([1.0, math.nan])))


# Offloaded teachers


@pytest.fixture(params=["memory", "disk"])
def offloaded(request, saved, tmp_path):
    teacher, device = GPTNeoXForCausalLM.from_pretrained(saved), torch.device("cpu")
    if request.param == "memory":
        return cpu_offload(teacher, execution_device=device)
    return disk_offload(teacher, tmp_path / "offloaded", execution_device=device)


def test_offloaded_model_is_the_one_in_memory(offloaded, stock, supernet, input_ids, tmp_path):
    assert offloaded.get_input_embeddings().weight.is_meta and input_device(offloaded).type == "cpu"
    assert model_fingerprint(offloaded) == model_fingerprint(stock)
    assert cross_entropy(offloaded, input_ids) == pytest.approx(cross_entropy(stock, input_ids), rel=1e-6)
    ours, theirs = (KLDivergence(supernet, input_ids, teacher=one) for one in (offloaded, stock))
    assert ours(FINE) == pytest.approx(theirs(FINE), rel=1e-3) and ours.settings == theirs.settings
    assert measure_latency(offloaded, sequence_length=4, repeats=1, warmup=0).median > 0
    options = {"kind": "top-k", "k": 4, "progress": False}
    stores = [store_targets(one, input_ids, tmp_path / str(id(one)), **options) for one in (offloaded, stock)]
    targets = [store.targets(input_ids) for store in stores]
    torch.testing.assert_close(targets[0].probabilities, targets[1].probabilities, rtol=1e-3, atol=1e-3)
    assert store_targets(stock, input_ids, tmp_path / str(id(offloaded)), **options)  # the same teacher


def test_teacher_in_which_a_subnet_is_active_is_an_error(model, input_ids, tmp_path):
    uses = [
        lambda: KLDivergence(model, input_ids),
        lambda: Probe(model, input_ids, input_ids, ProbeConfig(steps=1, batch_size=1)),
        lambda: store_targets(model, input_ids, tmp_path / "store", progress=False),
    ]
    with model.active_subnet(COARSE):
        for use in uses:
            with pytest.raises(SubnetError, match="a subnet is active: leave the active_subnet block first"):
                use()


# Functions leave a model as it was


def state_of(model):
    """State of a model that a function may change, without its weights."""
    modules = {
        name: (module.training, type(module), sorted(vars(module)), len(module._forward_hooks))
        for name, module in model.named_modules()
    }
    parameters = {
        name: (p.requires_grad, p.dtype, p.device, p.grad is None, p.data_ptr()) for name, p in model.named_parameters()
    }
    return modules, parameters, model.config.to_dict(), model.generation_config.to_dict()


LENT = {
    "extract_subnet": lambda model, ids: extract_subnet(model, FINE),
    "healed": lambda model, ids: extract_subnet(model, FINE, heal=True, calibration_dataset=ids, progress=False),
    "activation": lambda model, ids: score_importance(model, ids, progress=False),
    "taylor": lambda model, ids: score_importance(model, ids, criterion="taylor", progress=False),
    "removal": lambda model, ids: score_importance(model, ids, layer_criterion="removal", progress=False),
    "perplexity": lambda model, ids: Perplexity(model, ids)(FINE),
    "kl": lambda model, ids: KLDivergence(model, ids)(FINE),
    "healed perplexity": lambda model, ids: HealedPerplexity(model, ids, ids)(FINE),
    "probe": lambda model, ids: Probe(model, ids, ids, ProbeConfig(steps=1, batch_size=2))(FINE),
    "magnitude": lambda model, ids: WeightMagnitude(model)(FINE),
    "gradient norm": lambda model, ids: GradientNorm(model, ids)(FINE),
    "snip": lambda model, ids: Snip(model, ids)(FINE),
    "synflow": lambda model, ids: Synflow(model)(FINE),
    "jacobian": lambda model, ids: JacobianCovariance(model, ids)(FINE),
    "latency": lambda model, ids: measure_latency(model, sequence_length=4, repeats=1, warmup=0),
}


@pytest.fixture
def lent(model):
    """A super-network half of which is in training mode and half of which is frozen."""
    model.train()
    model.gpt_neox.layers[1].eval()
    model.gpt_neox.layers[2].requires_grad_(False)
    model.config.use_cache = False
    with model.active_subnet(FINE):  # so that attributes set by a block are there before
        pass
    return model


@pytest.mark.parametrize("name", LENT)
def test_model_is_as_before(lent, input_ids, name):
    before = state_of(lent)
    LENT[name](lent, input_ids)
    assert state_of(lent) == before


@pytest.mark.parametrize("name", [name for name in LENT if name not in ("extract_subnet", "magnitude", "synflow")])
def test_model_is_as_before_after_an_error(lent, input_ids, name, monkeypatch):
    before, raised = state_of(lent), []

    class StoppedError(Exception):
        pass

    def fail(*_, **__):
        raised.append(True)
        raise StoppedError

    if name == "healed":
        monkeypatch.setattr("hf_whittle.healing.healer.SingleLayer.__call__", fail)
    elif name == "probe":
        monkeypatch.setattr(Probe, "_train", fail)
    else:
        monkeypatch.setattr("transformers.models.gpt_neox.modeling_gpt_neox.GPTNeoXMLP.forward", fail)
    with pytest.raises(StoppedError):
        LENT[name](lent, input_ids)
    assert raised and state_of(lent) == before


def test_store_leaves_its_teacher_as_it_was(lent, input_ids, tmp_path):
    before = state_of(lent)
    store_targets(lent, input_ids, tmp_path / "store", progress=False)
    assert state_of(lent) == before
