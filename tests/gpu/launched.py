"""A small training in the only process of a launcher.

torchrun --nproc-per-node 1 launched.py WAY FOLDER
"""

import sys

import torch
from fixtures_distillation import logged_numbers, make_trainer
from fixtures_processes import print_at_exit_whether_the_group_was_ended
from training.small_supernet_training import losses_of
from training.small_supernet_training import make_trainer as make_supernet_trainer

ON_CPU = not torch.cuda.is_available()
WAYS = {
    "plain": {},
    "hidden states": {"hidden_weight": 0.5},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}},
    "super-network": {"strategy": "sandwich"},
}


def trained(way, folder, sizes=None, **changes):
    """A trainer after five steps; `sizes` collects the entries of the output layer's result in each forward pass."""
    make = make_supernet_trainer if way == "super-network" else make_trainer
    trainer = make(folder, max_steps=5, use_cpu=ON_CPU, **changes)
    if sizes is not None:
        head = trainer.model.get_output_embeddings()
        head.register_forward_hook(lambda module, _, output: sizes.append(output.numel()) if module.training else None)
    trainer.train()
    return trainer


def numbers_of(way, trainer):
    """Logged numbers of a trainer, and logits of its model through the launcher's wrapper."""
    model, logged = trainer.model_wrapped, losses_of if way == "super-network" else logged_numbers
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(24, device=device).view(2, 12), use_cache=False).logits
    return {"logged": logged(trainer), "logits": logits.cpu()}


def main(way, folder):
    sizes = []
    trainer = trained(way, folder, sizes, **WAYS[way])
    assert torch.distributed.is_initialized(), "the launcher's process has no group"
    sharded = any(hasattr(parameter, "full_tensor") for parameter in trainer.model_wrapped.parameters())
    assert sharded == (way == "fsdp2")
    print("backend:", torch.distributed.get_backend(), flush=True)
    torch.save({**numbers_of(way, trainer), "outputs of the head": torch.tensor(sizes)}, f"{folder}/launched.pt")


if __name__ == "__main__":
    print_at_exit_whether_the_group_was_ended()
    main(*sys.argv[1:])
