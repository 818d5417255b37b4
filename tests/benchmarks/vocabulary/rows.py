"""One row: a student of some layers, widths and tokens, judged as it is cut, healed and distilled."""

import hashlib
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hf_whittle import DistillationConfig, DistillationTrainer, HealingConfig, SubnetConfig, extract_subnet
from hf_whittle.data import pack_documents
from hf_whittle.evaluation import as_input_ids
from hf_whittle.evaluation.texts import measure_texts
from hf_whittle.files.text import read_json, write_json
from hf_whittle.models.token_ids import origin_ids
from hf_whittle.vocabulary import prune_tokenizer

RUNS = Path(__file__).parents[1] / "runs" / "vocabulary"


@dataclass(frozen=True)
class Budget:
    """What students read and how they are trained.

    Args:
        healing_bytes (`int`): bytes of calibration text.
        training_bytes (`int`): bytes of training text, read once.
        block_size (`int`): tokens of a block.
        batch_size (`int`): blocks of a training step.
        window (`int`): most tokens of a document that is judged at a time.
        learning_rate (`float`): highest learning rate.
    """

    healing_bytes: int
    training_bytes: int
    block_size: int
    batch_size: int
    window: int
    learning_rate: float


@dataclass
class Bench:
    """A teacher, its text, and the budget of all its students.

    Args:
        teacher (`PreTrainedModel`): the teacher.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        order (`Sequence[int]`): its tokens in the order in which vocabularies keep them.
        pieces (`Sequence[str]`): training text.
        test (`Sequence[str]`): texts that are judged.
        budget (`Budget`): the budget.
        dropped_tokens (`str`, *optional*): what becomes of the probability of tokens that a student lacks.
    """

    teacher: Any
    tokenizer: Any
    order: Sequence[int]
    pieces: Sequence[str]
    test: Sequence[str]
    budget: Budget
    dropped_tokens: str = DistillationConfig.dropped_tokens

    def kept(self, size: int) -> tuple[int, ...] | None:
        """Ids of the tokens that a vocabulary of this size keeps; `None` if all."""
        return None if size == self.teacher.config.vocab_size else tuple(sorted(self.order[:size]))

    def tokenizer_of(self, kept: Any) -> Any:
        return self.tokenizer if kept is None else prune_tokenizer(self.tokenizer, kept)

    def with_vocabulary(self, subnet: SubnetConfig, size: int) -> SubnetConfig:
        kept = self.kept(size)
        return subnet if kept is None else replace(subnet, vocab_size=kept)

    @cached_property
    def _texts(self) -> tuple[list[str], list[str]]:
        """Text of healing and text of distillation."""
        pieces = list(self.pieces)
        random.Random(0).shuffle(pieces)
        parts, start = [], 0
        for size in (self.budget.healing_bytes, self.budget.training_bytes):
            end, read = start, 0
            while read < size:
                read += len(pieces[end].encode())
                end += 1
            parts.append(pieces[start:end])
            start = end
        return parts[0], parts[1]

    def row(self, folder: str, name: str, subnet: SubnetConfig, stages: Sequence[str]) -> dict[str, Any]:
        """Bits per byte of a student after some of the stages `"cut"`, `"healed"` and `"distilled"`."""
        settings = {"subnet": subnet.to_dict(), "stages": list(stages), "budget": asdict(self.budget)}
        settings |= {"dropped_tokens": self.dropped_tokens}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        path = RUNS / folder / f"{name}-{digest}.json"
        if not path.is_file():
            row = self._measured(subnet, stages)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, row)
            print(name, row, flush=True)
        return read_json(path)

    def _measured(self, subnet: SubnetConfig, stages: Sequence[str]) -> dict[str, Any]:
        tokenizer = self.tokenizer_of(subnet.vocab_size)
        healing, training = (self._blocks(texts, tokenizer) for texts in self._texts)
        student = extract_subnet(self.teacher, subnet, dtype=torch.float32)
        row: dict[str, Any] = {"parameters": student.num_parameters(), **self._judged(student, tokenizer, "cut")}
        if "healed" in stages:
            ids = origin_ids(as_input_ids(healing, len(tokenizer)), subnet.vocab_size)
            config = HealingConfig(batch_size=self.budget.batch_size)
            student = extract_subnet(
                self.teacher, subnet, dtype=torch.float32, heal=config, calibration_dataset=ids, progress=False
            )
            row |= self._judged(student, tokenizer, "healed")
        if "distilled" in stages:
            self._distil(student, tokenizer, training)
            row |= {"training_tokens": len(training) * self.budget.block_size}
            row |= self._judged(student, tokenizer, "distilled")
        return row

    def _blocks(self, texts: list[str], tokenizer: Any) -> Any:
        return pack_documents(Dataset.from_dict({"text": texts}), tokenizer, self.budget.block_size)

    def _judged(self, student: Any, tokenizer: Any, stage: str) -> dict[str, Any]:
        measured = measure_texts(student.eval(), tokenizer, self.test, block_size=self.budget.window, batch_size=1)
        row = {stage: round(measured.bits_per_byte, 4)}
        if stage == "cut":
            row["tokens_per_byte"] = round(measured.tokens / measured.bytes, 4)
        return row

    def _distil(self, student: Any, tokenizer: Any, blocks: Any) -> None:
        budget = self.budget
        steps = len(blocks) // budget.batch_size
        with tempfile.TemporaryDirectory() as folder:
            args = DistillationConfig(
                folder,
                max_steps=steps,
                per_device_train_batch_size=budget.batch_size,
                learning_rate=budget.learning_rate,
                dropped_tokens=self.dropped_tokens,
                lr_scheduler_type="cosine",
                warmup_steps=max(1, steps // 10),
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=0,
            )
            DistillationTrainer(
                student,
                self.teacher,
                args,
                train_dataset=blocks,
                processing_class=tokenizer,
                teacher_tokenizer=self.tokenizer,
            ).train()
