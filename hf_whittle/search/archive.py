"""Evaluations of a search on disk, line by line, so that an interrupted search resumes where it stopped."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from ..errors import OtherSearchError
from ..files.atomic import remove_leftovers
from ..files.disk import disk_errors
from ..files.locks import folder_lock
from ..files.paths import expanded
from ..files.text import read_json
from ..processes import in_first
from .algorithm import Candidate, Evaluation
from .result import CANDIDATES_FILE, SEARCH_FILE, SearchResult, evaluation_line, read_evaluations


class Archive:
    """Evaluations of a search, in memory and, with a folder, on disk, where the first process writes them.

    Args:
        folder (`str` or `Path`, *optional*): folder of the search's files.
        result (`SearchResult`): holds the settings of the search and gets its evaluations.
    """

    def __init__(self, folder: str | Path | None, result: SearchResult):
        self.result = result
        self._folder = None if folder is None else Path(expanded(folder))
        self._known: list[Evaluation] = []
        self._stream: IO[str] | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Take up an interrupted search; hold the folder's lock and the file of evaluations until the end.

        Raises:
            OtherSearchError: in every process, if the folder holds another search.
            OutputError: in every process, if it cannot be written, or another process is writing it.
        """
        with ExitStack() as held:
            self._known = in_first(lambda: self._start(held))
            yield

    def _start(self, held: ExitStack) -> list[Evaluation]:
        """Hold the lock and the file; the evaluations of an interrupted search."""
        if self._folder is None:
            return []
        held.enter_context(folder_lock(self._folder))
        known = self._resume(self._folder)
        held.callback(self._close)
        with disk_errors(self._folder):
            self._stream = (self._folder / CANDIDATES_FILE).open("a", encoding="utf-8")
        return known

    def _close(self) -> None:
        if self._folder is not None and self._stream is not None:
            with disk_errors(self._folder):
                self._stream.close()

    def _resume(self, folder: Path) -> list[Evaluation]:
        """Read the evaluations of an interrupted search, and drop a half-written last line."""
        remove_leftovers(folder)
        evaluations, size = read_evaluations(folder / CANDIDATES_FILE)
        if not evaluations:
            self._warn_if_unidentified()
            self.result.save(folder)
            return []
        self._check_is_same(folder, read_json(folder / SEARCH_FILE)["settings"])
        with disk_errors(folder), (folder / CANDIDATES_FILE).open("r+b") as stream:
            stream.truncate(size)
        return evaluations

    @property
    def _is_identified(self) -> bool:
        """Whether its settings identify the fitness; see `fitness_settings`."""
        return self.result.settings["fitness"].get("code", "") is not None

    def _warn_if_unidentified(self) -> None:
        if not self._is_identified:
            warnings.warn(
                f"the fitness {self.result.settings['fitness'].get('name')!r} holds objects that cannot be hashed, so "
                "this search could not resume if it was interrupted; give the fitness an attribute 'settings', a dict "
                "of everything that defines it",
                stacklevel=2,
            )

    def _check_is_same(self, folder: Path, before: dict) -> None:
        settings = self.result.settings
        if not self._is_identified:
            raise OtherSearchError(
                f"{folder} holds a search, which cannot resume since its fitness {settings['fitness'].get('name')!r} "
                "holds objects that cannot be hashed; give the fitness an attribute 'settings', a dict of everything "
                "that defines it, or choose another folder"
            )
        if before != settings:
            changed = [name for name, value in settings.items() if before.get(name) != value]
            raise OtherSearchError(
                f"{folder} holds a search with another {' and '.join(changed)}; "
                "choose another folder, or remove this one"
            )

    def recall(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """Evaluations of the first of these candidates that an interrupted search made."""
        position = len(self.result.evaluations)
        recalled = self._known[position : position + len(candidates)]
        for i, (evaluation, candidate) in enumerate(zip(recalled, candidates, strict=False), position):
            if evaluation.key != candidate.key:
                raise OtherSearchError(
                    f"{self._folder} was made by another version of the search: evaluation {i} is of subnet "
                    f"{evaluation.subnet.digest}, this search asks for {candidate.subnet.digest}; choose another folder"
                )
        self.result.evaluations.extend(recalled)
        return recalled

    def add(self, evaluation: Evaluation) -> None:
        """Keep an evaluation, on disk too."""
        self.result.evaluations.append(evaluation)
        if self._folder is not None and self._stream is not None:
            with disk_errors(self._folder):
                self._stream.write(evaluation_line(evaluation))
                self._stream.flush()

    def save_summary(self) -> None:
        """Write `search.json`, once every evaluation that it counts is on disk."""
        if self._folder is not None and self._stream is not None:
            with disk_errors(self._folder):
                os.fsync(self._stream.fileno())
            self.result.save_summary(self._folder)
