"""Loading of checkpoints from disk, from the cache of the Hub and from a server, with and without hf_whittle."""

import copy
import hashlib
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXModel,
)

from hf_whittle import (
    GPTNeoXSuperNetForCausalLM,
    SubnetConfig,
    WhittleGPTNeoXConfig,
    WhittleGPTNeoXForCausalLM,
    extract_subnet,
)
from hf_whittle.models.students.modeling_whittle_gpt_neox import WhittleGPTNeoXModel

CLOSE = {"rtol": 0, "atol": 1e-5}
STOCK_SUBNET = SubnetConfig([*range(3, 27)], [0, 2, 4], [[0, 1, 3], 3, [1, 2, 3]], 40)


@pytest.fixture(scope="module")
def student(supernet, uneven_subnet):
    """Three layers of 2, 4 and 1 heads, which no stock model can hold."""
    return extract_subnet(supernet, uneven_subnet)


def logits(model, input_ids):
    with torch.no_grad():
        return model(input_ids=input_ids).logits


def assert_same_weights(model, other):
    theirs = other.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same_model(model, other, input_ids):
    """Assert equal weights, and equal logits up to rounding, which depends on the alignment of weights in memory."""
    assert_same_weights(model, other)
    expected = logits(other, input_ids)
    atol = 8 * torch.finfo(expected.dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(logits(model, input_ids), expected, rtol=0, atol=atol)


# The auto classes


def test_auto_config_makes_the_configuration_of_a_student():
    config = AutoConfig.for_model("whittle_gpt_neox", hidden_size=20, num_attention_heads=3, head_dim=8)
    assert type(config) is WhittleGPTNeoXConfig
    assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (20, 3, 8)


@pytest.mark.parametrize(
    ("auto_class", "ours", "theirs"),
    [
        (AutoModel, WhittleGPTNeoXModel, GPTNeoXModel),
        (AutoModelForCausalLM, WhittleGPTNeoXForCausalLM, GPTNeoXForCausalLM),
    ],
)
def test_auto_classes_tell_students_from_stock_models(auto_class, ours, theirs, student, tiny_config):
    assert type(auto_class.from_config(student.config)) is ours
    assert type(auto_class.from_config(tiny_config)) is theirs
    assert auto_class._model_mapping[WhittleGPTNeoXConfig] is ours
    assert auto_class._model_mapping[GPTNeoXConfig] is theirs


def test_saved_backbone_and_student_load_in_each_others_auto_class(student, input_ids, tmp_path):
    student.save_pretrained(tmp_path / "student")
    student.gpt_neox.save_pretrained(tmp_path / "backbone")
    of_student, of_backbone = (AutoModel.from_pretrained(tmp_path / name) for name in ("student", "backbone"))
    assert type(of_student) is type(of_backbone) is WhittleGPTNeoXModel
    assert_same_weights(of_student, of_backbone)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    assert_same_weights(whole.gpt_neox, student.gpt_neox)


# Files of Pythia


def _leftovers(layers):
    """Buffers that old GPT-NeoX attention saved with its weights."""
    tensors = {}
    for layer in range(layers):
        prefix = f"gpt_neox.layers.{layer}.attention."
        tensors[prefix + "bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool).tril()
        tensors[prefix + "masked_bias"] = torch.tensor(-1e9)
        tensors[prefix + "rotary_emb.inv_freq"] = torch.tensor([7.0])
    return tensors


def _save_sharded(tensors, folder, shards=3):
    """Tensors distributed over shards in turn, unlike any save does."""
    names = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        part = {name: tensor for name, tensor in tensors.items() if names[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _save_as_pythia(stock, folder, *, output_matrix="embed_out.weight", sharded=False, dtype=torch.float16):
    """Write a stock model like EleutherAI's Pythia on the Hub: names, files and configuration of its time."""
    config = stock.config.to_dict()
    rope = config.pop("rope_parameters")
    config |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": int(rope["rope_theta"])}
    config |= {"torch_dtype": str(dtype).removeprefix("torch."), "transformers_version": "4.24.0"}
    for name in ("dtype", "attention_bias", "attention_dropout", "hidden_dropout", "pad_token_id"):
        config.pop(name, None)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["GPTNeoXForCausalLM"]}))
    tensors = {name: tensor.to(dtype) for name, tensor in stock.state_dict().items()}
    tensors[output_matrix] = tensors.pop("lm_head.weight")
    tensors |= _leftovers(stock.config.num_hidden_layers)
    if sharded:
        _save_sharded(tensors, folder)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LAYOUTS = [
    {"output_matrix": output_matrix, "sharded": sharded, "dtype": dtype}
    for output_matrix, sharded, dtype in itertools.product(
        ["embed_out.weight", "lm_head.weight"], [False, True], [torch.float16, torch.float32]
    )
]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
def pythia(request, stock, tmp_path):
    """A folder with `stock` in one of the layouts, and its dtype."""
    return _save_as_pythia(stock, tmp_path / "pythia", **request.param), request.param["dtype"]


@pytest.mark.parametrize("model_class", [GPTNeoXForCausalLM, GPTNeoXSuperNetForCausalLM])
def test_pythia_loads_whole_from_every_layout(model_class, pythia, stock, input_ids):
    folder, dtype = pythia
    loaded, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert loaded.dtype == dtype
    expected = GPTNeoXForCausalLM(stock.config).to(dtype).eval()
    expected.load_state_dict(stock.state_dict())
    assert_same_model(loaded, expected, input_ids)


def test_super_network_of_every_layout_is_the_stock_model_also_in_another_dtype(pythia, input_ids):
    folder, _ = pythia
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (
            model_class.from_pretrained(folder, dtype=dtype)
            for model_class in (GPTNeoXSuperNetForCausalLM, GPTNeoXForCausalLM)
        )
        assert_same_model(ours, theirs, input_ids)


def test_student_of_every_layout_is_the_same_from_disk_and_from_memory(pythia, uneven_subnet, input_ids, tmp_path):
    folder, dtype = pythia
    from_memory = extract_subnet(GPTNeoXSuperNetForCausalLM.from_pretrained(folder), uneven_subnet)
    from_disk = extract_subnet(folder, uneven_subnet, progress=False)
    assert from_disk.dtype == from_memory.dtype == dtype
    assert_same_weights(from_disk, from_memory)
    from_disk.save_pretrained(tmp_path / "student")
    reloaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(info.values())
    assert_same_model(reloaded, from_memory, input_ids)


def test_model_saved_whole_over_its_shards_is_the_one_that_loads(make_stock, uneven_subnet, input_ids, tmp_path):
    before, now = make_stock(seed=1), make_stock(seed=2)
    before.save_pretrained(tmp_path, max_shard_size="8KB")
    now.save_pretrained(tmp_path)
    for model_class in (GPTNeoXForCausalLM, GPTNeoXSuperNetForCausalLM):
        assert_same_model(model_class.from_pretrained(tmp_path), now, input_ids)
    assert_same_weights(extract_subnet(tmp_path, uneven_subnet, progress=False), extract_subnet(now, uneven_subnet))


# A vocabulary that is padded beyond the tokenizer's


@pytest.fixture(scope="module")
def padded_folder(make_stock, teacher_folder, tmp_path_factory):
    """A model with a vocabulary of 320 and a tokenizer of 300, as Pythia has 50304 and 50277."""
    folder = tmp_path_factory.mktemp("padded")
    _save_as_pythia(make_stock(vocab_size=320), folder, dtype=torch.float32)
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(folder)
    return folder


def test_super_network_keeps_the_padded_vocabulary(padded_folder):
    tokenizer = AutoTokenizer.from_pretrained(padded_folder)
    assert len(tokenizer) == 300
    ids = tokenizer("pack my box with jugs", return_tensors="pt").input_ids
    ours, theirs = (
        model_class.from_pretrained(padded_folder) for model_class in (GPTNeoXSuperNetForCausalLM, GPTNeoXForCausalLM)
    )
    assert logits(ours, ids).shape[-1] == ours.config.vocab_size == 320
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), **CLOSE)


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_student_keeps_the_padded_vocabulary(padded_folder, uneven_subnet, tmp_path, source):
    supernet = GPTNeoXSuperNetForCausalLM.from_pretrained(padded_folder)
    student = extract_subnet(supernet if source == "memory" else padded_folder, uneven_subnet)
    student.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    rows = supernet.lm_head.weight[:, [*range(20), 25, 31]]
    assert reloaded.config.vocab_size == len(rows) == 320
    assert torch.equal(reloaded.lm_head.weight, rows)
    ids = torch.tensor([[5, 299, 300, 319]])
    torch.testing.assert_close(logits(reloaded, ids), logits(student, ids), **CLOSE)
    with supernet.active_subnet(uneven_subnet):
        torch.testing.assert_close(logits(reloaded, ids), logits(supernet, ids), **CLOSE)


