"""The snippets of README and docs run, with a tiny local checkpoint in Pythia's place; pages say what is so."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

import hf_whittle
from hf_whittle.recipe import Recipe

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def blocks_of(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def snippet_with(*words: str) -> str:
    """The first snippet of Python that has all words."""
    return next(block for block in blocks_of("python") if all(word in block for word in words))


def replace_once(text: str, replacements: dict[str, str]) -> str:
    for before, after in replacements.items():
        assert before in text, f"README and docs no longer say {before!r}"
        text = text.replace(before, after)
    return text


def write_texts(folder: Path) -> None:
    folder.mkdir()
    for path in (ROOT / "hf_whittle").rglob("*.py"):
        for copy in range(8):  # documents enough for every split
            text = path.read_text(encoding="utf-8") + f"# {copy}\n"
            (folder / f"{path.parent.name}.{path.stem}.{copy}.txt").write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_python_snippet_gives_a_trained_student_in_the_bin(teacher_folder, tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts")
    half = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float16)  # as Pythia's files are
    half.save_pretrained(tmp_path / "pythia")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "pythia")
    snippet = replace_once(
        snippet_with("AutoSuperNetForCausalLM.from_pretrained", "EleutherAI"),
        {
            "EleutherAI/pythia-410m": str(tmp_path / "pythia"),
            "block_size=1024": "block_size=32",
            "ParameterBin(150e6, 165e6)": "ParameterBin(30e3, 40e3)",
            'blocks["search"])': 'blocks["search"].select(range(2)), config=EvolutionConfig(generations=1))',
            "max_steps=1000": "max_steps=2, use_cpu=True, report_to='none'",
        },
    )
    names: dict = {}
    exec("from hf_whittle import EvolutionConfig\n" + snippet, names)
    assert 30e3 <= names["student"].num_parameters() <= 40e3
    untrained = hf_whittle.extract_subnet(names["supernet"], names["result"].best)
    trained = names["student"].state_dict()
    assert any((trained[name].cpu() != weight).any() for name, weight in untrained.state_dict().items())
    sorts, cuts = snippet_with("sort_by_importance(supernet"), snippet_with("pythia-12b")
    shorter = {
        "ParameterBin(150e6, 165e6)": "ParameterBin(30e3, 40e3)",
        'blocks["search"])': 'blocks["search"].select(range(2)), config=EvolutionConfig(generations=1))',
    }
    exec(replace_once(sorts, shorter), names)
    exec(replace_once(cuts, {"EleutherAI/pythia-12b": str(tmp_path / "pythia"), '"student"': '"cut"'}), names)
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "cut", dtype=torch.float32)
    with torch.no_grad(), names["supernet"].active_subnet(names["result"].best):
        input_ids = torch.tensor(names["blocks"]["search"]["input_ids"][:2])
        torch.testing.assert_close(cut(input_ids).logits, names["supernet"](input_ids).logits, rtol=0, atol=1e-2)
    searches, calls_back, probes = map(snippet_with, ("in_bin", "SubnetSearchCallback(", "Probe("))
    sizes = {"150e6, 165e6": "30e3, 40e3", "200e6, 220e6": "40e3, 42e3"}
    few = {"EvolutionConfig(seed=0)": "EvolutionConfig(generations=1, population_size=5, num_offspring=3)"}
    exec(replace_once(searches, {**sizes, **few, 'blocks["search"]': 'blocks["search"].select(range(2))'}), names)
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == {"architecture", "pareto", "search"}
    exec(replace_once(calls_back, {"ParameterBin(150e6, 165e6)": "ParameterBin(30e3, 40e3)"}), names)
    short = {"steps=16": "steps=1, batch_size=2", "top(5)": "top(2)"}
    exec(replace_once(probes, {**short, 'blocks["search"]': 'blocks["search"].select([0])'}), names)
    ranked = [names["probe"](subnet) for subnet in names["ranked"]]
    assert len(ranked) == 2 and ranked == sorted(ranked)
    adapters, stores = snippet_with("LoraConfig"), snippet_with("LogitStore")
    exec(replace_once(adapters, {"max_steps=1000": "max_steps=1, use_cpu=True, report_to='none'"}), names)
    assert type(names["student"]) is type(untrained)
    exec(replace_once(stores, {'blocks["train"]': 'blocks["train"].select(range(16))'}), names)
    exec(snippet_with("push_subnet_to_hub("), names)
    assert names["subnet"] == names["student"].subnet and names["archive"].best == names["result"].best
    assert "LoRA adapters" in hub.files("me/pythia-160m-whittled")["README.md"].decode()
    names["trainer"].train()


def test_language_model_of_a_multimodal_checkpoint_is_saved_as_the_guide_says(tmp_path, monkeypatch, teacher_folder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    text = {**sizes, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 300}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=299)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    snippet = snippet_with("language_model")
    exec(replace_once(snippet, {"google/gemma-3-4b-pt": str(tmp_path / "whole")}), {})
    supernet = hf_whittle.AutoSuperNetForCausalLM.from_pretrained("gemma-3-4b-text")
    input_ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(supernet(input_ids).logits, whole(input_ids).logits)
    assert len(AutoTokenizer.from_pretrained("gemma-3-4b-text")) == 300


@pytest.mark.parametrize("text", blocks_of("yaml"), ids=lambda text: "recipe")
def test_recipes_in_readme_and_docs_are_valid(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    recipe = Recipe.load(path)
    assert recipe.student or recipe.bin.low >= 150e6


def test_recipes_in_examples_are_valid():
    recipes = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
    assert recipes and all(Recipe.load(path) for path in recipes)


def test_every_public_name_is_on_the_page_of_the_api():
    render = ROOT / "docs" / "render.py"
    spec = importlib.util.spec_from_file_location("render_pages", render)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    assert page == module.render(), "docs/api.md is not that of the docstrings; run `make pages`"
    assert [name for name in hf_whittle.__all__ if f"`{name}`" not in page] == []


def test_every_page_is_on_the_page_of_pages():
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in PAGES if page.parent.name == "docs" and page.name != "README.md"}
    assert {page for page in pages if f"]({page})" not in listed} == set()


@pytest.mark.slow
def test_messages_that_are_answered_are_raised():
    texts = set()
    for path in (ROOT / "hf_whittle").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    answers = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8").partition("## Questions without")[0]
    messages = re.findall(r"^## (.+)$", answers, flags=re.MULTILINE)
    assert messages
    for message in messages:
        for part in message.split(" ..."):
            assert any(part.strip() in text for text in texts), f"no error says {message!r}"


@pytest.mark.slow
def test_snippet_of_the_readme_prints_what_the_readme_says(tmp_path):
    readme = PAGES[0].read_text(encoding="utf-8")
    snippet = re.search(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)[1]
    said = re.search(r"^```text\n(.*?)^```", readme[readme.index(snippet) :], flags=re.MULTILINE | re.DOTALL)[1]
    run = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=540)
    assert run.returncode == 0, run.stderr
    got, expected = (
        re.search(r"([\d,]+) parameters: ([\d.]+), then ([\d.]+)", text).groups() for text in (run.stdout, said)
    )
    sizes, befores, afters = zip(got, expected, strict=True)
    # the text is the library of the Python at hand, and a search among near-equals goes its own way on another CPU
    assert all(800_000 <= int(size.replace(",", "")) <= 880_000 for size in sizes)
    assert float(befores[0]) == pytest.approx(float(befores[1]), rel=0.15)
    assert float(afters[0]) == pytest.approx(float(afters[1]), rel=0.1)


def headings_of(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name} links to {path}, which does not exist"
        assert not anchor or anchor in headings_of(target), f"{page.name} links to {path}#{anchor}, no such heading"
