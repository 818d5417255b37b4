"""The page about recipes shows a plan and devices as they are."""

import re
from pathlib import Path

import pytest
from transformers import GPTNeoXConfig

import hf_whittle.loss.fused
from hf_whittle.cli.plan import summary
from hf_whittle.plan import plan_recipe
from hf_whittle.plan.devices import DEVICES
from hf_whittle.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"[\d,.]+(e\+\d+)?")
PYTHIA_410M = {
    "vocab_size": 50304,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "rotary_pct": 0.25,
    "max_position_embeddings": 2048,
}


@pytest.mark.slow
def test_the_plan_on_the_page_is_that_of_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_whittle.loss.fused, "_TILE_ENTRIES", 2**22)  # fewer tiles to rehearse, of 16 MB at most
    GPTNeoXConfig(**PYTHIA_410M).save_pretrained(tmp_path)
    path, larger = ROOT / "examples" / "recipes" / "pythia-410m-to-160m.yaml", {"per_device_train_batch_size": 32}
    recipe = Recipe.load(path, teacher=str(tmp_path), training=larger)
    shown = re.search(r"^```text\n(A student of .*?)\n```", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert shown is not None
    lines = summary(plan_recipe(recipe, "l4")).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("Time in all on other devices"))
    for printed, expected in zip(shown[1].split(), " ".join([*lines[:at], *lines[at + 1 :]]).split(), strict=True):
        if NUMBER.fullmatch(printed):  # bytes depend on the version of torch
            assert number(printed) == pytest.approx(number(expected), rel=0.1)
        elif set(printed) != {"-"}:
            assert printed == expected


def number(text):
    return float(text.replace(",", ""))


def test_devices_on_the_page_are_those_of_the_table():
    rows = [
        f"| `{each.name}` | {each.memory / 1e9:g} GB | {each.bf16 / 1e12:g} | {each.fp32 / 1e12:g} | {each.source} |"
        for each in DEVICES.values()
    ]
    assert "\n".join(rows) in PAGE
