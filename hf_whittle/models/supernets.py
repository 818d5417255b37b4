"""The super-network class of each architecture, and the one that picks it."""

from functools import lru_cache
from typing import Any

from transformers import PreTrainedConfig

from ..architectures.registry import ARCHITECTURES, check_model_type, get_architecture
from ..compat.transformers import from_config, load_renamed_as
from .students import stock_class
from .supernet import SuperNetModel, found_config

_SUFFIX = "SuperNetForCausalLM"


class AutoSuperNetForCausalLM:
    """Super-networks of any architecture that has a table.

    Example:

    ```python
    >>> supernet = AutoSuperNetForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
    >>> with supernet.active_subnet(subnet):
    ...     supernet.generate(**inputs)
    ```
    """

    def __init__(self) -> None:
        raise TypeError("AutoSuperNetForCausalLM is made by from_pretrained or from_config, not by its constructor")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> SuperNetModel:
        """Load a checkpoint as a super-network; arguments as in `PreTrainedModel.from_pretrained`.

        Raises:
            ArchitectureError: if the checkpoint is of an architecture without a table.
            CheckpointError: if a weight is missing, has another shape than the configuration says, or contains NaN or
                Inf.
            WeightsError: if the checkpoint is quantized, or a `quantization_config` is given.
        """
        config = kwargs.get("config")
        if isinstance(config, PreTrainedConfig):
            found: dict[str, Any] = config.to_dict()
        else:
            found = found_config(config or pretrained_model_name_or_path, kwargs)
        model_type: Any = found.get("model_type")
        check_model_type(model_type, pretrained_model_name_or_path, found.get("text_config"))
        return supernet_class(model_type).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> SuperNetModel:
        """Make a super-network with random weights.

        Args:
            config (`PreTrainedConfig`): its configuration.
            kwargs: `dtype` and `attn_implementation`, as in `AutoModelForCausalLM.from_config`.

        Raises:
            ArchitectureError: if its architecture has no table, or it is that of a student that no stock class holds.
        """
        get_architecture(config)
        return from_config(supernet_class(config.model_type), config, **kwargs)


@lru_cache
def supernet_class(model_type: str) -> type[SuperNetModel]:
    """The super-network class of an architecture: its stock class with `SuperNetModel` before it.

    Raises:
        ArchitectureError: if there is no table for it.
    """
    architecture = get_architecture(model_type)
    name, stock = f"{architecture.prefix}{_SUFFIX}", stock_class(architecture.causal_class)
    about = f"A `{stock.__name__}` whose slices run as models of their own."
    # Old names of weights are renamed by class name, and this class has another than the stock one.
    load_renamed_as(name, stock.__name__)
    return type(name, (SuperNetModel, stock), {"__doc__": about, "__module__": __name__})


def __getattr__(name: str) -> Any:
    for model_type in ARCHITECTURES if name.endswith(_SUFFIX) else ():
        if name == f"{get_architecture(model_type).prefix}{_SUFFIX}":
            return supernet_class(model_type)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
