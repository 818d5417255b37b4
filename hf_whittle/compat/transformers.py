"""Names of transformers."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig


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


def reporting_callbacks(names: list[str]) -> list[Any]:
    """Make the callbacks that a `Trainer` gets for the trackers in `report_to`.

    `get_reporting_integration_callbacks`: the callbacks are documented, but not how a name leads to one.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    return [callback() for callback in get_reporting_integration_callbacks(names)]


def has_stock_loss(model: "nn.Module") -> bool:
    """Return whether a causal language model computes the plain cross-entropy of its labels, and no loss of its own.

    `transformers.loss.loss_utils.ForCausalLMLoss`: `loss_function` of a model is public, and its default is not.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    return getattr(model, "loss_function", ForCausalLMLoss) is ForCausalLMLoss
