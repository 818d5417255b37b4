"""The Hub, emptied for each test, and a client of it that is logged in."""

from types import SimpleNamespace

import pytest
from hub.server import WRITE
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.utils import _http


@pytest.fixture
def hub(hub_server, monkeypatch, tmp_path_factory):
    """An empty Hub. Its client is `me`, has an empty cache, uploads by LFS, and tries again without waiting."""
    hub_server.reset()
    HfFileSystem.clear_instance_cache()
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", WRITE)
    yield hub_server
    breaches = hub_server.breaches
    hub_server.reset()
    assert breaches == []


@pytest.fixture(params=["lfs", "xet"])
def any_hub(request, hub, monkeypatch):
    """`hub` with a client that uploads by LFS, and with one that uploads by Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return hub