# Arguments of `from_pretrained`, for the super-network and for the student


@pytest.fixture(scope="module")
def revisions(make_stock, make_supernet, uneven_subnet):
    """Two versions of a super-network and of a student, which differ in weights and in sizes."""
    supernets = {"main": make_supernet(make_stock(seed=1)), "later": make_supernet(make_stock(seed=2, vocab_size=90))}
    students = {revision: extract_subnet(supernet, uneven_subnet) for revision, supernet in supernets.items()}
    return {"supernet": supernets, "student": students}


CLASSES = {
    "supernet": [GPTNeoXSuperNetForCausalLM],
    "student": [WhittleGPTNeoXForCausalLM, AutoModelForCausalLM],
}
LOADERS = [pytest.param(kind, loader, id=loader.__name__) for kind in CLASSES for loader in CLASSES[kind]]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Make loaders look in folders and caches only."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _commit(revision):
    return hashlib.sha1(revision.encode()).hexdigest()


def _publish(folder, repository, cache, revision):
    """Put a folder into a cache of the Hub: files under their hashes, links to them, and the revision's commit."""
    root = cache / ("models--" + repository.replace("/", "--"))
    snapshot = root / "snapshots" / _commit(revision)
    for file in folder.rglob("*"):
        if file.is_file():
            blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(file.read_bytes())
            link = snapshot / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / revision).write_text(_commit(revision))


