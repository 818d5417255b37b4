"""Published students load unchanged: in another process, without hf_whittle, from one commit, offline, as adapters."""

import json
import re
import textwrap

import pytest
import torch
from fixtures_run import write_modules
from hub.server import OTHER, WRITE
from huggingface_hub import ModelCard, constants
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

from hf_whittle import (
    DistillationConfig,
    DistillationTrainer,
    SearchResult,
    SubnetConfig,
    extract_subnet,
    push_subnet_to_hub,
)
from hf_whittle.data import load_documents, pack_documents
from hf_whittle.errors import CheckpointError

LOADS = """
    import json, os, re, sys
    os.environ.update(json.loads(sys.argv[1]))
    sys.modules["hf_whittle"] = None  # an import of it is an error
    import torch
    from huggingface_hub import hf_hub_download
    from transformers import AutoModelForCausalLM, pipeline

    input_ids, loads, folder = torch.load(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
    for number, (name, options) in enumerate(loads):
        model = AutoModelForCausalLM.from_pretrained(name, **options)
        with torch.no_grad():
            torch.save(model(input_ids).logits, f"{folder}/{number}.pt")
"""
SPEAKS = """
    import builtins

    asked = []
    builtins.input = lambda text: asked.append(text) or "n"
    for name, options in loads:
        speak = pipeline("text-generation", model=name, **options)
        assert len(speak("The", max_new_tokens=5)[0]["generated_text"]) > 3
        card = open(hf_hub_download(name, "README.md", revision=options.get("revision"))).read()
        exec(re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1], {})
    assert asked == []  # whether to run custom code
"""


@pytest.fixture
def load_elsewhere(hub, run_python, input_ids, tmp_path):
    """A function that loads models in a process without hf_whittle, where a script may follow, and returns logits."""
    torch.save(input_ids, tmp_path / "input_ids.pt")

    def load(loads, script="", **environment):
        environment = {"HF_TOKEN": WRITE, "HF_HUB_CACHE": constants.HF_HUB_CACHE, **environment}
        files = tmp_path / "input_ids.pt", json.dumps(loads), tmp_path
        run_python(textwrap.dedent(LOADS) + textwrap.dedent(script), json.dumps(environment), *files)
        return [torch.load(tmp_path / f"{number}.pt") for number in range(len(loads))]

    return load


def logits_of(model, input_ids):
    with torch.no_grad():
        return model.eval()(input_ids=input_ids).logits


@pytest.mark.slow
def test_students_load_elsewhere_as_they_were(
    hub, load_elsewhere, stock_student, teacher_folder, found, tokenizer, input_ids
):
    """Without hf_whittle, in shards, from a given commit, in a pipeline, by the card's snippet, and then offline."""
    uneven = extract_subnet(teacher_folder, found.best)
    expected = [logits_of(model, input_ids) for model in (stock_student, stock_student, uneven)]
    push_subnet_to_hub(stock_student, "me/stock", tokenizer=tokenizer, private=True)
    push_subnet_to_hub(stock_student, "me/sharded", tokenizer=tokenizer, max_shard_size="20KB")
    assert "model-00003-of-00004.safetensors" in hub.files("me/sharded")
    first = push_subnet_to_hub(uneven, "me/uneven", tokenizer=tokenizer)
    next(uneven.parameters()).data += 1
    push_subnet_to_hub(uneven, "me/uneven", tokenizer=tokenizer)
    assert "modeling_whittle_gpt_neox.py" in hub.files("me/uneven") and len(hub.commits("me/uneven")) == 3
    loads = [("me/stock", {}), ("me/sharded", {}), ("me/uneven", {"trust_remote_code": True, "revision": first.oid})]
    torch.testing.assert_close(load_elsewhere(loads, SPEAKS), expected, rtol=0, atol=1e-5)
    hub.requests.clear()
    torch.testing.assert_close(load_elsewhere(loads, HF_HUB_OFFLINE="1"), expected, rtol=0, atol=1e-5)
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.usefixtures("drawn_before")
def test_a_subnet_and_a_search_are_read_back(hub, teacher_folder, found, uneven_student, input_ids):
    """With hf_whittle, no remote code is needed; another student is extracted with the search that is read back."""
    commit = push_subnet_to_hub(uneven_student, "me/student", search_result=found, private=True)
    loaded = AutoModelForCausalLM.from_pretrained("me/student")
    assert type(loaded) is type(uneven_student)
    torch.testing.assert_close(loaded.state_dict(), uneven_student.state_dict(), rtol=0, atol=0)
    assert SubnetConfig.from_pretrained("me/student") == uneven_student.subnet
    result = SearchResult.from_pretrained("me/student", revision=commit.oid)
    assert result.evaluations == found.evaluations and result.settings == found.settings
    other = extract_subnet(teacher_folder, result.top(2)[1])
    assert other.num_parameters() == sorted(result.answers, key=lambda each: each.fitness)[1].parameters
    for kind in (SubnetConfig, SearchResult):
        with pytest.raises(CheckpointError, match="'me/student' is not a folder, and could not be read from the Hub"):
            kind.from_pretrained("me/student", token=OTHER, cache_dir=teacher_folder.parent / "another cache")
    push_subnet_to_hub(uneven_student, "me/without")
    with pytest.raises(CheckpointError, match=r"me/without has no search\.json"):
        SearchResult.from_pretrained("me/without")


