"""Maps from the vocabulary of a student with a pruned tokenizer to that of its teacher."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import VocabularyError
from ..kept import Kept, canonical, indices
from .structure import settings_of

_ALIKE = ("normalizer", "pre_tokenizer")
"""Parts of a tokenizer that pruning leaves as they are."""


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """The teacher's id of every token of a student, and the student's first piece of every other one.

    Args:
        to_teacher (`torch.Tensor`): teacher ids of the student's tokens, `(V_student,)`, `int64`; none twice.
        dropped (`torch.Tensor`): ids of the teacher's tokens that the student lacks and writes with several of its own,
            `(D,)`, `int64`; none unless tokenizers are known.
        first_pieces (`torch.Tensor`): the first token with which the student writes each of these, `(D,)`, `int64`.

    Raises:
        VocabularyError: if a teacher id is given twice.
    """

    to_teacher: torch.Tensor
    dropped: torch.Tensor
    first_pieces: torch.Tensor

    def __post_init__(self) -> None:
        ids = torch.cat([self.to_teacher, self.dropped])
        if len(ids.unique()) != len(ids) or len(self.dropped) != len(self.first_pieces):
            raise VocabularyError(
                "a map of vocabularies names each token of the teacher once, and a first piece for each dropped one"
            )

    @classmethod
    def of_kept(cls, kept_ids: Kept | Iterable[int]) -> "VocabularyMap":
        """The map of a student with some of the teacher's tokens, whose tokenizers are not known.

        Args:
            kept_ids (`int` or `Iterable[int]`): ascending teacher ids, or the number of first ones.
        """
        none = torch.empty(0, dtype=torch.long)
        return cls(torch.tensor(indices(canonical(kept_ids, "kept_ids"))), none, none)

    @classmethod
    def between(cls, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> "VocabularyMap":
        """The map from the tokens of a student's tokenizer to those of its teacher's.

        Raises:
            VocabularyError: unless the tokenizers are equal, or the student's is one of `prune_tokenizer`.
        """
        ours, theirs = student.get_vocab(), teacher.get_vocab()
        if ours == theirs:
            return cls.of_kept(max(ours.values()) + 1)
        tokens = sorted(ours, key=lambda token: ours[token])
        to_teacher = [theirs.get(token, -1) for token in tokens]
        is_part = len(ours) < len(theirs) and min(to_teacher) >= 0 and to_teacher == sorted(to_teacher)
        if not is_part or not _are_alike(student, teacher):
            raise VocabularyError(_difference(ours, theirs))
        holes = [place for place, token in enumerate(tokens) if ours[token] != place]
        if holes:
            raise VocabularyError(
                f"the student's tokenizer has no token with id {holes[0]}, but tokens with higher ids; prune the "
                "teacher's tokenizer to ids of tokens alone"
            )
        ids = (to_teacher, *_first_pieces(student, teacher))
        return cls(*(torch.tensor(each, dtype=torch.long) for each in ids))

    def __len__(self) -> int:
        return len(self.to_teacher)

    @property
    def without_pieces(self) -> "VocabularyMap":
        """The same map as if the tokenizers were not known."""
        return replace(self, dropped=self.dropped[:0], first_pieces=self.first_pieces[:0])

    @property
    def is_identity(self) -> bool:
        """Whether student and teacher have the same ids for the same tokens, so that there is nothing to map."""
        return not len(self.dropped) and torch.equal(self.to_teacher, torch.arange(len(self)))

    @property
    def largest(self) -> int:
        """The highest teacher id."""
        return int(torch.cat([self.to_teacher, self.dropped]).max())

    @property
    def fingerprint(self) -> str:
        """A short hash of the map."""
        digest = hashlib.blake2b(digest_size=8)
        for ids in (self.to_teacher, self.dropped, self.first_pieces):
            digest.update(len(ids).to_bytes(8, "little") + ids.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def _are_alike(student: Any, teacher: Any) -> bool:
    """Whether two tokenizers differ in nothing that decides on tokens but the tokens themselves."""
    ours, theirs = settings_of(student), settings_of(teacher)
    return ours["model"]["type"] == theirs["model"]["type"] and all(ours[name] == theirs[name] for name in _ALIKE)


def _difference(ours: dict[str, int], theirs: dict[str, int]) -> str:
    different = [token for token in sorted({*ours, *theirs}) if ours.get(token) != theirs.get(token)]
    first = different[0]
    return (
        f"student and teacher tokenizers differ in {len(different)} tokens, first {first!r}: student id "
        f"{ours.get(first)}, teacher id {theirs.get(first)}; distillation needs the same tokenizer, or one that "
        "prune_tokenizer made of the teacher's"
    )


def _first_pieces(student: Any, teacher: Any) -> tuple[Sequence[int], Sequence[int]]:
    """Tokens that the student lacks, and its first piece of each; special tokens and such without a piece left out."""
    ours, settings = student.get_vocab(), settings_of(student)["model"]
    if settings.get("continuing_subword_prefix") or settings.get("end_of_word_suffix"):
        return [], []  # a model puts marks of words on all that it segments
    model, unknown = student.backend_tokenizer.model, student.unk_token_id
    special = set(teacher.added_tokens_decoder)
    found: dict[int, int] = {}
    for token, index in teacher.get_vocab().items():
        if token not in ours and index not in special:
            pieces = model.tokenize(token)
            if pieces and pieces[0].id != unknown:
                found[index] = pieces[0].id
    dropped = sorted(found)
    return dropped, [found[index] for index in dropped]
