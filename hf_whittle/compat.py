"""Private and undocumented names of other libraries, each with the reason to use it.

No other module uses such a name, except methods that override one (`OVERRIDDEN`) and the code that travels with a
student and cannot import this module (`TRAVELING`). After an update, `tests/test_compat.py` says which name broke.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import argparse

    import torch
    from datasets import Dataset, IterableDataset
    from huggingface_hub import CommitInfo
    from torch import nn
    from transformers import PreTrainedConfig

SEEN_IN = {
    "accelerate": "1.15", "bitsandbytes": "0.50", "datasets": "5.2", "huggingface_hub": "2.4", "lm_eval": "0.4",
    "peft": "0.21", "torch": "2.13", "transformers": "5.23",
}  # fmt: skip
"""The versions in which every name here was last looked up in the source."""


class ForeignName(NamedTuple):
    """A name in a class or module, the reason to use it and, for a callable, its first parameters after `self`."""

    owner: str
    name: str
    reason: str
    parameters: tuple[str, ...] = ()


_TRAINER = "transformers:Trainer"
OVERRIDDEN = (
    ForeignName(_TRAINER, "_get_output_dir", "redirects a checkpoint to a temporary folder", ("trial",)),
    ForeignName(_TRAINER, "_save_checkpoint", "renames a checkpoint once all of it is on disk", ("model", "trial")),
    ForeignName(_TRAINER, "_run_epoch", "loads a sharded model whose last step was taken, without another step"),
    ForeignName(_TRAINER, "_finalize_training", "removes the last checkpoints atomically", ("trial",)),
    ForeignName(_TRAINER, "_push_from_checkpoint", "publishes with a card, in one commit", ("checkpoint_folder",)),
    ForeignName(_TRAINER, "_save", "writes results and tokenizer beside the weights", ("output_dir", "state_dict")),
    ForeignName(_TRAINER, "save_model", "has the private `_internal_call`", ("output_dir", "_internal_call")),
    ForeignName(_TRAINER, "_save_optimizer_and_scheduler", "saves projections of hidden states", ("output_dir",)),
    ForeignName(_TRAINER, "_load_optimizer_and_scheduler", "loads projections of hidden states", ("checkpoint",)),
    ForeignName(_TRAINER, "_load_from_checkpoint", "called: loads a finished training", ("resume_from_checkpoint",)),
    ForeignName(_TRAINER, "_finish_current_push", "called: waits for `push_in_progress`"),
    ForeignName("transformers:TrainingArguments", "_VALID_DICT_FIELDS", "lets a field of ours be given as JSON"),
    ForeignName("transformers:PreTrainedModel", "_upload_modified_files", "names the stock class", ("working_dir",)),
    ForeignName("torch.nn:Module", "_apply", "drops gathered weights when parameters are moved or cast", ("fn",)),
    ForeignName("torch.nn:ModuleList", "_modules", "holds all layers, where the list shows the active ones"),
)
"""Names of base classes that classes of this package override or use on themselves, none with a public counterpart."""

_CONFIG, _MODEL = "transformers:PreTrainedConfig", "transformers:PreTrainedModel"
_MAPPING = "transformers.conversion_mapping"
_PLANS = "unset, since stock plans shard heads that are all alike"
TRAVELING = (
    ForeignName(_MAPPING, "get_checkpoint_conversion_mapping", "see `load_renamed_as`", ("model_type",)),
    ForeignName(_MAPPING, "register_checkpoint_conversion_mapping", "see `load_renamed_as`"),
    ForeignName(_MODEL, "_no_split_modules", "names the layer class of a student, where that is not the stock one"),
    *(ForeignName(_MODEL, name, _PLANS) for name in ("_tp_plan", "_pp_plan")),
    *(ForeignName(_CONFIG, f"base_model{name}", _PLANS) for name in ("_tp_plan", "_pp_plan")),
    ForeignName(_MODEL, "post_init", "waits until there are layers, which the stock constructor does not make"),
    ForeignName(_CONFIG, "_attn_implementation", "that which the stock constructor chose; see `attention_kernel`"),
    ForeignName(_CONFIG, "_auto_class", "set where there is no `register_for_auto_class` yet"),
    ForeignName(_CONFIG, "validate_architecture", "allows any number of heads times `head_dim`"),
    ForeignName(_CONFIG, "validate_rope", "validates the first layer, since all rotate alike"),
    ForeignName(_CONFIG, "per_layer_config", "see `layer_configs`"),
)
"""Names in the code that travels with a student; it also uses `_weight_conversions`, as `add_renamings` does.

