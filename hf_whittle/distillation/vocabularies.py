"""Vocabularies of student and teacher: equal, or the student's a part of the teacher's."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..errors import VocabularyError
from ..kept import indices
from ..loss.targets import Restriction
from ..record.lineage import Lineage
from ..vocabulary.vocabulary_map import VocabularyMap


@dataclass(frozen=True)
class TeacherVocabulary:
    """The teacher's vocabulary as its student sees it.

    Args:
        to_teacher (`torch.Tensor`): the teacher's id of each of the student's tokens, `(V_student,)`.
        restriction (`Restriction`): the student's part of the teacher's distribution.
    """

    to_teacher: torch.Tensor
    restriction: Restriction

    @classmethod
    def of(cls, vocabulary: VocabularyMap, dropped_tokens: str) -> "TeacherVocabulary":
        """Make it of a map, and of a name in `DROPPED_TOKENS`."""
        if dropped_tokens == "renormalized":
            return cls(vocabulary.to_teacher, Restriction(vocabulary.to_teacher))
        restriction = Restriction(vocabulary.to_teacher, vocabulary.dropped, vocabulary.first_pieces)
        return cls(vocabulary.to_teacher, restriction)

    def read(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Map ids of the student to the teacher's."""
        return self.to_teacher.to(input_ids.device)[input_ids]


def match_vocabularies(
    student: Any,
    teacher: Any,
    student_tokenizer: PreTrainedTokenizerBase | None,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: VocabularyMap | None = None,
    needs_pieces: bool = True,
) -> VocabularyMap | None:
    """Find the map from a student's vocabulary to its teacher's; `None` if their ids are the same.

    It is given, or follows from the tokenizers, or from the record of the student's making. Vocabularies of different
    sizes are the same if the tokenizers are given and equal: the rest is padding.

    Args:
        student (`PreTrainedModel`): the student.
        teacher (`PreTrainedModel`): the teacher.
        student_tokenizer (`PreTrainedTokenizerBase`, *optional*): the student's tokenizer.
        teacher_tokenizer (`PreTrainedTokenizerBase`, *optional*): the teacher's tokenizer.
        vocabulary (`VocabularyMap`, *optional*): the map.
        needs_pieces (`bool`, *optional*, defaults to `True`): whether dropped tokens need a first piece, for which the
            tokenizers must be known.

    Raises:
        VocabularyError: if the vocabularies do not fit, or there is no telling whether they do.
    """
    ours, theirs = student.config.vocab_size, teacher.config.vocab_size
    if vocabulary is None and student_tokenizer is not None and teacher_tokenizer is not None:
        vocabulary = VocabularyMap.between(student_tokenizer, teacher_tokenizer)
    if vocabulary is None:
        record = _KeptTokens.recorded(student)
        if record is None and ours == theirs:
            return None
        kept = None if record is None else record.ids_in(teacher)
        if kept is None:
            of_student = ours if record is None else f"{ours}, kept of {record.size or 'unknown'} others"
            raise VocabularyError(
                f"the teacher's vocabulary has {theirs} entries, the student's {of_student}; if that is padding, or "
                "the student has a part of the teacher's tokens, show which tokens both have with processing_class=... "
                "and teacher_tokenizer=...; else use a teacher with the student's tokenizer"
            )
        if needs_pieces and len(kept) < theirs:
            raise VocabularyError(
                "dropped_tokens='first_piece' needs to know how the student writes tokens that it lacks; give "
                "processing_class=... and teacher_tokenizer=..., or set dropped_tokens='renormalized'"
            )
        vocabulary = VocabularyMap.of_kept(kept)
    check_fits(vocabulary, ours, theirs)
    return None if vocabulary.is_identity else vocabulary


def check_fits(vocabulary: VocabularyMap, student: int, teacher: int) -> None:
    """Raise `VocabularyError` unless a map fits the numbers of entries of the two vocabularies."""
    if vocabulary.is_identity and student == teacher:
        return  # special tokens beyond both have no entry in either
    if len(vocabulary) > student or vocabulary.largest >= teacher:
        raise VocabularyError(
            f"the tokenizers, or the map of the vocabularies, have {len(vocabulary)} tokens of the student and ids up "
            f"to {vocabulary.largest} of the teacher, but the student's vocabulary has {student} entries, the "
            f"teacher's {teacher}; give the models' own tokenizers"
        )


@dataclass(frozen=True)
class _KeptTokens:
    """Tokens that a student keeps of the model it was extracted from, by the record of its making.

    Args:
        ids (`tuple[int, ...]`): their ids in that model.
        size (`int`, *optional*): entries of that model's vocabulary; students of earlier versions do not know it.
    """

    ids: tuple[int, ...]
    size: int | None

    @classmethod
    def recorded(cls, model: Any) -> "_KeptTokens | None":
        """Those of a model; `None` if it keeps all tokens, or is no student."""
        lineage = Lineage.of(model)
        kept, supernet = getattr(lineage.subnet, "vocab_size", None), lineage.results.supernet
        return None if kept is None else cls(indices(kept), None if supernet is None else supernet.vocab_size)

    def ids_in(self, teacher: Any) -> tuple[int, ...] | None:
        """Their ids in a teacher, by whose size the model they were kept of is known; `None` if it is another one.

        Raises:
            VocabularyError: if the teacher keeps a part of the same vocabulary, without all of them.
        """
        if self.size is None:
            return None
        if self.size == teacher.config.vocab_size:
            return self.ids
        others = _KeptTokens.recorded(teacher)
        if others is None or others.size != self.size:
            return None
        places = {index: place for place, index in enumerate(others.ids)}
        lacking = [index for index in self.ids if index not in places]
        if lacking:
            raise VocabularyError(
                f"the student keeps {len(lacking)} tokens that the teacher lacks, first that with id {lacking[0]} in "
                "the model that both were extracted from; use a teacher with all tokens of the student"
            )
        return tuple(places[index] for index in self.ids)
