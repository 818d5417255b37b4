"""Models whose layers lie on different devices, several visible devices, and processes of a launcher."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fixtures_distillation import LENGTH, logged_numbers, make_model, make_trainer
from fixtures_processes import ENDED, environment_of_scripts, free_port, rank_variables
from transformers import GPTNeoXForCausalLM

from hf_whittle import (
    GPTNeoXSuperNetForCausalLM,
    HealedPerplexity,
    KLDivergence,
    Perplexity,
    extract_subnet,
    score_importance,
    store_targets,
)

from .comparing import DEVICE, HAS_GPU, SUBNETS, assert_near, needs_gpu, on_device
from .launched import WAYS, numbers_of, trained

pytestmark = pytest.mark.gpu
ELSEWHERE = "cpu" if HAS_GPU else "disk"
"""Place that weights are offloaded to."""
PARTS = ("gpt_neox.embed_in", "gpt_neox.emb_dropout", "gpt_neox.final_layer_norm", "gpt_neox.rotary_emb", "lm_head")
HERE = DEVICE.index if HAS_GPU else "cpu"


def device_map(layers, offloaded):
    """Place every module of a GPT-NeoX on the device, except those named."""
    names = [*PARTS, *(f"gpt_neox.layers.{layer}" for layer in range(layers))]
    return {name: ELSEWHERE if name in offloaded else HERE for name in names}


OFFLOADED = {
    "a layer": ("gpt_neox.layers.1",),
    "the embedding": ("gpt_neox.embed_in",),
    "the head": ("lm_head",),
    "layers and embedding": ("gpt_neox.embed_in", "gpt_neox.layers.0", "gpt_neox.layers.2"),
}


def load(kind, folder, offloaded, layers, offload_folder):
    return kind.from_pretrained(folder, device_map=device_map(layers, offloaded), offload_folder=str(offload_folder))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    make_model(seed=2, layers=3).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("offloaded", OFFLOADED.values(), ids=OFFLOADED)
def test_teacher_with_offloaded_parts_teaches_as_one_in_memory(tmp_path, teacher_folder, offloaded):
    teacher = load(GPTNeoXForCausalLM, teacher_folder, offloaded, 3, tmp_path / "offload")
    assert any(parameter.is_meta for parameter in teacher.parameters())
    found = make_trainer(tmp_path, teacher=teacher, use_cpu=not HAS_GPU)
    expected = make_trainer(tmp_path, use_cpu=not HAS_GPU)
    for trainer in (found, expected):
        trainer.train()
    assert_near(logged_numbers(found), logged_numbers(expected), 1e-5)


@pytest.mark.parametrize("offloaded", OFFLOADED.values(), ids=OFFLOADED)
def test_store_of_a_teacher_with_offloaded_parts(tmp_path, teacher_folder, offloaded):
    blocks = torch.randint(50, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    whole = make_model(seed=2, layers=3).to(DEVICE)
    parts = load(GPTNeoXForCausalLM, teacher_folder, offloaded, 3, tmp_path / "offload")
    stores = [
        store_targets(teacher, blocks, tmp_path / name, kind="top-k", k=20, progress=False)
        for name, teacher in (("whole", whole), ("parts", parts))
    ]
    found, expected = (store.targets(blocks) for store in reversed(stores))
    assert_near(found.probabilities, expected.probabilities, 1e-3)


@pytest.mark.parametrize("offloaded", OFFLOADED.values(), ids=OFFLOADED)
def test_divergence_from_a_teacher_with_offloaded_parts(tmp_path, saved, supernet, text, offloaded):
    parts = load(GPTNeoXForCausalLM, saved, offloaded, 5, tmp_path / "offload")
    found = KLDivergence(supernet, text[1], teacher=parts)(SUBNETS["coarse"])
    assert found == pytest.approx(KLDivergence(supernet, text[1])(SUBNETS["coarse"]), rel=1e-4)


def test_super_network_loaded_with_a_device_map_is_the_one_in_memory(saved, supernet, text):
    model = GPTNeoXSuperNetForCausalLM.from_pretrained(saved, device_map="auto" if HAS_GPU else "cpu")
    found, expected = Perplexity(model, text[1]), Perplexity(supernet, text[1])
    for name in ("coarse", "fine"):
        assert found(SUBNETS[name]) == pytest.approx(expected(SUBNETS[name]), rel=1e-5)
        students = [extract_subnet(source, SUBNETS[name]) for source in (model, supernet)]
        assert_near(*(student.state_dict() for student in students), 0.0)


@pytest.mark.parametrize("offloaded", OFFLOADED.values(), ids=OFFLOADED)
def test_super_network_with_offloaded_parts_is_the_one_in_memory(tmp_path, saved, supernet, text, offloaded):
    model, on_gpu = (load(GPTNeoXSuperNetForCausalLM, saved, offloaded, 5, tmp_path / "offload"), on_device(supernet))
    subnet = SUBNETS["fine"]
    for make in (Perplexity, KLDivergence, lambda one, blocks: HealedPerplexity(one, blocks, text[0])):
        assert make(model, text[1])(subnet) == pytest.approx(make(on_gpu, text[1])(subnet), rel=1e-3)
    students = [extract_subnet(one, subnet) for one in (model, on_gpu)]
    assert students[0].device == DEVICE
    assert_near(*(student.state_dict() for student in students), 0.0)
    scores = [score_importance(one, text[1], progress=False).entries["hidden_size"] for one in (model, on_gpu)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert healed(model, subnet, text) == pytest.approx(healed(on_gpu, subnet, text), rel=1e-2)


def healed(model, subnet, text):
    """Perplexity of the healed student of a subnet."""
    student = extract_subnet(model, subnet, heal=True, calibration_dataset=text[0], progress=False)
    return student.healing.perplexity_after


@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU beside the CPU")
@pytest.mark.parametrize("name", ["coarse", "fine"])
def test_super_network_in_parts_of_two_devices_is_the_one_in_memory(saved, supernet, text, name):
    """Layers on the CPU and on the GPU, none of them offloaded: as on two GPUs, each slice's indices lie beside it."""
    from accelerate import dispatch_model

    model = GPTNeoXSuperNetForCausalLM.from_pretrained(saved)
    placement = {part: (HERE if part.endswith((".1", ".3", "lm_head")) else "cpu") for part in device_map(5, ())}
    dispatch_model(model, placement, main_device="cpu", force_hooks=True, offload_buffers=False)
    if any(parameter.is_meta for parameter in model.parameters()):
        pytest.skip("this accelerate offloads what a device map puts on the CPU")
    for make in (Perplexity, KLDivergence, lambda one, blocks: HealedPerplexity(one, blocks, text[0])):
        found, expected = (make(one, text[1])(SUBNETS[name]) for one in (model, supernet))
        assert found == pytest.approx(expected, rel=1e-3)
    scores = [score_importance(one, text[1], progress=False).entries["hidden_size"] for one in (model, supernet)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert_near(*(extract_subnet(one, SUBNETS[name]).state_dict() for one in (model, supernet)), 0.0)
    assert healed(model, SUBNETS[name], text) == pytest.approx(healed(supernet, SUBNETS[name], text), rel=1e-2)


@pytest.mark.parametrize("hidden_weight", [0.0, 0.5])
def test_several_visible_devices_are_refused_or_give_what_one_gives(tmp_path, monkeypatch, hidden_weight):
    """Without a launcher `Trainer` then runs in `DataParallel`, with a batch for each device."""
    settings = {"use_cpu": not HAS_GPU, "hidden_weight": hidden_weight, "per_device_train_batch_size": 4}
    expected = make_trainer(tmp_path, **settings)
    expected.train()
    monkeypatch.setattr(type(expected.args), "n_gpu", 2)
    try:
        found = make_trainer(tmp_path, **{**settings, "per_device_train_batch_size": 2})
    except ValueError as error:
        assert "accelerate launch" in str(error) or "CUDA_VISIBLE_DEVICES" in str(error)
        return
    found.train()
    assert_near(logged_numbers(found), logged_numbers(expected), 1e-4)


def launches(*ways):
    """Parameters of tests; FSDP2 needs a GPU, as accelerate shards nothing on a CPU."""
    return [pytest.param(way, marks=needs_gpu if way == "fsdp2" else ()) for way in ways]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A function that gives the numbers of a training under a launcher, done once."""
    numbers = {}

    def run(way):
        if way not in numbers:
            folder = tmp_path_factory.mktemp("launched")
            variables = rank_variables(0, free_port(), processes=1) | {"LOCAL_WORLD_SIZE": "1"}
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("launched.py")), way, str(folder)],
                capture_output=True,
                text=True,
                env=environment_of_scripts(**variables),
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            assert ENDED in done.stdout
            complaints = ("destroy_process_group", "terminate called")
            assert not [line for line in done.stderr.splitlines() if any(word in line for word in complaints)]
            numbers[way] = torch.load(folder / "launched.pt")
        return numbers[way]

    return run


@pytest.mark.parametrize("way", launches(*WAYS))
def test_launched_process_trains_as_one_without_a_launcher(launched, tmp_path, way):
    """By NCCL on a GPU, by gloo on a CPU; the group is ended, and the process ends without a complaint."""
    found = dict(launched(way))
    found.pop("outputs of the head")
    expected = numbers_of(way, trained(way, tmp_path, **({} if way == "fsdp2" else WAYS[way])))
    assert_near(found, expected, 1e-4)


@pytest.mark.parametrize("way", launches("plain", "hidden states", "fsdp2"))
def test_launched_process_holds_no_logits(launched, way):
    """In each forward pass the sum of the losses stands in the place of the logits."""
    assert launched(way)["outputs of the head"].max() == 1
