"""Script: a small training in one of two processes, each of which is the only one of its machine."""

import sys
from pathlib import Path

from fixtures_distillation import make_trainer

import hf_whittle.training.checkpoints
from hf_whittle.errors import OutputError


def main(folder, disks, resume=None):
    """Train into a shared folder or one for each process, and print the renamed checkpoints or the error."""
    from accelerate import PartialState

    state = PartialState(cpu=True)
    put_in_place, renamed = hf_whittle.training.checkpoints.put_in_place, []

    def put(temporary, path, **kwargs):
        renamed.append(path.name)
        put_in_place(temporary, path, **kwargs)

    hf_whittle.training.checkpoints.put_in_place = put
    output = Path(folder, f"machine-{state.process_index}" if disks == "own" else "shared")
    trainer = make_trainer(
        output, per_device_train_batch_size=2, save_strategy="steps", save_steps=1, save_total_limit=2
    )
    try:
        trainer.train(resume_from_checkpoint=resume is not None)
    except OutputError as error:
        print(f"refused: {error}")
    else:
        print(f"renamed: {' '.join(renamed)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