@pytest.fixture(scope="module")
def hub_cache(revisions, tmp_path_factory):
    """A cache with `whittle/supernet` and `whittle/student`: two revisions, models at the root and in `inner`.

    `whittle/only-supernet` and `whittle/only-student` have but one revision, and their model in `inner`.
    """
    folder, cache = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("cache")
    for kind, models in revisions.items():
        for revision, model in models.items():
            other = models["later" if revision == "main" else "main"]
            model.save_pretrained(folder / kind / revision)
            other.save_pretrained(folder / kind / revision / "inner")
            _publish(folder / kind / revision, f"whittle/{kind}", cache, revision)
        models["main"].save_pretrained(folder / kind / "only" / "inner")
        _publish(folder / kind / "only", f"whittle/only-{kind}", cache, "later")
    return cache


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "main"),
        ({"revision": "main"}, "main"),
        ({"revision": "later"}, "later"),
        ({"revision": _commit("later"), "local_files_only": True}, "later"),
        ({"revision": "later", "subfolder": "inner"}, "main"),
    ],
    ids=["default", "main", "branch", "commit", "subfolder"],
)
def test_revision_and_subfolder_of_a_cached_repository_are_the_ones_asked_for(
    revisions, hub_cache, kind, loader, settings, expected
):
    loaded, info = loader.from_pretrained(f"whittle/{kind}", cache_dir=hub_cache, output_loading_info=True, **settings)
    assert not any(info.values())
    assert type(loaded) is CLASSES[kind][0]
    assert_same_weights(loaded, revisions[kind][expected])


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_repository_without_a_main_revision_and_without_a_model_at_its_root_loads(revisions, hub_cache, kind, loader):
    name = f"whittle/only-{kind}"
    loaded = loader.from_pretrained(name, cache_dir=hub_cache, revision="later", subfolder="inner")
    assert_same_weights(loaded, revisions[kind]["main"])


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
@pytest.mark.parametrize("settings", [{"revision": "never"}, {"subfolder": "outer"}], ids=str)
def test_what_is_not_in_the_cache_is_an_error_that_says_so(hub_cache, kind, loader, settings):
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        loader.from_pretrained(f"whittle/{kind}", cache_dir=hub_cache, **settings)


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_no_other_cache_is_read_than_the_one_given(kind, loader, tmp_path):
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        loader.from_pretrained(f"whittle/{kind}", cache_dir=tmp_path)


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_subfolder_of_a_local_folder_is_the_one_asked_for(revisions, tmp_path, kind, loader):
    revisions[kind]["main"].save_pretrained(tmp_path)
    revisions[kind]["later"].save_pretrained(tmp_path / "inner")
    assert_same_weights(loader.from_pretrained(tmp_path, subfolder="inner"), revisions[kind]["later"])


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_dtype_and_device_map_are_those_asked_for(revisions, tmp_path, kind, loader):
    revisions[kind]["main"].save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert_same_weights(loaded, copy.deepcopy(revisions[kind]["main"]).to(torch.bfloat16))


