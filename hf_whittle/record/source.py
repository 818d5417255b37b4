"""Facts of the checkpoint that a student is extracted from."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.repocard import metadata_load
from transformers import PreTrainedConfig
from transformers.utils import logging

from ..compat import commit_hash
from ..files.paths import is_local

logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
INHERITED = ("license", "license_name", "license_link", "language")
"""Metadata of a checkpoint's card that holds for what is cut from it, too."""


def checkpoint_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """Name of the checkpoint a configuration was loaded from, and its commit if that is on the Hub and known.

    Of a folder, its last name alone, and what its card says of license and language; nothing if it was not loaded.
    """
    name = str(getattr(config, "name_or_path", "") or "")
    if not name:
        return {}
    if not is_local(name):  # loaded by transformers alone, a configuration does not say of which commit it is
        commit = commit_hash(config)
        return {"name": name, "on_hub": True, **({"commit": commit} if commit else {})}
    folder = Path(name).resolve()
    card = folder / CARD_FILE
    return {"name": folder.name, **(_inherited(card) if card.is_file() else {})}


def add_license(results: dict[str, Any], token: str | bool | None = None) -> None:
    """Look up, on the Hub, license and language of the checkpoint a student was cut from, where they are not known."""
    source = results.get("supernet", {})
    if "on_hub" not in source or "license" in source:
        return
    try:
        card = hf_hub_download(source["name"], CARD_FILE, revision=source.get("commit"), token=token)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        logger.info(f"the card of {source['name']} could not be read: {type(error).__name__}")
        return
    source |= _inherited(Path(card))
    link = source.get("license_link", "")
    if link and "://" not in link:
        source["license_link"] = f"{ENDPOINT}/{source['name']}/blob/{source.get('commit', 'main')}/{link}"


def _inherited(card: Path) -> dict[str, Any]:
    try:
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {name: metadata[name] for name in INHERITED if metadata.get(name)}
