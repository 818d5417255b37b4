"""The errors a user can meet; each is also the builtin error it refines."""


class WhittleError(Exception):
    """Root of every error `hf_whittle` raises on purpose."""


class SubnetError(WhittleError, ValueError):
    """A sub-network that contradicts itself or does not fit its super-network."""


class BinError(WhittleError, ValueError):
    """A bin that no sub-network of a search space can reach."""


class DataError(WhittleError, ValueError):
    """Text that is missing, empty or too short for what was asked of it."""


class ArchitectureError(WhittleError, ValueError):
    """A checkpoint of an architecture that `hf_whittle` does not know."""


class CheckpointError(WhittleError, OSError):
    """A checkpoint that cannot be found or read."""


class WeightsError(WhittleError, ValueError):
    """A model whose weights are quantized, offloaded or adapted, or not those its configuration says."""


class VocabularyError(WhittleError, ValueError):
    """Teacher and student, or model and tokenizer, that do not speak the same tokens."""


class RecipeError(WhittleError, ValueError):
    """A recipe with an unknown key, a value of the wrong type, or one that is out of range."""


class OutputError(WhittleError, OSError):
    """An output folder that cannot be written, or that holds another run."""


class OtherSearchError(OutputError):
    """A folder that holds another search than the one that is to go on in it."""


class NonFiniteLossError(WhittleError, ArithmeticError):
    """A training loss that is NaN or infinite."""


class StoreError(WhittleError, ValueError):
    """Stored predictions of a teacher that are missing, damaged, or made for something else."""


class HealingError(WhittleError, ArithmeticError):
    """A teacher or a student that computes what is not a number while the student is healed."""


class HubError(WhittleError, OSError):
    """A repository of the Hub that cannot be read or written, or that holds something else."""