It builds the stock modules of its architecture, too, each from `transformers.models.*.modeling_*`.
"""

CONFIGURATION_AUTO = "transformers.models.auto.configuration_auto"
MODELING_AUTO = "transformers.models.auto.modeling_auto"
"""Modules that define `AutoConfig` and the classes of `AutoModel`.

Students are registered once these are imported. The public `AutoModel.register` needs the class, and importing it would
load torch with `import hf_whittle`.
"""


def attention_kernel(config: "PreTrainedConfig") -> str | None:
    """Return the name of the attention kernel that a model of this configuration runs.

    `_attn_implementation`: the constructor takes `attn_implementation`, and nothing public returns it.
    """
    return config._attn_implementation


def set_attention_kernel(config: "PreTrainedConfig", kernel: str | None) -> None:
    """Set the attention kernel of a configuration from which a model will be built.

    `_attn_implementation`: the public `set_attn_implementation` is a method of models alone.
    """
    config._attn_implementation = kernel


def commit_hash(config: "PreTrainedConfig") -> str | None:
    """Return the commit that a configuration was loaded from, if `set_commit_hash` set it.

    `_commit_hash`: transformers no longer sets it, still leaves it out of `config.json`, and has no public name.
    """
    return getattr(config, "_commit_hash", None)


def set_commit_hash(config: "PreTrainedConfig", commit: str | None) -> None:
    """Set the commit that a configuration was loaded from; see `commit_hash`."""
    config._commit_hash = commit


def layer_configs(config: "PreTrainedConfig") -> "list[PreTrainedConfig] | None":
    """Return the configuration of each layer, or `None` if all layers are alike.

    `is_heterogeneous` and `per_layer_config` are undocumented, and the only names for sizes that differ by layer.
    """
    return list(config.per_layer_config) if getattr(config, "is_heterogeneous", False) else None


def first_layer(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Return the configuration of the first layer; see `layer_configs`, which makes those of all."""
    return config.per_layer_config[0] if getattr(config, "is_heterogeneous", False) else config


def lacks_last_norm(config: "PreTrainedConfig") -> bool:
    """Whether a model of OPT has no norm after its last layer, as checkpoints of old fine-tunings.

    `_remove_final_layer_norm`: a field of the configuration that has no public name.
    """
    return config._remove_final_layer_norm


def no_init_weights() -> contextlib.AbstractContextManager[None]:
    """Build models inside the block without drawing random weights, which are loaded next.

    `no_init_weights` is undocumented. The public `torch.device("meta")` leaves buffers, such as rotary frequencies,
    without values.
    """
    from transformers import initialization

    return initialization.no_init_weights()


def from_config(model_class: Any, config: "PreTrainedConfig", **kwargs: Any) -> Any:
    """Make a model with random weights, in the precision and with the attention kernel that `kwargs` say.

    `_from_config`: the public `from_config` is a method of auto classes alone, and a constructor takes no `dtype`.
    """
    return model_class._from_config(config, **kwargs)


def load_renamed_as(class_name: str, stock_class_name: str) -> None:
    """Let a class load files with old names of weights as a stock class does.

    `transformers.conversion_mapping` is undocumented. Renamings go by class name; a subclass without its own draws
    weights at random that a file calls by their old names.
    """
    from transformers import conversion_mapping

    mapping: Any = conversion_mapping.get_checkpoint_conversion_mapping(stock_class_name)
    if mapping is not None:
        conversion_mapping.register_checkpoint_conversion_mapping(class_name, mapping, overwrite=True)


