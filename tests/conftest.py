"""Tiny models, spaces and subnets that the tests share, and a Hub on loopback."""

# ruff: noqa: E402 (the Hub starts before its clients are imported)

import atexit
import os
import shutil
import sys
import tempfile

from hub.server import WRITE, HubServer

# The Hub runs in this process; huggingface_hub reads its address once, when it is imported.
assert "huggingface_hub" not in sys.modules
HUB = HubServer()
HF_HOME = tempfile.mkdtemp(prefix="hf-home-")
atexit.register(shutil.rmtree, HF_HOME, ignore_errors=True)
atexit.register(HUB.close)
for name in list(os.environ):
    if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")) and not name.startswith("HF_WHITTLE_"):
        del os.environ[name]
os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_HOME=HF_HOME,
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1",
    HF_XET_CLIENT_RETRY_BASE_DELAY="10ms",
    DISABLE_SAFETENSORS_CONVERSION="1",
    NO_PROXY="127.0.0.1,localhost",
    no_proxy="127.0.0.1,localhost",
)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import contextlib
import copy
import gc
import re
import subprocess
import textwrap
from collections import Counter
from random import Random
from types import SimpleNamespace

import hypothesis
import pytest
import torch
import warm
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.utils import _http
from small_models import ALL_VARIANTS, TINY, VARIANTS, draw_subnet, settings_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_whittle import AutoSuperNetForCausalLM, SubnetConfig
from hf_whittle.architectures.registry import ARCHITECTURES
from hf_whittle.compat.transformers import attention_kernel

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
hypothesis.settings.register_profile("whittle", deadline=None, derandomize=True, database=None, max_examples=15)
hypothesis.settings.load_profile("whittle")

SPACES = {
    "coarse uniform": {"granularity": "coarse", "layer_wise": False},
    "coarse layer-wise": {"granularity": "coarse", "layer_wise": True},
    "fine uniform": {"granularity": "fine", "layer_wise": False},
    "fine layer-wise": {"granularity": "fine", "layer_wise": True},
}
TEXT = """
In the beginning there was a large model, and it was good at many things, but it was slow, and it was dear to keep.
So they cut it down, layer by layer and head by head, until what was left was small, and quick, and nearly as good.
def whittle(model, subnet):
    for layer in subnet.layers:
        yield model.layers[layer]
The quick brown fox jumps over the lazy dog; the five boxing wizards jump quickly; pack my box with jugs.
"""


def _randomize(model, seed):
    """Give every parameter random values: stock biases are 0 and norms 1, which would hide a wrong slice."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


REPEATING = re.compile(
    "mistral|qwen2|qwen3|cohere|llama (tied|biases|scaled)|(gemma3|opt) untied"
    "|^(no attention bias|all channels rotated|eager)"
)
"""Kinds of models, by the names of tests' parameters, whose paths other kinds go, too, for the most part."""


def pytest_addoption(parser):
    parser.addoption("--few", type=int, metavar="N", help="run at most N cases of each test, the first ones")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items, config):
    """Leave kinds that repeat others to the slow tests, and further cases where there are many; keep modules together.

    pytest brings together tests of all modules that have a parameter of a session's fixture in common, so that the
    fixtures of these modules would be made again and again.
    """
    places, fast = {}, Counter()
    for item in items:
        places.setdefault(item.path, len(places))
        if hasattr(item, "callspec") and REPEATING.search(item.callspec.id):
            item.add_marker(pytest.mark.slow)
        if (limit := item.get_closest_marker("slow_after")) and not item.get_closest_marker("slow"):
            fast[item.function] += 1
            if fast[item.function] > limit.args[0]:
                item.add_marker(pytest.mark.slow)
    yield
    items.sort(key=lambda item: places[item.path])
    if few := config.getoption("few"):
        cases = Counter()
        items[:] = [item for item in items if cases.update([item.function]) or cases[item.function] <= few]


@pytest.fixture(scope="session", autouse=True)
def freeze_imports():
    """Exclude imported modules from garbage collection, which takes half a second at the start of each training."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def power_stays_on():
    """Files are not forced to the disk, for which a run would wait longer than it computes; other processes do it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """An empty Hub. Its client is `me`, has an empty cache, uploads by LFS, and retries without waiting."""
    HUB.reset()
    HfFileSystem.clear_instance_cache()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", WRITE)
    yield HUB
    breaches = HUB.breaches
    HUB.reset()
    assert breaches == []


