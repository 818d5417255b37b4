"""Facts of the checkpoint that a student is extracted from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.repocard import metadata_load
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..compat.transformers import commit_hash
from ..files.paths import is_local
from .facts import SourceFacts
from .files import CARD_FILE

logger = logging.get_logger(__name__)

INHERITED = ("license", "license_name", "license_link", "language")
"""Metadata of a checkpoint's card that hold for students extracted from it, too."""


def checkpoint_facts(config: PreTrainedConfig) -> SourceFacts:
    """Facts of the checkpoint that a configuration was loaded from; nothing is known if it was not loaded.

    A checkpoint on the Hub is known by its name, and its commit if that is known; a folder by its last name, and the
    license and language of its card.
    """
    name = str(getattr(config, "name_or_path", "") or "")
    if not name:
        return SourceFacts()
    if not is_local(name):  # transformers alone does not tell a configuration its commit
        return SourceFacts(name=name, on_hub=True, commit=commit_hash(config) or "")
    folder = Path(name).resolve()
    card = folder / CARD_FILE
    return SourceFacts(name=folder.name, **(_inherited(card) if card.is_file() else {}))


def precision_of(model: Any) -> str | None:
    """The precision of a loaded model in words; `None` if it is single."""
    dtype = str(model.dtype).removeprefix("torch.")
    words = [] if dtype == "float32" else [dtype]
    if getattr(model, "is_quantized", False):
        config = model.config.quantization_config
        settings = config if isinstance(config, dict) else config.to_dict()
        bits = next((number for number in (4, 8) if settings.get(f"load_in_{number}bit")), None)
        words.append(f"{bits} bits" if bits else f"quantized by {settings['quant_method']}")
    return ", ".join(words) or None


def with_license(source: SourceFacts, token: str | bool | None = None) -> SourceFacts:
    """The facts with license and language from the checkpoint's card on the Hub, if the license is not known."""
    if not source.on_hub or source.license:
        return source
    try:
        card = hf_hub_download(source.name, CARD_FILE, revision=source.commit or None, token=token)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        logger.info(f"the card of {source.name} could not be read: {type(error).__name__}")
        return source
    metadata = _inherited(Path(card))
    link = metadata.get("license_link", "")
    if link and "://" not in link:
        metadata["license_link"] = f"{ENDPOINT}/{source.name}/blob/{source.commit or 'main'}/{link}"
    return replace(source, **metadata)


def _inherited(card: Path) -> dict[str, Any]:
    try:
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {name: metadata[name] for name in INHERITED if metadata.get(name)}
