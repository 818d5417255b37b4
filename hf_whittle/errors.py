"""Errors that a user can meet; each is also the builtin error it refines."""


class WhittleError(Exception):
    """Root of every error `hf_whittle` raises on purpose."""


class SubnetError(WhittleError, ValueError):
    """A subnet contradicts itself or does not fit its super-network."""


class BinError(WhittleError, ValueError):
    """No subnet of a search space lies in a bin."""


class DataError(WhittleError, ValueError):
    """Text is missing, empty, too short, or not text at all."""


class ArchitectureError(WhittleError, ValueError):
    """A checkpoint has an architecture that `hf_whittle` does not know."""


class CheckpointError(WhittleError, OSError):
    """A checkpoint cannot be found, read or saved, or contradicts its configuration."""


class WeightsError(WhittleError, ValueError):
    """Weights of a model are quantized, offloaded or adapted, or contradict its configuration."""


class VocabularyError(WhittleError, ValueError):
    """Teacher and student, or model and tokenizer, do not have the same tokens."""


class RecipeError(WhittleError, ValueError):
    """A recipe has an unknown key, or a value of the wrong type or out of range."""


class OutputError(WhittleError, OSError):
    """An output folder cannot be written, or holds another run."""


class OtherSearchError(OutputError):
    """A folder holds another search than the one to resume in it."""


class NonFiniteLossError(WhittleError, ArithmeticError):
    """A training loss is NaN or Inf."""


class StoreError(WhittleError, ValueError):
    """Stored predictions of a teacher are missing, damaged, or made for other text or another teacher."""


class HealingError(WhittleError, ArithmeticError):
    """A teacher or a student computes NaN or Inf while the student is healed."""


class HubError(WhittleError, OSError):
    """A repository on the Hub cannot be read or written, or holds something else."""
