"""A teacher that runs while its student trains: load it, check it, place it on devices, compute its targets."""

import os
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..compat.sharding import shard_with_fsdp2
from ..compat.transformers import set_commit_hash
from ..evaluation import evaluating
from ..files.paths import expanded
from ..files.sources import commit_of, load_tokenizer
from ..loss.targets import DenseTargets, dense_targets
from ..models.heads import output_layer
from ..models.placement import input_device, is_sharded
from ..models.weights import load_whole
from .vocabularies import TeacherVocabulary

_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder")
"""Arguments of `from_pretrained` that say where a teacher is, and with it its tokenizer."""


def load_teacher(name: str | os.PathLike[str], options: dict[str, Any] | None = None) -> PreTrainedModel:
    """Load a teacher with `AutoModelForCausalLM`.

    Args:
        name (`str` or `Path`): a repository of the Hub, or a folder.
        options (`dict`, *optional*): arguments of `from_pretrained`, such as `dtype`, `device_map` or `revision`;
            `load_in_4bit` and `load_in_8bit` quantize with bitsandbytes.

    Raises:
        ImportError: if it is to be quantized and bitsandbytes is not installed.
        CheckpointError: if weights are missing, contain NaN or Inf, or have another shape than in its configuration.
    """
    name, options = expanded(name), dict(options or {})
    bits = {key: options.pop(key) for key in list(options) if key.startswith(("load_in_", "bnb_", "llm_int8_"))}
    if bits:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(**bits)
    teacher, _ = load_whole(AutoModelForCausalLM.from_pretrained, name, **options)
    set_commit_hash(teacher.config, commit_of(name, **options))
    return teacher


def tokenizer_of_teacher(
    name: str | os.PathLike[str], options: dict[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a teacher, of the same revision; arguments as for `load_teacher`.

    Raises:
        CheckpointError: if it has none.
    """
    return load_tokenizer(expanded(name), **{key: value for key, value in (options or {}).items() if key in _HUB})


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Raise `ValueError` if a teacher shares trainable parameters with its student, and would change with it."""
    trained = {_storage(parameter): name for name, parameter in student.named_parameters() if parameter.requires_grad}
    shared = next((name for name, parameter in teacher.named_parameters() if _storage(parameter) in trained), None)
    if shared is not None:
        which = "is the student" if student is teacher else f"shares {shared} with the student"
        raise ValueError(
            f"the teacher {which} and would change in its training; give a separate teacher, such as "
            "copy.deepcopy(model). To distil a super-network into its own subnets, use SupernetTrainer"
        )


def _storage(parameter: torch.Tensor) -> int:
    """Address of a parameter's memory; the identity of a parameter that has none in this process."""
    if parameter.is_meta or parameter.numel() == 0 or hasattr(parameter, "full_tensor"):
        return id(parameter)
    return parameter.untyped_storage().data_ptr()


class Teacher:
    """A teacher on its device, run in evaluation mode and without gradients.

    It is moved to the accelerator's device, unless it was placed by a device map, offloaded, quantized or sharded
    before; under FSDP2 or DeepSpeed ZeRO-3 it is sharded as the student is.

    Args:
        model (`PreTrainedModel`): the teacher.
        accelerator (`Accelerator`): the trainer's accelerator.
        vocabulary (`TeacherVocabulary`, *optional*): the teacher's ids and entries for a student of another vocabulary.
    """

    def __init__(self, model: PreTrainedModel, accelerator: Accelerator, vocabulary: TeacherVocabulary | None = None):
        self._accelerator, self._vocabulary = accelerator, vocabulary
        self._head = output_layer(model)
        self.model: Any = model
        self._run = _place(model, accelerator)  # the model, or its DeepSpeed engine

    @torch.no_grad()
    def targets(self, inputs: dict[str, Any]) -> DenseTargets:
        """Compute targets of all rows of a batch, in their order.

        Args:
            inputs (`dict`): arguments of the model's forward, with `input_ids` of the student, `(batch, length)`.
        """
        device = input_device(self.model)
        inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        if self._vocabulary is not None:
            inputs["input_ids"] = self._vocabulary.read(inputs["input_ids"])
        with self._accelerator.autocast(), evaluating(self.model):
            targets = dense_targets(self._run, self._head, **inputs)
        return targets if self._vocabulary is None else targets.restricted(self._vocabulary.restriction)


_FORWARD_SECTIONS = ("zero_optimization", "bf16", "fp16", "train_micro_batch_size_per_gpu", "train_batch_size")
"""Sections of a DeepSpeed configuration for a model that only runs forward."""


def _place(model: Any, accelerator: Accelerator) -> nn.Module:
    if getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False):
        return model
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None and plugin.zero_stage == 3:  # it may be partitioned already, since it was loaded so
        model.requires_grad_(False)
        import deepspeed

        settings = {key: plugin.deepspeed_config[key] for key in _FORWARD_SECTIONS if key in plugin.deepspeed_config}
        engine = deepspeed.initialize(model=model, config=settings)[0]
        engine.eval()
        return engine
    if is_sharded(model) or any(parameter.is_meta for parameter in model.parameters()):
        return model
    if accelerator.is_fsdp2:
        model.requires_grad_(False)
        return shard_with_fsdp2(accelerator, model)
    return model.to(accelerator.device)