def add_renamings(model: Any, renamings: Mapping[str, str]) -> None:
    """Let `save_pretrained` write weights under other names than those in the model.

    `_weight_conversions` and `core_model_loading.WeightRenaming`: `from_pretrained` leaves the renamings it applied
    there for `save_pretrained` to revert. A model built from a configuration has none, nor a public way to get some.

    Args:
        model (`PreTrainedModel`): the model; it keeps the renamings it has.
        renamings (`Mapping[str, str]`): prefix in the model, by the pattern of the name in files.
    """
    from transformers.core_model_loading import WeightRenaming

    conversions = list(getattr(model, "_weight_conversions", None) or ())
    known = {pattern for conversion in conversions for pattern in conversion.source_patterns}
    added = [WeightRenaming(pattern, prefix) for pattern, prefix in renamings.items() if pattern not in known]
    model._weight_conversions = conversions + added


def has_loaded_weights(model: "nn.Module") -> bool:
    """Return whether some weights come from a checkpoint, and not the configuration alone.

    `_is_hf_initialized`, which `from_pretrained` sets on each parameter it loads. A model built from a configuration
    that was loaded has the same public `name_or_path`.
    """
    return any(getattr(parameter, "_is_hf_initialized", False) for parameter in model.parameters())


def tied_weights(model: Any) -> set[str]:
    """Return the names of a model's weights that are tied to others.

    `all_tied_weights_keys`: empty where a checkpoint holds different matrices although its configuration says
    `tie_word_embeddings`. `from_pretrained` only logs a warning of that.
    """
    return set(getattr(model, "all_tied_weights_keys", ()))


def set_layer_index(layer: Any, index: int) -> None:
    """Let a layer use the key-value cache at an index: `layer_idx`, which has no public way to change it."""
    for module in layer.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = index


def find_file(source: str, name: str, **hub: Any) -> str | None:
    """Return the path of a file of a checkpoint, downloaded if needed, or `None` if there is no such file.

    `_raise_exceptions_for_missing_entries` of `cached_file`: by default a missing file and a Hub that cannot be reached
    raise the same `OSError`.
    """
    from transformers.utils import cached_file

    return cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)


def commit_of_file(path: str | None) -> str | None:
    """Return the commit of a file in the cache of the Hub; `None` for any other file.

    `extract_commit_hash` is undocumented. The public `HfApi.model_info` asks the Hub, not the cache.
    """
    from transformers.utils import extract_commit_hash

    return extract_commit_hash(path, None)


def template_names(source: str, *, local_files_only: bool, **hub: Any) -> list[str]:
    """Return the names of a repository's additional chat templates, from the cache if offline.

    `list_repo_templates` is undocumented. The public `HfApi.list_repo_tree` asks the Hub, not the cache.
    """
    from transformers.utils import list_repo_templates

    return list_repo_templates(source, local_files_only=local_files_only, **hub)


