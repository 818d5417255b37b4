"""Configuration and class of a student."""

from typing import Any

from transformers import PreTrainedConfig

from ..architectures.dimensions import HEAD_CHANNELS, VOCABULARY
from ..architectures.registry import get_architecture, has_student_classes, is_whittle, rotated_channels
from ..architectures.table import Architecture
from ..errors import SubnetError
from ..subnet import Shape, SubnetConfig, count, indices
from .padding import keeps_whole_heads, padded_shape
from .students import stock_class, student_classes
from .token_ids import renumbered

_NOT_INHERITED = {
    "model_type", "architectures", "auto_map", "per_layer_config", "transformers_version", "_name_or_path", "head_dim",
    "rotary_head_dim", "rotary_pairs",
}  # fmt: skip


def stock_problem(config: PreTrainedConfig, subnet: SubnetConfig) -> str | None:
    """Why no stock class can hold a student, in words; `None` if one can."""
    shape, full = subnet.shape, Shape.from_config(config)
    if not subnet.is_uniform:
        return "its layers must all be alike"
    if not keeps_whole_heads(config, subnet):
        return f"its heads must keep all {full.head_dim} channels, got {count(subnet.head_dim or 0)}"
    return get_architecture(config).stock_problem(config, shape.filled(full).of_layer(0))


def fits_stock(config: PreTrainedConfig, subnet: SubnetConfig) -> bool:
    """Whether a stock class can hold a student."""
    return stock_problem(config, subnet) is None


def student_config(config: PreTrainedConfig, subnet: SubnetConfig, format: str = "auto") -> PreTrainedConfig:
    """The configuration of a subnet's student.

    Args:
        config (`PreTrainedConfig`): the super-network's.
        subnet (`SubnetConfig`): the subnet.
        format (`str`): `"stock"`, `"whittle"`, `"padded"`, or `"auto"` for stock where that can hold the student.

    Raises:
        SubnetError: if the format cannot hold the student.
    """
    architecture, shape = get_architecture(config), subnet.shape.filled(Shape.from_config(config))
    if format == "padded":
        shape = padded_shape(config, subnet)
    problem = None if format in ("whittle", "padded") else stock_problem(config, subnet)
    if format == "stock" and problem is not None:
        raise SubnetError(
            f"a {architecture.causal_class} cannot hold this student: {problem}; use format='auto' or 'padded', or "
            "search with stock_only=True"
        )
    is_stock = format != "whittle" and problem is None
    if not is_stock and not has_student_classes(architecture):
        raise SubnetError(
            f"no class holds this student ({problem or 'format=whittle'}): students of {config.model_type!r}, a "
            "registered architecture, must be such that its stock class holds them; search with stock_only=True"
        )
    first = shape.of_layer(0)
    attributes: dict[str, Any] = {**architecture.write_sizes(first), "num_hidden_layers": shape.num_hidden_layers}
    attributes |= {
        VOCABULARY.name: first[VOCABULARY],
        **renumbered(config.to_dict(), subnet.vocab_size, config.vocab_size),
    }
    for name in architecture.layer_lists:
        of_layers = getattr(config, name, None)
        if of_layers is not None:
            attributes[name] = [of_layers[layer] for layer in subnet.layers]
    of_students = architecture.student_values(config, first)
    left_out = {*_NOT_INHERITED, *of_students}
    values = {name: value for name, value in config.to_dict().items() if name not in left_out}
    names = getattr(config, "attribute_map", {})
    if not is_stock:
        attributes |= _rotary_values(config, subnet) | of_students
        if not shape.is_uniform:
            attributes["per_layer_config"] = _per_layer_config(architecture, shape, names)
    values |= {names.get(name, name): value for name, value in attributes.items()}
    own = stock_class(architecture.config_class) if is_stock else student_classes(architecture).config
    if is_stock and not _needs_head_dim(own, attributes):
        values.pop("head_dim", None)
    return own(**values)


def _needs_head_dim(own: type, values: dict[str, Any]) -> bool:
    """Whether a stock configuration has to state the channels of a head."""
    is_field = "head_dim" in getattr(own, "__dataclass_fields__", {})
    return is_field or values["head_dim"] * values["num_attention_heads"] != values["hidden_size"]


def _rotary_values(config: PreTrainedConfig, subnet: SubnetConfig) -> dict[str, Any]:
    """The rotary pairs of a student whose heads do not have all of them, and the heads' channels that they are of."""
    if keeps_whole_heads(config, subnet):
        return {}
    width, rotated = Shape.from_config(config).size(HEAD_CHANNELS), rotated_channels(config)
    kept = range(width) if subnet.head_dim is None else indices(subnet.head_dim)
    own = [entry // 2 for entry in kept if entry < rotated and entry % 2 == 0]
    before = getattr(config, "rotary_pairs", None)
    return {
        "rotary_head_dim": getattr(config, "rotary_head_dim", None) or width,
        "rotary_pairs": own if before is None else [before[pair] for pair in own],
    }


def _per_layer_config(architecture: Architecture, shape: Shape, names: dict[str, str]) -> dict[int, dict[str, int]]:
    """Attributes of each layer that differ between layers."""
    layers = [architecture.write_sizes(shape.of_layer(layer)) for layer in range(shape.num_hidden_layers)]
    differing = [name for name in layers[0] if len({layer[name] for layer in layers}) > 1]
    return {i: {names.get(name, name): layer[name] for name in differing} for i, layer in enumerate(layers)}


def student_class(config: PreTrainedConfig) -> Any:
    """The class of a student with this configuration."""
    architecture = get_architecture(config)
    return (
        student_classes(architecture).causal
        if is_whittle(config.model_type)
        else stock_class(architecture.causal_class)
    )
