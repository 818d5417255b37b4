"""Texts, a subnet, and tasks of lm-evaluation-harness made from files."""

import json

import yaml

from hf_whittle import SubnetConfig

TEXTS = [
    "So they cut it down, layer by layer and head by head, until what was left was small.\n",
    "def whittle(model, subnet):\n    for layer in subnet.layers:\n        yield model.layers[layer]\n" * 2,
    "Über Größe: 50 €",
    "x",
]
SUBNET = SubnetConfig(
    hidden_size=24, num_hidden_layers=[0, 2, 3], num_attention_heads=[2, 4, 3], intermediate_size=[40, 64, 50]
)
"""A subnet that no stock class holds."""


def write_tasks(folder):
    """Write the texts and a few questions, and three tasks on them; returns the folder."""
    rows = {
        "texts": [{"page": text} for text in TEXTS],
        "questions": [
            {"question": f"{number} and {number} is", "choices": ["one", "two", "whittle"], "answer": number % 3}
            for number in range(6)
        ],
    }
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, each)), encoding="utf-8")
    perplexities = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    tasks = {
        "local_texts": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{page}}"}
        | {"metric_list": perplexities, "metadata": {"version": 1.0}},
        "local_choices": {"output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "answer"}
        | {"doc_to_choice": "choices", "fewshot_split": "test"},
        "local_answers": {"output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "two"}
        | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}, "metric_list": [{"metric": "exact_match"}]},
    }
    for name, task in tasks.items():
        data = folder / ("texts.jsonl" if name == "local_texts" else "questions.jsonl")
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **source, **task}), encoding="utf-8")
    return folder