@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_layers_on_disk_give_the_same_logits(revisions, input_ids, tmp_path, kind, loader):
    model = revisions[kind]["main"]
    model.save_pretrained(tmp_path / "saved")
    places = {"gpt_neox.embed_in": "cpu", "gpt_neox.rotary_emb": "cpu", "gpt_neox.final_layer_norm": "cpu"}
    places |= {"lm_head": "cpu", "gpt_neox.layers": "disk"}
    loaded = loader.from_pretrained(tmp_path / "saved", device_map=places, offload_folder=tmp_path / "offload")
    assert {parameter.device.type for parameter in loaded.gpt_neox.layers.parameters()} == {"meta"}
    torch.testing.assert_close(logits(loaded, input_ids), logits(model, input_ids), **CLOSE)


# A server in place of the Hub: it knows no repository, and notes who asks

ONLINE = """
import json, os, sys, tempfile, threading, traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

asked = []

class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append([self.path, self.headers.get("Authorization")])
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET
    log_message = lambda *_: None

server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.pop("HF_TOKEN", None)
os.environ.update(HF_HUB_OFFLINE="0", HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", NO_PROXY="127.0.0.1",
    HF_HOME=tempfile.mkdtemp(), HF_HUB_DISABLE_TELEMETRY="1")

from transformers import AutoModelForCausalLM
from hf_whittle import GPTNeoXSuperNetForCausalLM, WhittleGPTNeoXForCausalLM

def attempt(loader, name, **settings):
    asked.clear()
    try:
        type_of_error, text = None, type(loader.from_pretrained(name, **settings)).__name__
    except Exception as error:
        type_of_error, text = type(error).__name__, "".join(traceback.format_exception(error)) + repr(error)
    return {"asked": list(asked), "error": type_of_error, "text": text}

results = {}
for kind, loader in (
    ("supernet", GPTNeoXSuperNetForCausalLM),
    ("student", WhittleGPTNeoXForCausalLM),
    ("student", AutoModelForCausalLM),
):
    results[loader.__name__] = {
        "token": attempt(loader, "whittle/unknown", token=sys.argv[1]),
        "no token": attempt(loader, "whittle/unknown"),
        "local": attempt(loader, f"whittle/{kind}", cache_dir=sys.argv[2], revision="later", local_files_only=True),
        "not local": attempt(loader, f"whittle/{kind}", cache_dir=sys.argv[2], revision="later"),
    }
print(json.dumps(results))
"""
TOKEN = "hf_NobodyMayReadThis0123456789abcdef"


