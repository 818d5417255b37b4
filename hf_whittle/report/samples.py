"""Text by a student, to look at."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..record.samples import Sample

_NEW_TOKENS = 48


def continue_prompts(folder: str | Path, prompts: Sequence[str]) -> list[Sample]:
    """Continue prompts greedily, with the model in a folder.

    Raises:
        DataError: if a prompt has no tokens, or leaves the model no positions for more.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hf_whittle  # noqa: F401 (registers the classes of students)

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    samples = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        length = inputs["input_ids"].shape[1]
        room = (getattr(model.config, "max_position_embeddings", None) or math.inf) - length
        if length < 1 or room < 1:
            words = textwrap.shorten(prompt, 40)
            raise DataError(f"the prompt {words!r} has {length:,} tokens; give 1 to {length + room - 1:,}")
        output = model.generate(
            **inputs,
            max_new_tokens=int(min(_NEW_TOKENS, room)),
            do_sample=False,
            repetition_penalty=1.2,
            pad_token_id=tokenizer.eos_token_id,
        )
        text = tokenizer.decode(output[0], skip_special_tokens=True)
        if not text.startswith(prompt):  # a tokenizer that changes it
            text = prompt + tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        samples.append(Sample(prompt=prompt, continuation=text.removeprefix(prompt)))
    return samples
