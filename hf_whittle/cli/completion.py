"""Shell completion: a script that completes commands, options, keys of a recipe and files."""

import argparse
from collections.abc import Iterator
from typing import Any

from ..compat.others import arguments_of
from .keys import TAKE_KEYS

SHELLS = ("bash", "zsh")
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
_FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
_PATHS = {
    **dict.fromkeys(("recipe", "source", "subnet", "files", "lm_eval", "output"), _FILES),
    **dict.fromkeys(("folder", "folders", "checkpoint", "student", "teacher", "dataset", "output_dir"), _FOLDERS),
}
"""How `shtab` completes the arguments that take files and folders, by their names."""


class PrintCompletion(argparse.Action):
    """Prints the script of a shell, and ends the program."""

    def __init__(self, option_strings: Any, dest: str, **kwargs: Any):
        super().__init__(option_strings, dest, choices=SHELLS, metavar="SHELL", **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.exit(1, "hf-whittle: error: completion needs shtab: pip install 'hf_whittle[completion]'\n")
        _complete_paths_and_keys(parser)
        print(shtab.complete(parser, shell=values))
        parser.exit(0)


def _complete_paths_and_keys(parser: argparse.ArgumentParser) -> None:
    """Tell a parser of all commands which arguments are paths, and the keys of recipes as options."""
    commands = next(action.choices for action in arguments_of(parser) if isinstance(action.choices, dict))
    keys = list(recipe_keys())
    for name, command in commands.items():
        for action in arguments_of(command):
            if action.dest in _PATHS:
                action.complete = _PATHS[action.dest]  # type: ignore[attr-defined]
        known = {action.dest for action in arguments_of(command)}
        for key in keys if name in TAKE_KEYS else ():
            if key not in known:
                command.add_argument(f"--{key}", help="key of the recipe")


def recipe_keys() -> Iterator[str]:
    """Keys of recipes with their sections, such as `training.max_steps`."""
    import dataclasses

    from ..distillation.config import DistillationConfig
    from ..recipe.data import DataSection
    from ..recipe.recipe import Recipe
    from ..recipe.sections import ALGORITHMS, BinSection
    from ..recipe.training import SET_BY_RUN

    recipe = Recipe("", "", DataSection(files=[""]), BinSection(1, 2))
    for name, value in recipe.to_dict().items():
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{key}" for key in value)
    searches = {field.name for config in ALGORITHMS.values() for field in dataclasses.fields(config)}
    yield from (f"search.{key}" for key in sorted(searches - recipe.to_dict()["search"].keys()))
    fields = [field.name for field in dataclasses.fields(DistillationConfig) if field.init]
    refused = (*SET_BY_RUN, "push_to_hub", *(name for name in fields if name.startswith("hub_")))
    yield from (f"training.{name}" for name in fields if name not in refused)
