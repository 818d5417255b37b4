"""Private and undocumented names of other libraries, each with the reason to use it.

No other code uses such a name, except methods that override one (`OVERRIDDEN`) and the code that travels with a student
and cannot import this package (`TRAVELING`). After an update, `tests/compat` says which name broke.
"""

from typing import NamedTuple

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