@pytest.fixture(scope="module")
def online(run_python, hub_cache):
    """Requests and error of each loader."""
    return json.loads(run_python(ONLINE, TOKEN, hub_cache).splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_token_is_sent_and_stays_out_of_the_error(online, kind, loader):
    attempt = online[loader.__name__]["token"]
    assert {authorization for _, authorization in attempt["asked"]} == {f"Bearer {TOKEN}"}
    assert attempt["error"] == "OSError"
    assert "whittle/unknown" in attempt["text"]
    assert TOKEN not in attempt["text"]


@pytest.mark.slow_after(1)
@pytest.mark.parametrize(("kind", "loader"), LOADERS)
def test_nothing_is_sent_as_a_token_unless_it_is_given(online, kind, loader):
    attempt = online[loader.__name__]["no token"]
    assert attempt["asked"]
    assert {authorization for _, authorization in attempt["asked"]} == {None}


@pytest.mark.parametrize("model_class", [GPTNeoXSuperNetForCausalLM, WhittleGPTNeoXForCausalLM])
def test_local_files_only_asks_the_server_nothing(online, model_class):
    attempts = online[model_class.__name__]
    assert attempts["local"] == {"asked": [], "error": None, "text": model_class.__name__}
    assert attempts["not local"]["asked"]


# Loading without hf_whittle


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A function that runs a script where every package but hf_whittle is installed."""
    packages = tmp_path_factory.mktemp("packages")
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(folder).iterdir():
            if "hf_whittle" not in path.name:
                (packages / path.name).symlink_to(path)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules")), "OMP_NUM_THREADS": "1"}

    def run(script, *arguments):
        command = [sys.executable, "-I", "-S", "-c", textwrap.dedent(script), str(packages), *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == 0, done.stderr

    return run


WITHOUT_HF_WHITTLE = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("hf_whittle") is None

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

uneven, stock = sys.argv[2:]
input_ids = torch.load(uneven + "/input_ids.pt")
TRUST = {"trust_remote_code": True}

def attempt(load, *arguments, **settings):
    try:
        return load(*arguments, **settings)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

errors = {
    "config": attempt(AutoConfig.from_pretrained, uneven),
    "model": attempt(AutoModelForCausalLM.from_pretrained, uneven),
    "refused": attempt(AutoModelForCausalLM.from_pretrained, uneven, trust_remote_code=False),
}
student = AutoModelForCausalLM.from_pretrained(uneven, **TRUST)
student.save_pretrained(uneven + "/again")
again = AutoModelForCausalLM.from_pretrained(uneven + "/again", **TRUST)
models = {"student": student, "again": again, "stock": AutoModelForCausalLM.from_pretrained(stock)}
with torch.no_grad():
    torch.save({name: model(input_ids).logits for name, model in models.items()}, uneven + "/logits.pt")
tokens = student.generate(input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=4, do_sample=False)
assert not any(name.split(".")[0] == "hf_whittle" for name in sys.modules)
found = {
    "errors": {name: str(error) for name, error in errors.items()},
    "classes": {name: [type(model).__name__, type(model).__module__.split(".")[0]] for name, model in models.items()},
    "layers": [[c.num_attention_heads, c.intermediate_size] for c in student.config.per_layer_config],
    "tokens": tokens.tolist(),
    "backbone": type(attempt(AutoModel.from_pretrained, uneven, **TRUST)).__name__,
}
with open(uneven + "/found.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def elsewhere(bare_python, supernet, uneven_subnet, input_ids, tmp_path_factory):
    """Results of loading an uneven and a stock student without hf_whittle, and their folders."""
    uneven, stock = tmp_path_factory.mktemp("uneven"), tmp_path_factory.mktemp("stock")
    extract_subnet(supernet, uneven_subnet).save_pretrained(uneven)
    extract_subnet(supernet, STOCK_SUBNET).save_pretrained(stock)
    torch.save(input_ids, uneven / "input_ids.pt")
    bare_python(WITHOUT_HF_WHITTLE, uneven, stock)
    found = json.loads((uneven / "found.json").read_text())
    return found | {"uneven": uneven, "logits": torch.load(uneven / "logits.pt")}


@pytest.mark.slow
def test_uneven_student_runs_by_its_own_code_where_hf_whittle_is_not_installed(elsewhere, student, input_ids):
    assert elsewhere["classes"]["student"] == ["WhittleGPTNeoXForCausalLM", "transformers_modules"]
    assert elsewhere["layers"] == [[2, 40], [4, 24], [1, 64]]
    torch.testing.assert_close(elsewhere["logits"]["student"], logits(student, input_ids), **CLOSE)
    mask = torch.ones_like(input_ids)
    tokens = student.generate(input_ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert elsewhere["tokens"] == tokens.tolist()


@pytest.mark.slow
def test_auto_model_gives_the_backbone_where_hf_whittle_is_not_installed(elsewhere):
    assert elsewhere["backbone"] == "WhittleGPTNeoXModel"


def test_uneven_student_saved_without_hf_whittle_loads_with_and_without_it(elsewhere, student, input_ids):
    torch.testing.assert_close(elsewhere["logits"]["again"], elsewhere["logits"]["student"], **CLOSE)
    reloaded = AutoModelForCausalLM.from_pretrained(elsewhere["uneven"] / "again")
    assert type(reloaded) is WhittleGPTNeoXForCausalLM
    torch.testing.assert_close(logits(reloaded, input_ids), logits(student, input_ids), **CLOSE)


def test_stock_student_needs_neither_hf_whittle_nor_trust(elsewhere, supernet, input_ids):
    assert elsewhere["classes"]["stock"] == ["GPTNeoXForCausalLM", "transformers"]
    expected = logits(extract_subnet(supernet, STOCK_SUBNET), input_ids)
    torch.testing.assert_close(elsewhere["logits"]["stock"], expected, **CLOSE)


@pytest.mark.parametrize("attempt", ["config", "model", "refused"])
def test_uneven_student_without_hf_whittle_and_without_trust_is_an_error_that_asks_for_trust(elsewhere, attempt):
    error = elsewhere["errors"][attempt]
    assert f"ValueError: The repository {elsewhere['uneven']} contains custom code which must be executed" in error
    assert "Please pass the argument `trust_remote_code=True` to allow custom code to be run" in error