def relative_imports(path: Any) -> list[str]:
    """Return the files that remote code imports relatively, directly or through one another.

    `get_relative_import_files` is undocumented; `save_pretrained` copies the files it names.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    return get_relative_import_files(path)


def sorted_checkpoints(folder: str, *, by_time: bool = False) -> list[str]:
    """Return the checkpoint folders of `Trainer`, the oldest first, by step or by time of change.

    `sort_checkpoints` is undocumented. The public `get_last_checkpoint` returns one of them.
    """
    from transformers.trainer_utils import sort_checkpoints

    return sort_checkpoints(folder, use_mtime=by_time)


def push_in_progress(job: Any) -> Any:
    """Wrap a `Future` for `Trainer.push_in_progress`, for which `Trainer` waits when training ends.

    `PushInProgress` is an internal class, with no public way to let `Trainer` wait for a job.
    """
    from transformers.utils import PushInProgress

    return PushInProgress([job])  # type: ignore[arg-type]


HUB_LOGGERS = ("huggingface_hub.utils._http", "httpx", "httpx2")
"""Loggers that print the URLs of requests, with the signatures in them; huggingface_hub has no option to hide these."""


def commit_info(endpoint: str, **facts: Any) -> "CommitInfo":
    """Make the `CommitInfo` of a commit whose answer was lost.

    `_endpoint`: otherwise its `repo_url` is on the default Hub. The public `create_commit` would commit again.
    """
    from huggingface_hub import CommitInfo

    return CommitInfo(**facts, _endpoint=endpoint)


def dataset_fingerprint(documents: "Dataset") -> str:
    """Return the hash by which `datasets` caches results of `map`: `_fingerprint`, documented as a concept alone."""
    return documents._fingerprint


def set_dataset_fingerprint(documents: "Dataset", fingerprint: str) -> None:
    """Set the hash of a dataset that was loaded.

    `_fingerprint`: the public argument `new_fingerprint` belongs to `map` and `filter`, not to loading.
    """
    documents._fingerprint = fingerprint


def with_features(documents: "IterableDataset") -> "IterableDataset":
    """Return a streamed dataset that knows its columns, read off its first rows if needed.

    `_resolve_features`: publicly, `column_names` stays `None` where the source does not state its columns.
    """
    return documents._resolve_features()


def execution_device(module: "nn.Module") -> Any:
    """Return the device that runs a module, `"cpu"` unless accelerate offloaded it: `_hf_hook`, not public."""
    return getattr(getattr(module, "_hf_hook", None), "execution_device", "cpu")


def quantization_config(settings: dict[str, Any]) -> Any:
    """Make the configuration of a quantizer of the settings that `from_pretrained` takes as a dict.

    `AutoQuantizationConfig`: exported, but not documented. Publicly, each quantizer has a class, found by no name.
    """
    from transformers.quantizers import AutoQuantizationConfig

    return AutoQuantizationConfig.from_dict(settings)


def check_quantizer(config: Any, device_map: Any) -> None:
    """Raise an error, as `from_pretrained` would, if a library or a device that a quantizer needs is missing.

    `AutoHfQuantizer`: exported, but not documented; there is no public check.
    """
    from transformers.quantizers import AutoHfQuantizer

    AutoHfQuantizer.from_config(config, pre_quantized=False).validate_environment(device_map=device_map)


def use_one_gpu(args: Any) -> None:
    """Let a `Trainer` without a launcher train on one GPU where it sees several: `_n_gpu`.

    Publicly, only hiding the other GPUs would do, and they may hold parts of a teacher. With several, `Trainer` runs in
    `DataParallel`, on a batch for each of them.
    """
    if args.n_gpu > 1:
        args._n_gpu = 1


def shard_with_fsdp2(accelerator: Any, model: "nn.Module") -> "nn.Module":
    """Shard a model in place, as the accelerator shards those it prepares.

    `fsdp2_prepare_model` is undocumented. Under FSDP2, the public `Accelerator.prepare` demands an optimizer with a
    model, and a teacher has none. The plugin keeps the names of the first model's layers, which another may not have.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = accelerator.state.fsdp_plugin
    policy, names = plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap
    plugin.transformer_cls_names_to_wrap = None
    try:
        return fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = policy, names


def uncompiled(model: Any) -> Any:
    """Return the model that `torch.compile` wrapped, any other as it is: `_orig_mod`; torch has no public way back."""
    return getattr(model, "_orig_mod", model)


def is_compiled_in_place(module: Any) -> bool:
    """Return whether `module.compile()` was called: `_compiled_call_impl`; torch has no public test for that."""
    return getattr(module, "_compiled_call_impl", None) is not None


def version_of(tensor: "torch.Tensor") -> int:
    """Return the number of changes to a tensor in place: `_version`; publicly, only comparing all values would do."""
    return tensor._version


