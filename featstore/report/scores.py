"""`Scores`: what `featstore.probe` and `featstore.retrieve` return."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, overload

from featstore.errors import FeatstoreError, ResultsError, missing_extra
from featstore.evaluation.runner import ScoreFailure
from featstore.formatting import counted, harmless
from featstore.records import ScoreRecord
from featstore.report.grids import grid
from featstore.report.leaderboard import build
from featstore.report.results import CHOSEN_SETTINGS, identity_of, write_score
from featstore.report.tables import Leaderboard
from featstore.report.text import grids_to_html, grids_to_markdown

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Board", "Scores"]

_COLUMNS = (
    *("task", "title", "track", "protocol", "encoder", "fingerprint", "metric", "value", "std", "ci_low", "ci_high"),
    *("n_train", "n_valid", "n_test", "n_skipped", "eval_weight", "private", "protocol_version"),
)


class Board(Leaderboard):
    """A leaderboard that is shown as Markdown, and as HTML in a notebook."""

    __slots__ = ()

    def __repr__(self) -> str:
        return harmless(grids_to_markdown(grid(table) for table in self.tables), keep="\n")

    def _repr_html_(self) -> str:
        return grids_to_html(grid(table) for table in self.tables)


class Scores(Sequence[ScoreRecord]):
    """The scores of tasks x encoders, in their order, and the pairs that failed.

    An immutable sequence of `ScoreRecord`: ``scores + others`` is a new one, and ``scores += others`` binds a new one.

    Parameters
    ----------
    records : iterable of ScoreRecord
    failures : iterable of ScoreFailure, optional
        Pairs of task and encoder without a score, each with its reason.
    unwritten : iterable of str, optional
        Scores that could not be written to the folder of results, each with its reason.

    Examples
    --------
    >>> scores = Scores()
    >>> len(scores + []), scores.failures
    (0, ())
    """

    def __init__(
        self,
        records: Iterable[ScoreRecord] = (),
        *,
        failures: Iterable[ScoreFailure] = (),
        unwritten: Iterable[str] = (),
    ) -> None:
        self._records = tuple(records)
        self._failures = tuple(failures)
        self._unwritten = tuple(unwritten)

    @property
    def failures(self) -> tuple[ScoreFailure, ...]:
        """Pairs of task and encoder that have no score: ``task``, ``encoder``, ``error`` and ``message`` of each."""
        return self._failures

    @property
    def unwritten(self) -> tuple[str, ...]:
        """Scores that are not in the folder of results, each with its reason: a full disk, for example."""
        return self._unwritten

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> ScoreRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Scores: ...
    def __getitem__(self, index: int | slice) -> ScoreRecord | Scores:
        return Scores(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __add__(self, other: Iterable[ScoreRecord]) -> Scores:
        more = other if isinstance(other, Scores) else Scores(other)
        return Scores(
            (*self._records, *more),
            failures=(*self._failures, *more.failures),
            unwritten=(*self._unwritten, *more.unwritten),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores):
            return NotImplemented
        return (self._records, self._failures) == (other._records, other._failures)

    __hash__ = None  # type: ignore[assignment]  # records hold mappings

    def newest(self) -> tuple[ScoreRecord, ...]:
        """The scores that count in tables: of one that was made several times, the last that was added."""
        return tuple({identity_of(record): record for record in self._records}.values())

    def leaderboard(self) -> Board:
        """Tables of tasks and encoders, one for each protocol, track and measure, with averages, marks and ranks.

        ``tables[0].averages[-1].resolution`` has the rank intervals, tie groups, the smallest difference that the test
        clips can resolve, and the number of clips that would separate two encoders; so has each of ``tables[0].rows``.

        Returns
        -------
        Board
        """
        return Board(tables=build(self.newest()).tables)

    def to_pandas(self) -> pd.DataFrame:
        """One row for each score: value and interval, counts, chosen settings (measure, head, k, index), total seconds.

        Raises
        ------
        UsageError
            pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise missing_extra("to_pandas", error, "arrays") from error
        rows = [
            [
                *(getattr(record, name) for name in _COLUMNS),
                *(
                    record.measure or None if name == "measure" else record.settings.get(name)
                    for name in CHOSEN_SETTINGS
                ),
                sum(record.seconds.values()),
            ]
            for record in self._records
        ]
        frame = pd.DataFrame(rows, columns=[*_COLUMNS, *CHOSEN_SETTINGS, "seconds"])
        return frame.astype({"std": float, "k": float})  # a column of None alone would be of objects

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each score to a file of its own, for ``featstore report`` and `featstore.report.read_scores`.

        Returns
        -------
        list of Path

        Raises
        ------
        ResultsError
            A score cannot be written as JSON.
        OSError
            A file cannot be written.
        """
        return [write_score(record, Path(folder)) for record in self._records]

    def raise_failures(self) -> None:
        """Raise one error for all failures, or else for scores that could not be written; return if there are none.

        Raises
        ------
        FeatstoreError
            Its ``exit_code`` is that of the failures, if they agree, and its notes are their tracebacks.
        ResultsError
            Everything was scored, and some score could not be written.
        """
        if not self._failures:
            if self._unwritten:
                what = counted(len(self._unwritten), "score")
                raise ResultsError(f"{what} could not be written, the first of {self._unwritten[0]}")
            return
        n_failed, n_scored = len(self._failures), len(self._records)
        message = self._failures[0].message
        if n_failed > 1 or n_scored:
            done = "the other is done" if n_scored == 1 else f"the other {n_scored} are done"
            message = f"{n_failed} of {n_failed + n_scored} scores failed{f'; {done}' if n_scored else ''}"
        error = FeatstoreError(message)
        codes = {failure.exit_code for failure in self._failures}
        error.exit_code = codes.pop() if len(codes) == 1 else 1
        for failure in self._failures:
            error.add_note(f"{failure}\n{failure.trace}")
        raise error

    def __repr__(self) -> str:
        lines = [f"featstore.Scores: {counted(len(self), 'score')}, {counted(len(self._failures), 'failure')}"]
        for record in self._records:
            interval = "" if record.ci_low is None else f" [{record.ci_low:.4f}, {record.ci_high:.4f}]"
            measure = "" if record.measure in ("", "knn") else f" {record.measure}"
            protocol = f"track {record.track}{measure}, {record.protocol}"
            lines.append(
                f"  {record.task} by {record.encoder} ({protocol}): {record.metric} {record.value:.4f}{interval}"
            )
        return harmless("\n".join([*lines, *(f"  failed: {failure}" for failure in self._failures)]), keep="\n")

    def _repr_html_(self) -> str:
        failed = "".join(f"<li>{escape(harmless(str(failure)))}</li>" for failure in self._failures)
        return self.leaderboard()._repr_html_() + (f"<p>Failed:</p><ul>{failed}</ul>" if failed else "")
