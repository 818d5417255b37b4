"""Print the peak memory of a process that reads blocks of a streamed file, in MB.

python streaming_peak.py FILE BLOCKS
"""

import itertools
import json
import resource
import sys
from dataclasses import dataclass

import numpy as np
from datasets import disable_progress_bars

from hf_whittle.data import BlockStream, StreamedSource, held_out_blocks, stream_documents

SIZE = 1024


@dataclass(frozen=True)
class Bytes:
    """Takes the bytes of a text for its tokens, which costs nothing."""

    column: str = "text"

    def check(self, features):
        assert self.column in features

    def __call__(self, values):
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in values]


def main(path, number):
    fractions = {"search": 0.01, "test": 0.01}
    source = StreamedSource(lambda: stream_documents(files=[path]), Bytes(), fractions=fractions)
    held_out = held_out_blocks(source, {"search": 64, "test": 256}, SIZE)
    stream, total = BlockStream([source], SIZE), 0
    for block, row in enumerate(itertools.islice(iter(stream), int(number))):
        total += int(row["input_ids"].sum())
        if block % 1000 == 0:
            stream.forget(block)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak": peak, "sum": total, "held_out": {name: len(each) for name, each in held_out.items()}}))


if __name__ == "__main__":
    disable_progress_bars()
    main(*sys.argv[1:])