# Adapters


@pytest.fixture
def trainer(hub, teacher_folder, stock_student, tokenizer, tmp_path):
    """A training of adapters for a student loaded from the Hub."""
    push_subnet_to_hub(stock_student, "me/student", tokenizer=tokenizer)
    documents = load_documents(files=[f"{write_modules(tmp_path / 'texts', 2)}/*.txt"])
    settings = {"max_steps": 2, "learning_rate": 0.05, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    trainer = DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained("me/student"),
        teacher_model=str(teacher_folder),
        args=DistillationConfig(output_dir=str(tmp_path / "out"), save_strategy="no", **settings),
        train_dataset=pack_documents(documents, tokenizer, 16),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"),
    )
    trainer.train()
    return trainer


@pytest.mark.slow
def test_adapters_are_published_as_adapters_and_load(hub, trainer, tokenizer, input_ids):
    for _ in range(2):
        push_subnet_to_hub(trainer.model, "me/adapters", tokenizer=tokenizer)
    assert len(hub.commits("me/adapters")) == 2
    names = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert set(hub.published("me/adapters")) - {"results.json", "subnet.json"} == names
    card = ModelCard.load("me/adapters")
    data = card.data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("peft", "me/student", "adapter")
    trained = logits_of(trainer.model, input_ids)
    loaded = AutoPeftModelForCausalLM.from_pretrained("me/adapters")
    torch.testing.assert_close(logits_of(loaded, input_ids), trained)
    assert not torch.allclose(trained, logits_of(AutoModelForCausalLM.from_pretrained("me/student"), input_ids))
    spoken = {}
    exec(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], spoken)
    assert type(spoken["model"]) is type(loaded)


def test_adapters_that_were_merged_are_published_as_a_stock_model(hub, trainer, tokenizer, input_ids):
    trained = logits_of(trainer.model, input_ids)
    push_subnet_to_hub(trainer.merge_adapters(), "me/merged", tokenizer=tokenizer)
    files, data = hub.published("me/merged"), ModelCard.load("me/merged").data
    assert {"config.json", "model.safetensors"} < set(files) and "adapter_config.json" not in files
    assert data.library_name == "transformers" and data.get("base_model_relation") != "adapter"
    merged = AutoModelForCausalLM.from_pretrained("me/merged")
    assert type(merged) is GPTNeoXForCausalLM
    torch.testing.assert_close(logits_of(merged, input_ids), trained, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_adapters_take_the_place_of_a_whole_model_only_if_they_load_there(hub, trainer, stock_folder):
    push_subnet_to_hub(stock_folder, "me/other")
    push_subnet_to_hub(trainer.model, "me/other", overwrite=True)
    assert not {"config.json", "model.safetensors"} & set(hub.published("me/other"))
    push_subnet_to_hub(trainer.model, "me/other")  # is now the same architecture
    before = hub.commits("me/student")
    with pytest.raises(CheckpointError, match=r"belong to me/student itself .* choose another name"):
        push_subnet_to_hub(trainer.model, "me/student", overwrite=True)
    trainer.model.peft_config["default"].base_model_name_or_path = str(stock_folder)
    with pytest.raises(CheckpointError, match=r"to a student that is not on the Hub .* push the student first"):
        push_subnet_to_hub(trainer.model, "me/adapters")
    assert hub.commits("me/student") == before and ("model", "me/adapters") not in hub.repos


@pytest.mark.slow
def test_a_student_trained_on_from_the_hub_keeps_the_files_about_its_making(hub, teacher_folder, found, tokenizer):
    student = extract_subnet(teacher_folder, found.best)
    push_subnet_to_hub(student, "me/student", search_result=found, tokenizer=tokenizer)
    before = hub.published("me/student")
    loaded = AutoModelForCausalLM.from_pretrained("me/student")
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    push_subnet_to_hub(loaded, "me/student")
    after = hub.published("me/student")
    assert set(after) == set(before) and after["model.safetensors"] != before["model.safetensors"]
    assert {name for name in before if after[name] != before[name]} == {"model.safetensors", "README.md"}
    assert "The search, algorithm `random`" in after["README.md"].decode()
    another = extract_subnet(teacher_folder, SubnetConfig.full(student.config).with_layers([0]))
    push_subnet_to_hub(another, "me/student", overwrite=True)
    assert not {"search.json", "candidates.jsonl", "search.png"} & set(hub.published("me/student"))
