"""The demo: synthesise shards, extract them with two encoders, probe, retrieve, and build the leaderboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featstore import api
from featstore.demo.shards import COLLECTIONS, Collection, make_shards
from featstore.errors import UsageError
from featstore.evaluation.scores import Stopwatch
from featstore.files import write_whole
from featstore.formatting import counted, lasting, spoken_bytes
from featstore.records import ExtractRecord, ScoreRecord
from featstore.report import Leaderboard, build, to_markdown
from featstore.report.spaces import spaces_of
from featstore.store import open_store
from featstore.tasks import find_task

if TYPE_CHECKING:
    from featstore.extract.results import Progress
    from featstore.store import Store

__all__ = ["DemoOutcome", "run_demo"]

KS = (1, 3, 5, 10, 20, 50)
SHOTS = (1, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOutcome:
    """The outputs of the demo. ``seconds`` is wall time by stage: synthesise, extract, probe, retrieve, report.

    ``report_path`` is an HTML page, or Markdown if the libraries of the page are not installed.
    """

    data_dir: Path
    store_path: Path
    results_dir: Path
    report_path: Path
    extracts: tuple[ExtractRecord, ...]
    scores: tuple[ScoreRecord, ...]
    leaderboard: Leaderboard
    seconds: dict[str, float]


def run_demo(
    directory: Path,
    *,
    encoders: Sequence[str] = ("logmel", "mfcc"),
    collections: Sequence[Collection] = COLLECTIONS,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> DemoOutcome:
    """Run all stages in `directory`; a second run reuses its shards and embeddings.

    Parameters
    ----------
    directory : Path
        Output folder of ``data/``, ``embeddings.zarr``, ``results/`` and ``report.html``.
    encoders : sequence of str
        Encoder specs.
    collections : sequence of Collection
        Datasets to synthesise; the task of a dataset has its name.
    say : callable
        Takes a status line.
    """
    data_dir, store_path, results_dir = directory / "data", directory / "embeddings.zarr", directory / "results"
    tasks = [find_task(collection.dataset) for collection in collections]
    stopwatch = Stopwatch()

    with stopwatch("synthesise"):
        shards = make_shards(data_dir, collections=collections)
    say(
        f"audio: {shards.made} shards synthesised, {shards.reused} reused "
        f"({counted(shards.clips, 'clip')}, {lasting(shards.audio_seconds)}, {spoken_bytes(shards.bytes_written)} "
        f"in {stopwatch.seconds['synthesise']:.1f} s)"
    )

    with stopwatch("extract"):
        extracts = api.extract(tasks, encoder=list(encoders), data=data_dir, store=store_path, progress=progress)
        extracts.raise_failures()
    done, reused = (sum(getattr(record, name) for record in extracts) for name in ("shards_done", "shards_reused"))
    audio_seconds, seconds = sum(record.audio_seconds for record in extracts), stopwatch.seconds["extract"]
    speed = f", {audio_seconds / seconds:.0f} x real time" if done else ""
    say(f"embeddings: {done} shards encoded, {reused} reused ({seconds:.1f} s{speed})")

    store = open_store(str(store_path))
    names = list(dict.fromkeys(record.encoder for record in extracts))
    with stopwatch("probe"):
        probed = api.probe(tasks, store=store, encoder=names)
    say(f"track A: {len(probed)} linear probes trained ({stopwatch.seconds['probe']:.1f} s)")

    with stopwatch("retrieve"):
        searched = [task for task in tasks if task.retrieve.enabled]
        retrieved = api.retrieve(searched, store=store, encoder=names, k=KS, shots=SHOTS) if searched else api.Scores()
    say(
        f"track B: {len(retrieved)} nearest-neighbour scores, with curves over k and training clips "
        f"({stopwatch.seconds['retrieve']:.1f} s)"
    )

    scores = probed + retrieved
    scores.save(results_dir)
    scores.raise_failures()
    with stopwatch("report"):
        report_path = _write_report(directory, store, scores, say=say)
    return DemoOutcome(
        data_dir=data_dir,
        store_path=store_path,
        results_dir=results_dir,
        report_path=report_path,
        extracts=tuple(extracts),
        scores=tuple(scores),
        leaderboard=scores.leaderboard(),
        seconds=dict(stopwatch.seconds),
    )


def _write_report(directory: Path, store: Store, scores: Sequence[ScoreRecord], *, say: Callable[[str], None]) -> Path:
    """Write the page; if its libraries are not installed, report that and write the leaderboard as Markdown."""
    try:
        from featstore.report.page import render_page

        path, text = directory / "report.html", render_page(scores, health=spaces_of(store, scores), title="The demo")
    except UsageError as missing:
        say(str(missing))
        path, text = directory / "report.md", to_markdown(build(scores))
    write_whole(path, text)
    return path