SHARD_ATTRIBUTES = ("full_tensor", "_is_flat_param", "ds_id")
"""Attributes that only shards have: under FSDP2 (public), FSDP1 and DeepSpeed (private; neither has a public test)."""
FSDP1_MARK = "_fsdp_use_orig_params"
"""Attribute of modules whose parameters FSDP1 manages; with `use_orig_params`, the parameters bear no mark."""


def is_partitioned(parameter: "torch.Tensor") -> bool:
    """Return whether DeepSpeed ZeRO-3 spread a parameter over processes: `ds_id`; it has no public test for that."""
    return hasattr(parameter, "ds_id")


def whole_shape(parameter: "torch.Tensor") -> tuple[int, ...]:
    """Return the shape of a parameter, of DeepSpeed's shards that of the whole: `ds_shape`; their own is `(0,)`."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def forget_partitioning() -> None:
    """Load models whole from now on, although arguments of a training with DeepSpeed ZeRO-3 may still exist.

    `transformers.integrations.deepspeed` is not documented.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


@contextlib.contextmanager
def not_partitioned() -> Iterator[None]:
    """Load models whole inside the block, although arguments of a training with DeepSpeed ZeRO-3 exist.

    `_hf_deepspeed_config_weak_ref`; transformers has no public way to set it again.
    """
    from transformers.integrations import deepspeed

    kept = deepspeed._hf_deepspeed_config_weak_ref
    forget_partitioning()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = kept


LORA_PREFIX = "lora_"
"""Part of the name of every parameter of a LoRA adapter; peft has no public test for such a parameter."""


@contextlib.contextmanager
def without_packing(model: "nn.Module") -> Iterator[None]:
    """Keep bitsandbytes from packing 4-bit weights for the CPU inside the block.

    `support_avx512bf16_for_cpu` of `Linear4bit`; there is no public switch. On CPUs with AVX512-BF16, the first forward
    in evaluation mode packs the weights in place, with rounded scales, for a kernel that asserts multiples of 32
    outputs.
    """
    name = "support_avx512bf16_for_cpu"
    packing: list[Any] = [module for module in model.modules() if getattr(module, name, False)]
    for module in packing:
        setattr(module, name, False)
    try:
        yield
    finally:
        for module in packing:
            setattr(module, name, True)


def reporting_callbacks(names: list[str]) -> list[Any]:
    """Make the callbacks that a `Trainer` gets for the trackers in `report_to`.

    `get_reporting_integration_callbacks`: the callbacks are documented, but not how a name leads to one.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    return [callback() for callback in get_reporting_integration_callbacks(names)]


def divide_requests(lm: Any, accelerator: Any) -> None:
    """Let the processes of an `Accelerator` divide the requests that lm-evaluation-harness makes to an `HFLM`.

    `_rank` and `_world_size`: it divides requests by itself only to a model that it has loaded.
    """
    lm.accelerator = accelerator
    lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes


def rehearsing(watch: Any) -> Any:
    """Context managers in which tensors have shapes but no memory, and every operation is given to a function.

    `torch._subclasses.fake_tensor` and `torch.utils._python_dispatch` are documented, and have no public names.

    Args:
        watch (`Callable`): called as `watch(operation, args, kwargs)`; gives the result of the operation.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return watch(func, args, kwargs or {})

    stack = contextlib.ExitStack()
    stack.enter_context(FakeTensorMode())
    stack.enter_context(Watching())
    return stack


def arguments_of(parser: "argparse.ArgumentParser") -> "list[argparse.Action]":
    """Return the arguments of a parser, the commands of which are one.

    `_actions`: `argparse` has no public list of them.
    """
    return list(parser._actions)


def has_stock_loss(model: "nn.Module") -> bool:
    """Return whether a causal language model computes the plain cross-entropy of its labels, and no loss of its own.

    `transformers.loss.loss_utils.ForCausalLMLoss`: `loss_function` of a model is public, and its default is not.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    return getattr(model, "loss_function", ForCausalLMLoss) is ForCausalLMLoss
