"""Render the model cards and pictures in this folder from the result files beside them, as `make model-cards` does.

Give folders of students as arguments to copy their result files here first:

    python model_cards/render.py demo
"""

import argparse
from pathlib import Path

from hf_whittle.files.atomic import atomic_folder
from hf_whittle.hub.publication import publication_of_folder
from hf_whittle.hub.saving import describe
from hf_whittle.record.files import CARD_FILE

HERE = Path(__file__).parent
RESULT_FILES = (
    "config.json", "results.json", "subnet.json", "healing.json", "search.json", "candidates.jsonl", "recipe.yaml",
)  # fmt: skip


def take_over(student: Path) -> None:
    """Copy the published form of a student's result files into a folder of its name."""
    publication = publication_of_folder(student, student.resolve().name)
    with atomic_folder(HERE / student.resolve().name, replace=True) as folder:
        for name in RESULT_FILES:
            if name in publication.files:
                (folder / name).write_bytes(publication.read(name))


def render(folder: Path) -> None:
    """Draw the pictures of a folder and rewrite its card."""
    (folder / CARD_FILE).unlink(missing_ok=True)
    describe(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Render the model cards and pictures from the result files beside them."
    )
    parser.add_argument("students", nargs="*", type=Path, help="folders of students whose result files to copy first")
    for student in parser.parse_args().students:
        take_over(student)
    for results in sorted(HERE.glob("*/results.json")):
        render(results.parent)
        print(results.parent.relative_to(HERE.parent))
