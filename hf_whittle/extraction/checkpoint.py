"""A safetensors checkpoint on disk or on the Hub, read one tensor at a time."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, logging

from ..architectures.registry import check_model_type
from ..compat.transformers import find_file, set_commit_hash
from ..errors import CheckpointError, WeightsError
from ..files.paths import expanded
from ..files.sources import commit_of
from ..files.text import read_json
from ..files.tokenizer import TOKENIZER_FILES, names_of_templates

logger = logging.get_logger(__name__)


class Checkpoint(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by name. None is kept in memory: each access maps a tensor from its file.

    Args:
        source (`str` or `Path`): a local folder or a name on the Hub.
        revision, token, cache_dir, local_files_only, subfolder (*optional*): as in
            `PreTrainedModel.from_pretrained`.

    Raises:
        CheckpointError: if the checkpoint cannot be found or read.
        ArchitectureError: if its architecture has no table.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
    ):
        self.source = expanded(source)
        self._hub: dict[str, Any] = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "subfolder": subfolder,
        }
        self._paths: dict[str, Path] = {}
        path = Path(self.source)
        looks_local = isinstance(source, Path) or path.is_absolute() or self.source.startswith(".")
        if path.is_file() or (looks_local and not path.is_dir()):
            problem = "it is a file; give the folder it is in" if path.is_file() else "there is no such folder"
            raise CheckpointError(f"cannot read the checkpoint {self.source!r}: {problem}")

    @cached_property
    def config(self) -> PreTrainedConfig:
        found, _ = self._reading(PreTrainedConfig.get_config_dict, self.source, **self._hub)
        if not isinstance(found, dict):
            raise CheckpointError(f"cannot read the checkpoint {self.source!r}: its config.json is not a JSON object")
        check_model_type(found.get("model_type"), self.source, found.get("text_config"))
        if found.get("quantization_config"):
            raise WeightsError(f"the checkpoint {self.source!r} is quantized; give the one it was made from")
        config = self._reading(AutoConfig.from_pretrained, self.source, **self._hub)
        set_commit_hash(config, commit_of(self.source, **self._hub))
        return config

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The checkpoint's own or, without one, the one that `from_pretrained` derives from its configuration."""
        if self.find("generation_config.json"):
            return self._reading(GenerationConfig.from_pretrained, self.source, **self._hub)
        found, _ = self._reading(PreTrainedConfig.get_config_dict, self.source, **self._hub)
        return self._reading(GenerationConfig.from_model_config, found)

    @property
    def tokenizer_files(self) -> dict[str, Path]:
        """Paths of the tokenizer's files, by their names in the checkpoint."""
        names = [*TOKENIZER_FILES, *self._reading(names_of_templates, self.source, **self._hub)]
        return {name: path for name in names if (path := self.find(name)) is not None}

    @cached_property
    def dtype(self) -> torch.dtype:
        """Precision that `from_pretrained` loads in: the configuration's, or else the first floating-point tensor's."""
        stated = self.config.dtype
        if stated is None:
            floating = (tensor.dtype for name in self if (tensor := self[name]).is_floating_point())
            stated = next(floating, torch.float32)
        if isinstance(stated, str):
            stated = getattr(torch, stated, stated)
        if not isinstance(stated, torch.dtype):
            raise CheckpointError(
                f"the configuration of {self.source!r} has dtype {stated!r}, which torch lacks; give dtype=..."
            )
        return stated

    @cached_property
    def _files(self) -> dict[str, str]:
        """The file that holds each tensor."""
        if self.find(SAFE_WEIGHTS_NAME) is not None:  # an index beside it is a leftover
            with self._open(SAFE_WEIGHTS_NAME) as file:
                return dict.fromkeys(file.keys(), SAFE_WEIGHTS_NAME)
        index = self.find(SAFE_WEIGHTS_INDEX_NAME)
        if index is not None:
            try:
                return dict(read_json(index)["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{index} is not an index of shards: {error!r}; download it again") from error
        pickled = next((name for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if self.find(name)), None)
        has = f"it has {pickled}, which is not read because a pickle can run code" if pickled else "it has neither"
        raise CheckpointError(
            f"{self.source} must have {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME}, {has}; load it with "
            "AutoModelForCausalLM.from_pretrained and save it with save_pretrained"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> torch.Tensor:
        with self._open(self._files[name]) as file:
            try:
                return file.get_tensor(name)
            except SafetensorError as error:
                raise CheckpointError(
                    f"{self._paths[self._files[name]]} lacks {name}, which the index says it has"
                ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def fetch(self, names: list[str]) -> None:
        """Download the files of these tensors, and no others, and check that they can be read."""
        for file in dict.fromkeys(self._files[name] for name in names):
            with self._open(file):
                pass

    def _open(self, file: str) -> Any:
        if file not in self._paths:
            path = self.find(file)
            if path is None:
                raise CheckpointError(f"{self.source} has no file {file}, which its index names; download it again")
            self._paths[file] = path
        path = self._paths[file]
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read, it is truncated or corrupt: {error}; download it again"
            ) from error

    def find(self, file: str) -> Path | None:
        """Path of a file of the checkpoint, downloaded if need be; `None` if there is no such file."""
        found = self._reading(find_file, self.source, file, **self._hub)
        return None if found is None else Path(found)

    def _reading(self, read: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(*args, **kwargs)
        except (OSError, ValueError, TypeError, AttributeError, StrictDataclassError) as error:
            raise CheckpointError(
                f"cannot read the checkpoint {self.source!r}: {' '.join(str(error).split())}"
            ) from error
