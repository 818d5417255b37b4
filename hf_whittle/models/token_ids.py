"""Token ids of a student that keeps a part of the vocabulary."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..architectures.dimensions import VOCABULARY
from ..errors import SubnetError, VocabularyError
from ..subnet import Kept, indices

if TYPE_CHECKING:
    import torch

_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_WORDS = "bad_words_ids"
_UNKNOWN = ("force_words_ids", "sequence_bias")


def renumbered(settings: Mapping[str, Any], kept: Kept | None, vocab_size: int) -> dict[str, Any]:
    """The settings of a configuration, or of a generation configuration, that name tokens, with the student's ids.

    A student has no `pad_token_id` if it does not keep the token, of several end-of-text tokens those that it keeps,
    and of suppressed tokens and bad words those that it can write. Ids beyond the super-network's vocabulary stay.

    Args:
        settings (`Mapping[str, Any]`): settings by their names, of which the result has some.
        kept (`int` or `tuple[int, ...]`, *optional*): kept tokens; all if `None`.
        vocab_size (`int`): entries of the super-network's vocabulary.

    Raises:
        SubnetError: if another token that a setting names is not kept, such as that of the end of a text.
    """
    if kept is None:
        return {}
    own = {token: place for place, token in enumerate(indices(kept))}

    def of(tokens: list[int]) -> list[int | None]:
        return [own.get(token) if 0 <= token < vocab_size else token for token in tokens]

    found: dict[str, Any] = {}
    for name, value in settings.items():
        if value is None:
            continue
        if name.endswith("_token_id"):
            found[name] = _special(name, value, [token for token in of(_as_list(value)) if token is not None])
        elif name in _SUPPRESSED:
            found[name] = [token for token in of(value) if token is not None]
        elif name == _WORDS:
            found[name] = [word for word in map(of, value) if None not in word]
        elif name in _UNKNOWN:
            raise SubnetError(
                f"{name} of the model's generation_config cannot be renumbered for a student that keeps a part of the "
                "vocabulary; set it to None"
            )
    return found


def _as_list(value: Any) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _special(name: str, value: Any, kept: list[int]) -> Any:
    if not kept and name != "pad_token_id":
        raise SubnetError(
            f"{VOCABULARY.name}: the subnet leaves out token {value}, the {name} of the model; keep it, or set {name} "
            "of the model's config and generation_config to a kept token or to None"
        )
    return kept if isinstance(value, list | tuple) else next(iter(kept), None)


def student_ids(input_ids: "torch.Tensor", kept: Kept | None, vocab_size: int) -> "torch.Tensor":
    """A student's ids of tokens that are given by their ids in the super-network.

    Args:
        input_ids (`torch.Tensor`): ids of the super-network, all of them of kept tokens.
        kept (`int` or `tuple[int, ...]`, *optional*): kept tokens; all if `None`.
        vocab_size (`int`): entries of the super-network's vocabulary.

    Raises:
        VocabularyError: if a token is not kept.
    """
    if kept is None:
        return input_ids
    tokens = indices(kept)
    own = input_ids.new_full((vocab_size,), -1)
    own[list(tokens)] = input_ids.new_tensor(range(len(tokens)))
    found = own[input_ids]
    if (found < 0).any():
        raise VocabularyError(
            f"the text has token {input_ids[found < 0][0]}, which the student does not keep; encode it with the "
            "student's tokenizer, and give the super-network's ids of these tokens"
        )
    return found


def origin_ids(own_ids: "torch.Tensor", kept: Kept | None) -> "torch.Tensor":
    """Ids in the super-network of tokens that are given by their ids in a student; the reverse of `student_ids`.

    Args:
        own_ids (`torch.Tensor`): ids of the student.
        kept (`int` or `tuple[int, ...]`, *optional*): kept tokens; all if `None`.
    """
    return own_ids if kept is None else own_ids.new_tensor(indices(kept))[own_ids]
