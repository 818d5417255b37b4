"""What the models of all students have: stock modules, each built from its own layer's configuration."""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from .whittle_configuration import WhittleConfiguration


class WhittleRotaryEmbedding(nn.Module):
    """Comes before a stock rotary embedding among the bases of a student's, and gives the kept rotary pairs alone."""

    pairs_are_neighbours = False
    """Whether the channels of a pair are neighbours; else they are half of the rotated channels apart."""

    def __init__(self, config: WhittleConfiguration):
        super().__init__(config=config.with_all_pairs())
        self.pairs = config.rotary_pairs

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = super().forward(*args, **kwargs)
        return (cos, sin) if self.pairs is None else (self._kept(cos), self._kept(sin))

    def _kept(self, embedding: torch.Tensor) -> torch.Tensor:
        """The channels of kept pairs; slices, unlike a tensor of indices, need no copy to the device."""
        pairs, half = self.pairs or [], embedding.shape[-1] // 2
        if self.pairs_are_neighbours:
            channels = [2 * pair + second for pair in pairs for second in (0, 1)]
        else:
            channels = [pair + first for first in (0, half) for pair in pairs]
        runs: list[list[int]] = []
        for channel in channels:
            if runs and runs[-1][1] == channel:
                runs[-1][1] += 1
            else:
                runs.append([channel, channel + 1])
        return torch.cat([embedding[..., :0], *(embedding[..., start:stop] for start, stop in runs)], dim=-1)


class WhittlePreTrainedModel(PreTrainedModel):
    """What models with and without a head have in common."""

    def save_pretrained(self, *args, **kwargs):
        """Save with an `auto_map` for all auto classes; arguments as in `PreTrainedModel`."""
        own: Any = type(self).config_class
        configuration, prefix = own.__module__.rpartition(".")[2], own.__name__.removesuffix("Config")
        modeling = configuration.replace("configuration_", "modeling_", 1)
        self.config.auto_map = {
            "AutoConfig": f"{configuration}.{own.__name__}",
            "AutoModel": f"{modeling}.{prefix}Model",
            "AutoModelForCausalLM": f"{modeling}.{prefix}ForCausalLM",
        }
        super().save_pretrained(*args, **kwargs)


class WhittleModel(WhittlePreTrainedModel):
    """Comes before a stock model without a head among the bases of a student's.

    The stock constructor makes all but the layers.
    """

    layer_class: ClassVar[Any]
    """A layer that is made of its own configuration and its index."""
    layers_name: ClassVar[str] = "layers"
    """Name of the list of layers."""
    rotary_class: ClassVar[type[WhittleRotaryEmbedding] | None] = None
    """The rotary embedding; `None` where positions are learned."""
    layers: Any
    rotary_emb: Any

    def __init__(self, config: Any):
        without_layers = config.with_all_pairs()
        without_layers.num_hidden_layers = 0
        super().__init__(without_layers)
        config._attn_implementation = without_layers._attn_implementation
        self.config = config
        layers: Any = self.get_submodule(self.layers_name)
        layers.extend(self.layer_class(layer, index) for index, layer in enumerate(config.per_layer_config))
        for module in layers.modules():
            if hasattr(module, "config"):
                module.config = config  # its settings may change, such as the attention kernel
        if self.rotary_class is not None:
            self.rotary_emb = self.rotary_class(config)
        self.post_init()

    def post_init(self):
        """Draw weights and so on, but not while the stock constructor runs, before there are layers."""
        if any(True for _ in self.get_submodule(self.layers_name).children()):
            super().post_init()


class WhittleForCausalLM(WhittlePreTrainedModel):
    """Comes before a stock model for causal language modeling among the bases of a student's."""

    model_class: ClassVar[Any]
    """The model without a head."""
    # The stock plans shard heads that are all alike.
    _tp_plan: Any = None
    _pp_plan: Any = None

    def __init__(self, config: Any):
        PreTrainedModel.__init__(self, config)
        setattr(self, self.base_model_prefix, self.model_class(config))
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


# A saved student carries these files, and loads with `trust_remote_code=True` where hf_whittle is not installed.
WhittlePreTrainedModel.register_for_auto_class("AutoModel")
WhittleForCausalLM.register_for_auto_class("AutoModelForCausalLM")
