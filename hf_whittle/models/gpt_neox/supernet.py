"""The GPT-NeoX super-network."""

from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from ...compat import load_renamed_as
from ..supernet import SuperNetModel


class GPTNeoXSuperNetForCausalLM(SuperNetModel, GPTNeoXForCausalLM):
    """A GPT-NeoX or Pythia checkpoint whose slices run as models of their own.

    Example:

    ```python
    >>> supernet = GPTNeoXSuperNetForCausalLM.from_pretrained("EleutherAI/pythia-410m")
    >>> with supernet.active_subnet(subnet):
    ...     supernet.generate(**inputs)
    ```
    """

    config: GPTNeoXConfig


# Pythia's files call the output matrix `embed_out`; transformers renames it by class name, and this class has another.
load_renamed_as("GPTNeoXSuperNetForCausalLM", "GPTNeoXForCausalLM")