@pytest.fixture(params=["lfs", "xet"])
def any_hub(request, hub, monkeypatch):
    """`hub`, once with a client that uploads by LFS and once with one that uploads by Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return hub


@pytest.fixture(scope="session")
def make_stock():
    """A function that builds a random tiny stock model; keyword arguments change its configuration."""

    def build(seed=0, attn_implementation="sdpa", model_type="gpt_neox", **changes):
        torch.manual_seed(seed)
        settings = settings_of(model_type, **changes)
        config = AutoConfig.for_model(model_type, **settings, attn_implementation=attn_implementation)
        return _randomize(AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation), seed)

    return build


@pytest.fixture(scope="session")
def make_supernet():
    """A function that builds the super-network with the weights of a stock model."""

    def build(stock):
        supernet = AutoSuperNetForCausalLM.from_config(copy.deepcopy(stock.config))
        parameters = dict(stock.named_parameters())
        with torch.no_grad():
            for name, parameter in supernet.named_parameters():
                parameter.copy_(parameters[name])
        supernet.generation_config = copy.deepcopy(stock.generation_config)
        return supernet.eval()

    return build


@contextlib.contextmanager
def shared(model):
    """A model of many tests: a test that changes it copies it first, or others fail, far away and in some orders."""

    def settings():
        values = model.config.to_dict()
        written = {"architectures": None, "dtype": values["dtype"] or "float32"}  # as by save_pretrained
        return {**values, **written, "kernel": attention_kernel(model.config)}

    before, weights = settings(), {name: weight.clone() for name, weight in model.state_dict().items()}
    yield model
    assert settings() == before, "a test changed the configuration of a shared model"
    changed = [name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])]
    assert not changed, "a test changed weights of a shared model"


@pytest.fixture(scope="session")
def stock(make_stock):
    with shared(make_stock()) as model:
        yield model


@pytest.fixture
def tiny_config(stock):
    """A configuration of `stock` that a test may change, as some functions of transformers do."""
    return copy.deepcopy(stock.config)


@pytest.fixture(scope="session")
def supernet(stock, make_supernet):
    """The super-network of `stock`."""
    with shared(make_supernet(stock)) as model:
        yield model


@pytest.fixture(scope="session", params=VARIANTS.values(), ids=VARIANTS)
def variant_supernet(request, make_stock, make_supernet):
    """A super-network of each variant of GPT-NeoX."""
    with shared(make_supernet(make_stock(**request.param))) as model:
        yield model


@pytest.fixture(scope="session", params=ALL_VARIANTS.values(), ids=ALL_VARIANTS)
def any_supernet(request, make_stock, make_supernet):
    """A super-network of each variant of every architecture."""
    with shared(make_supernet(make_stock(**request.param))) as model:
        yield model


@pytest.fixture(scope="session", params=ARCHITECTURES)
def each_supernet(request, make_stock, make_supernet):
    """A super-network of each architecture."""
    with shared(make_supernet(make_stock(model_type=request.param))) as model:
        yield model


@pytest.fixture(scope="session", params=SPACES.values(), ids=SPACES)
def space(request, stock):
    """The four search spaces of the tiny model."""
    from hf_whittle import SearchSpace

    return SearchSpace.from_config(stock.config, **request.param)


@pytest.fixture(scope="session")
def draw():
    """A function that draws a subnet of any size from a space."""
    from hf_whittle import ParameterBin

    any_size = ParameterBin(0, 1e18)
    return lambda space, seed: space.sample(Random(seed), any_size)


@pytest.fixture(scope="session")
def draw_within():
    """A function that draws a subnet of any `Shape` or configuration, even one whose layers differ."""
    return draw_subnet


@pytest.fixture(scope="session")
def uneven_subnet():
    """A fine-grained, layer-wise subnet of the tiny model that no stock model can hold."""
    return SubnetConfig(
        hidden_size=[*range(20), 25, 31],
        num_hidden_layers=[0, 2, 4],
        num_attention_heads=[[1, 3], 4, [2]],
        intermediate_size=[40, [*range(3, 50, 2)], 64],
    )


@pytest.fixture(scope="session")
def input_ids():
    return torch.randint(1, TINY["vocab_size"], (3, 12), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def sample_text():
    """A function that samples blocks of tokens from a model, so that they can be learned."""

    def build(model, blocks, length=16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(model.config.vocab_size, (blocks, 1), generator=generator)
        with torch.no_grad():
            for _ in range(length - 1):
                probabilities = model(ids, use_cache=False).logits[:, -1].softmax(-1)
                ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], 1)
        return ids

    return build


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """A function that runs a script in a new Python process and returns its output."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules")), "OMP_NUM_THREADS": "1"}

    def run(script, *arguments):
        command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def run_warm():
    """`run_python` in a process that has most imports done, which takes a tenth of the time."""

    def run(script, *arguments):
        done = warm.run([sys.executable, "-c", textwrap.dedent(script), *arguments])
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def _byte_level_tokenizer(vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory, make_stock):
    """A folder with a tiny GPT-NeoX and its byte-level tokenizer of 300 entries."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = _byte_level_tokenizer(300)
    end = tokenizer.eos_token_id
    model = make_stock(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, pad_token_id=None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
