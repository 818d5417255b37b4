"""The vocabulary against layers: bits per byte of students of a pretrained model, cut, healed and distilled.

Students keep all tokens, or the first of `rank_tokens`, counted on documents of the calibration text. At equal
parameters, those with all tokens lose a longer run of layers, chosen as in the recovery benchmark, whose environment
variables name the model, the calibration text, on which students are also distilled, and the test text. All students
read the same bytes, each in tokens of its own. Others keep all layers; they are judged on documents of the calibration
text that were not counted, too. One learning rate and one seed. Every row is kept in `runs/`, so that an interrupted
benchmark goes on.
"""

from .pretrained import measure

__all__ = ["measure"]
