"""Generation configurations that can be saved."""

from typing import Any

from transformers import GenerationConfig

from ..errors import CheckpointError


def check_generation_config(config: Any) -> None:
    """Raise `CheckpointError` for a generation configuration that contradicts itself: no model is saved with it."""
    if not isinstance(config, GenerationConfig):
        return
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            "the model's generation configuration contradicts itself, so that no model could be saved with it: "
            f"{' '.join(str(error).split())} Mend generation_config.json of the checkpoint, or model.generation_config"
        ) from error
