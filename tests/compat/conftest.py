"""A repository on the Hub of the tests."""

from types import SimpleNamespace

import pytest
from huggingface_hub import create_repo, upload_file


@pytest.fixture
def repository(hub):
    """A repository of three small files, and its commit."""
    create_repo("me/files")
    for name in ("config.json", "weights.bin", "additional_chat_templates/short.jinja"):
        commit = upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="me/files")
    return SimpleNamespace(name="me/files", commit=commit.oid)
