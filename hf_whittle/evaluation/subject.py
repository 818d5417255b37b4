"""The model to evaluate: a checkpoint, a student, an adapter, or a super-network with a subnet active."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..errors import CheckpointError, SubnetError, WhittleError
from ..files.paths import expanded
from ..files.sources import fetch_folder, load_checkpoint, load_tokenizer
from ..files.text import read_json
from ..models.placement import is_placed
from ..models.supernets import AutoSuperNetForCausalLM
from ..models.weights import load_whole
from ..subnet import SubnetConfig
from ..vocabulary.of_model import check_has_tokens, tokenizer_of_subnet


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Args:
        model (`PreTrainedModel`): the model, on its device.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer; a subnet's has the tokens that the subnet keeps.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@contextlib.contextmanager
def loaded_subject(
    name: str | Path,
    *,
    subnet: SubnetConfig | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | torch.device | None = None,
) -> Iterator[Subject]:
    """Load a model to evaluate; inside the block, its subnet is active.

    Args:
        name (`str` or `Path`): a folder, or a name on the Hub, of a checkpoint, a student or an adapter.
        subnet (`SubnetConfig`, *optional*): the subnet of a super-network to evaluate.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        dtype (`str`, *optional*, defaults to `"auto"`): precision of the weights; that of the checkpoint by default.
        device (`str` or `torch.device`, *optional*): where it runs; the CPU by default.

    Raises:
        CheckpointError: if it cannot be read, is not whole, has no tokenizer, or is an adapter of a model that is not
            there.
        SubnetError: if the subnet does not fit it, or it is an adapter.
        VocabularyError: if the tokenizer has more tokens than the model, or the tokens that a subnet keeps make none.
        ImportError: if it is an adapter, and peft is not installed.
        WhittleError: if there is no such device.
    """
    source, place = expanded(name), checked_device(device)
    hub = {} if revision is None else {"revision": revision}
    adapter = _adapter_config(source, hub)
    if adapter is not None and subnet is not None:
        raise SubnetError(
            f"{source} is an adapter, and no subnet of one can be active; give the super-network's folder"
        )
    if adapter is not None:
        model, tokenizer = _with_adapter(source, adapter, hub, dtype)
    else:
        tokenizer = load_tokenizer(source, **hub)
        if subnet is None:
            model = _load_model(source, dtype, **hub)
        else:
            model = load_checkpoint(AutoSuperNetForCausalLM.from_pretrained, source, dtype=dtype, **hub)
    check_has_tokens(model.config.vocab_size, tokenizer, f"the tokenizer of {source}")
    if subnet is not None:
        subnet.validate(model.config)
        tokenizer = tokenizer_of_subnet(tokenizer, subnet.vocab_size, model.config.vocab_size)
    model = model if is_placed(model) else model.to(place)
    with contextlib.nullcontext() if subnet is None else model.active_subnet(subnet):
        yield Subject(model, tokenizer)


def checked_device(device: str | torch.device | None) -> torch.device:
    """A device by its name; the CPU by default.

    Raises:
        WhittleError: if this machine has no such device.
    """
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # an AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise WhittleError(
            f"the device {str(device)!r} cannot be used: {reason}; give cpu, cuda, cuda:1 or mps"
        ) from error
    return found


def _adapter_config(source: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration of an adapter; `None` if the source is none."""
    folder = fetch_folder(source, [], optional=[ADAPTER_CONFIG_NAME, CONFIG_NAME], **hub)
    file = folder / ADAPTER_CONFIG_NAME
    if not file.is_file() or (folder / CONFIG_NAME).is_file():
        return None
    try:
        return dict(read_json(file))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; save the adapter again") from error


def _load_model(source: str, dtype: str, **hub: Any) -> Any:
    def load(name: str, **kwargs: Any) -> Any:
        try:
            return load_whole(AutoModelForCausalLM.from_pretrained, name, **kwargs)[0]
        except ValueError as error:  # transformers: a type of model that it does not know
            if isinstance(error, WhittleError):
                raise
            raise CheckpointError(f"cannot load {name!r}: {' '.join(str(error).split())}") from error

    return load_checkpoint(load, source, dtype=dtype, **hub)


def _with_adapter(source: str, config: dict[str, Any], hub: dict[str, Any], dtype: str) -> tuple[Any, Any]:
    """A model with an adapter, and the tokenizer: the adapter's if it has one, or else the model's."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"{source} is an adapter, which needs peft: pip install 'hf_whittle[adapters]'") from error
    base = config.get("base_model_name_or_path")
    if not base:
        raise CheckpointError(
            f"the adapter {source} does not say which model it is of; set base_model_name_or_path in its "
            f"{ADAPTER_CONFIG_NAME}"
        )
    try:
        model = _load_model(expanded(base), dtype)
    except CheckpointError as error:
        raise CheckpointError(
            f"the model that the adapter {source} is of, {base}, cannot be loaded: {error}; correct "
            f"base_model_name_or_path in its {ADAPTER_CONFIG_NAME}"
        ) from error
    model = load_checkpoint(lambda name, **kwargs: PeftModel.from_pretrained(model, name, **kwargs), source, **hub)
    try:
        return model, load_tokenizer(source, **hub)
    except (CheckpointError, ValueError):
        return model, load_tokenizer(expanded(base))
