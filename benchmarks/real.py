"""Recorded audio and trained encoders: the complete evaluation beside X-ARES 0.1.3, and beside scikit-learn.

Spoken letters and syllables of ``klettres-data``, whose task is which of 16 languages it is, and the sounds of
``sonic-pi-samples``, whose task is the kind of sound, in crops of two seconds. Encoders: the speaker
network of Resemblyzer, the pitch network CREPE, and mel bands without weights. `make test-real` installs all of it.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import importlib.util
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, in_child, timed
from benchmarks.parity import Parity
from benchmarks.peer.environment import NoPeerError, make_environment, run_xares
from benchmarks.peer.grid import Grid
from benchmarks.run import Options, main
from benchmarks.table import figure
from featstore.system import cores

__all__ = ["ENCODERS", "TASKS", "pack_tasks", "tables", "why_not"]

ENCODERS: Mapping[str, str] = {
    "SpeakerEncoder": "tests/real/ge2e.py",
    "PitchEncoder": "tests/real/crepe.py",
    "MelEncoder": "tests/real/ge2e.py",
}
"""Name of the class -> its file. Both sides load the same file."""

TASKS = ("languages", "sounds")
CROP_SECONDS = {"sounds": 2}
MIN_CLIPS = 48
"""Of a language: 16 languages have them."""
PARTS = {"train": 10, "valid": 3, "test": 6}
"""Clips of each language that are used. Splits are multiples of 16 clips, the batch in which X-ARES pads clips to one length."""
PROBE = {"epochs": 10, "learning_rate": 1e-3, "batch_size": 32}
"""X-ARES's defaults, and a manifest's."""

THREADS = cores()
"""Of torch and BLAS, on both sides: PyTorch's default."""

FASTER, POINTS = 8.0, 0.5
Results = dict[str, dict[str, Any]]


def why_not() -> str | None:
    """What is missing for a run, or None."""
    recordings = importlib.import_module("tests.real.recordings")
    missing = [name for folder, name in recordings.PACKAGES.items() if not folder.is_dir()]
    missing += [wheel for wheel in ("resemblyzer", "torchcrepe") if importlib.util.find_spec(wheel) is None]
    return f"not installed: {', '.join(missing)}; `make test-real` installs it" if missing else None


def tables(options: Options) -> Iterator[Grid]:
    missing = why_not()
    if missing is not None:
        print(f"no recorded audio: {missing}", file=sys.stderr)
        return
    try:
        make_environment()
    except NoPeerError as problem:
        print(f"no X-ARES: {problem}", file=sys.stderr)
        return
    seeds = tuple(range(2 if options.quick else 5))
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        began = time.perf_counter()
        packed = in_child(pack_tasks, folder=folder, share=0.5 if options.quick else 1.0)
        theirs: Results = {}
        ours: Results = {}
        sklearn: Results = {}
        for encoder in ENCODERS:  # both sides in turn, so that each has the same load of the machine
            theirs[encoder] = {
                task: _measure_xares(Path(folder), packed[task], encoder=encoder, seeds=seeds) for task in TASKS
            }
            _log(encoder, "X-ARES", began)
            ours[encoder] = in_child(measure_ours, threads=THREADS, folder=folder, encoder=encoder, seeds=seeds)
            _log(encoder, "featstore", began)
            sklearn[encoder] = in_child(measure_sklearn, threads=THREADS, folder=folder, encoder=encoder)
            _log(encoder, "scikit-learn", began)
        report_seconds = in_child(measure_report, threads=THREADS, folder=folder)
        spent = time.perf_counter() - began
    clips = "; ".join(
        f"{task} {', '.join(f'{n} {split}' for split, n in packed[task]['clips'].items())}" for task in TASKS
    )
    extra = {"pack": sum(packed[task]["seconds"] for task in TASKS), "report": report_seconds}
    yield _whole(theirs, ours, extra, clips=clips, seeds=len(seeds), spent=spent)
    yield _parity(theirs, ours, packed, seeds=len(seeds))
    yield _beside_sklearn(ours, sklearn)
    yield _found(ours)


def _log(encoder: str, side: str, began: float) -> None:
    print(f"{encoder}, {side}: done after {time.perf_counter() - began:.0f} s", file=sys.stderr)


def _measure_xares(folder: Path, task: Mapping[str, Any], *, encoder: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    """X-ARES's own encoding, training and search: seconds and scores, and the bytes of its embeddings."""
    done = run_xares(
        "score",
        root=str(folder / "data"),
        task=task["xares"],
        encoder={"file": str(ROOT / ENCODERS[encoder]), "class": encoder},
        stages=("encode", "mlp", "knn"),
        seeds=seeds,
    )
    written = (folder / "data" / task["xares"]["name"] / "embeddings" / encoder).rglob("*.tar")
    probes, votes = (
        {name: [each[name] for each in done[stage]] for name in ("seconds", "score")} for stage in ("mlp", "knn")
    )
    return {
        "encode": done["encode"][0]["seconds"],
        "probe": float(np.median(probes["seconds"])),
        "neighbours": float(np.median(votes["seconds"])),
        "probes": probes["score"],
        "votes": votes["score"],
        "megabytes": sum(path.stat().st_size for path in written) / 1e6,
    }


# --- tables


def _total(results: Results, *names: str, encoder: str | None = None) -> float:
    chosen = [encoder] if encoder else list(results)
    return float(sum(results[each][task][name] for each in chosen for task in TASKS for name in names))


def _whole(theirs: Results, ours: Results, extra: Mapping[str, float], *, clips: str, seeds: int, spent: float) -> Grid:
    stages = ("encode", "probe", "neighbours")
    by_xares = tuple(f"xares {stage}" for stage in stages)

    def row(what: str, peer: float | None, mine: float, target: float | None = None) -> tuple[str, ...]:
        faster = None if peer is None else peer / mine
        verdict = "" if target is None or faster is None else "met" if faster >= target else "missed"
        return (
            what,
            "-" if peer is None else f"{figure(peer)} s",
            f"{figure(mine)} s",
            "-" if faster is None else f"{faster:.1f} x",
            "" if target is None else f"at least {target:g} x",
            verdict,
        )

    megabytes = _total(theirs, "megabytes"), _total(ours, "megabytes")
    return Grid(
        title="Two tasks by three encoders",
        measures=f"Clips: {clips}. X-ARES 0.1.3: its own `make_encoded_tar`, `run_mlp` and `run_knn`, medians of {seeds} "
        "seeds. featstore: `extract_task`, `probe_task` and `retrieve_task` with the defaults, which are `strict`, one "
        "seed: medians of three, with intervals and warnings. Both have a thread of torch for each core, and take turns, encoder by "
        f"encoder; imports count for none. All of it, the {seeds} seeds and scikit-learn included, took {spent / 60:.1f} min.",
        header=("", "X-ARES", "featstore", "faster", "target", ""),
        rows=(
            row("pack recordings into shards", None, extra["pack"]),
            row("check the encoders", None, sum(each["check"] for each in ours.values())),
            *(row(stage, _total(theirs, stage), _total(ours, stage)) for stage in stages),
            row("encode: batches in the encoder", None, _total(ours, "forward")),
            *(
                row(
                    f"{encoder}: all three stages", *(_total(side, *stages, encoder=encoder) for side in (theirs, ours))
                )
                for encoder in ENCODERS
            ),
            row("all three stages", _total(theirs, *stages), _total(ours, *stages), FASTER),
            row("... `--padding xares --protocol xares`", _total(theirs, *stages), _total(ours, *by_xares), FASTER),
            row("report page", None, extra["report"]),
            (
                "bytes of embeddings",
                *(f"{figure(each)} MB" for each in megabytes),
                f"{megabytes[0] / megabytes[1]:.1f} x less",
                "",
                "",
            ),
        ),
    )


def _parity(theirs: Results, ours: Results, packed: Mapping[str, Any], *, seeds: int) -> Grid:
    rows = []
    for task in TASKS:
        step = 1 / packed[task]["clips"]["test"]
        for encoder in ENCODERS:
            for what, name in (("linear probe", "probes"), ("nearest neighbours", "votes")):
                parity = Parity(
                    what=f"{task}, {encoder}: {what}",
                    xares=tuple(theirs[encoder][task][name]),
                    ours=tuple(ours[encoder][task][name]),
                    rule="within its seeds",
                    step=step,
                )
                *cells, _ = parity.cells()
                rows.append((*cells, "met" if parity.holds() else "missed"))
    return Grid(
        title="Scores under xares",
        measures=f"Accuracy, {seeds} seeds each: mean (least to most). featstore has its own embeddings of the same shards "
        "(`--padding xares`). A mean may lie a clip outside X-ARES's seeds.",
        header=("", "X-ARES", "featstore", "to be", ""),
        rows=tuple(rows),
    )


def _beside_sklearn(ours: Results, sklearn: Results) -> Grid:
    rows = []
    for task in TASKS:
        for encoder in ENCODERS:
            mine, reference = ours[encoder][task], sklearn[encoder][task]
            points = 100 * (mine["strict"] - reference["score"])
            low, high = mine["interval"]
            rows.append(
                (
                    f"{task}, {encoder}",
                    f"{reference['score']:.4f}",
                    f"{mine['strict']:.4f} ({low:.3f} to {high:.3f})",
                    f"{points:+.2f}",
                    f"within {POINTS:g}",
                    "met" if abs(points) <= POINTS else "missed",
                    f"{figure(reference['seconds'])} s",
                    f"{figure(mine['probe'])} s",
                )
            )
    return Grid(
        title="Scores under strict",
        measures="Accuracy on the same embeddings, and clips (with the 95 % interval), and seconds. scikit-learn: "
        "StandardScaler, LogisticRegression to a tolerance of 1e-8 at each strength of a grid, chosen on validation clips.",
        header=("", "scikit-learn", "featstore", "points", "target", "", "scikit-learn", "featstore"),
        rows=tuple(rows),
    )


def _found(ours: Results) -> Grid:
    rows = []
    for task in TASKS:
        for encoder in ENCODERS:
            of = ours[encoder][task]
            shared = of["near_duplicates"]
            measures = of["measures"]
            rows.append(
                (
                    f"{task}, {encoder}",
                    f"{shared['exact']} of {shared['test_clips']}",
                    f"{shared['near']}",
                    *(f"{measures[name]:.3f}" for name in MEASURES),
                )
            )
    return Grid(
        title="Near-duplicates, and measures without training",
        measures="Test clips whose embedding equals that of a clip of training or validation, and further ones that are "
        "nearly equal, as every score counts them. Then mean average precision of retrieval, V-measure of "
        "clustering, and the equal error rate of pairs.",
        header=("", "equal", "near", *MEASURES),
        rows=tuple(rows),
    )


MEASURES = ("retrieval", "clustering", "pairs")


# --- what runs in children


def pack_tasks(*, folder: str, share: float = 1.0) -> dict[str, Any]:
    """Write a table for each task and pack it: ``TASK.toml`` and ``data/TASK/*.tar`` in a folder."""
    import featstore

    recordings = importlib.import_module("tests.real.recordings")
    sources = {
        "languages": (recordings.KLETTRES, _languages(recordings.languages(), share)),
        "sounds": (recordings.SONIC_PI, _sounds(recordings.sounds())),
    }
    found = {}
    for task, (audio, rows) in sources.items():
        table, toml = Path(folder) / f"{task}.csv", Path(folder) / f"{task}.toml"
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label", "split"), *rows])
        began = time.perf_counter()
        record = featstore.pack(Path(folder) / "data" / task, csv=table, audio=audio, manifest=toml)
        seconds = time.perf_counter() - began
        if task in CROP_SECONDS:
            cropped = f"crop_seconds = {CROP_SECONDS[task]}.0"
            toml.write_text(toml.read_text().replace("# crop_seconds = 10.0", cropped))
        xares = {
            "name": task,
            "classes": sorted({label for _, label, _ in rows}),
            "shards": {split: f"{split}-*.tar" for split in record.clips},
            "crop_seconds": CROP_SECONDS.get(task),
            "threads": THREADS,
            **PROBE,
        }
        found[task] = {"seconds": seconds, "clips": dict(record.clips), "xares": xares}
    return found


def _ranked(rows: list[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: hashlib.sha256(row.path.as_posix().encode()).digest())


def _languages(rows: list[Any], share: float) -> list[tuple[str, str, str]]:
    """The same number of clips of each language that has them, drawn by the hashes of their paths."""
    parts = [split for split, n in PARTS.items() for _ in range(round(share * n))]
    of_language = defaultdict(list)
    for row in _ranked(rows):
        of_language[row.label].append(row)
    return [
        (row.path.as_posix(), row.label, split)
        for at, split in enumerate(parts)
        for language, found in sorted(of_language.items())
        if len(found) >= MIN_CLIPS
        for row in [found[at]]
    ]


def _sounds(rows: list[Any]) -> list[tuple[str, str, str]]:
    """Half of each kind of sound trains, three of twenty select, seven of twenty are tested."""
    of_kind = defaultdict(list)
    for row in _ranked(rows):
        of_kind[row.label].append(row)
    found = []
    for kind, ranked in sorted(of_kind.items()):
        for rank, row in enumerate(ranked):
            share = (rank + 0.5) / len(ranked)
            split = "train" if share < 0.5 else "valid" if share < 0.65 else "test"
            found.append((row.path.as_posix(), kind, split))
    return found


def measure_ours(*, folder: str, encoder: str, seeds: list[int]) -> dict[str, Any]:
    """Check, extract, probe and retrieve by both protocols; the records of ``strict`` go to ``results``."""
    import featstore
    from featstore.encoders import load_encoder
    from featstore.extract import ExtractOptions, extract_task
    from featstore.probe import probe_task
    from featstore.records import ScoreRecord
    from featstore.report.scores import Scores
    from featstore.retrieve import retrieve_task, score_measures
    from featstore.tasks import load_manifest

    spec, root = f"{ROOT / ENCODERS[encoder]}:{encoder}", Path(folder)
    manifests = {task: load_manifest(root / f"{task}.toml") for task in TASKS}
    options = {
        "strict": ExtractOptions(device="cpu"),
        "xares": ExtractOptions(device="cpu", padding="xares", frame_dtype="float32"),
    }

    def encode(task: str, protocol: str, *, store: Path) -> tuple[float, float]:
        """Seconds of an extraction, and of its batches in the encoder."""
        loaded = load_encoder(spec)
        began = time.perf_counter()
        records = extract_task(
            manifests[task], loaded, data_dir=root / "data", store_url=str(store), options=options[protocol]
        )
        return time.perf_counter() - began, sum(record.seconds["encode"] for record in records)

    began = time.perf_counter()
    featstore.check(spec, device="cpu")
    found: dict[str, Any] = {"check": time.perf_counter() - began, **{task: {} for task in TASKS}}
    with tempfile.TemporaryDirectory(dir=folder) as first:  # imports, as X-ARES has made them before its clock runs
        encode("sounds", "strict", store=Path(first) / "store.zarr")
    kept: list[ScoreRecord] = []
    for task, manifest in manifests.items():
        of = found[task]
        for protocol, prefix in (("strict", ""), ("xares", "xares ")):
            store = root / f"{protocol}.zarr"
            before = _megabytes(store)
            of[f"{prefix}encode"], of[f"{prefix}forward"] = encode(task, protocol, store=store)
            of[f"{prefix}megabytes"] = _megabytes(store) - before

            def scored(score: Callable[..., Any], *, url: str = str(store), of: Any = manifest, **settings: Any) -> Any:
                return score(featstore.open(url), of, encoder=encoder, **settings)

            for stage, score in (("probe", probe_task), ("neighbours", retrieve_task)):
                one = {"seeds": seeds[:1]} if stage == "probe" and protocol == "xares" else {}
                records: list[ScoreRecord] = []
                work = timed(
                    lambda score=score, one=one, records=records, protocol=protocol, scored=scored: records.append(
                        scored(score, protocol=protocol, **one)
                    ),
                    repeats=3,
                    budget_seconds=15.0,
                )
                of[f"{prefix}{stage}"] = work.median
                kept += records[-1:] if protocol == "strict" else []
            if protocol == "xares":
                of["votes"] = [records[-1].value]
                of["probes"] = [scored(probe_task, protocol="xares", seeds=[seed]).value for seed in seeds]
            else:
                measured = scored(score_measures, measures=MEASURES)
                of["measures"] = {each.settings["measure"]: each.value for each in measured}
                kept += measured
        probed = next(each for each in kept if each.task == manifest.name)
        of["strict"], of["interval"] = probed.value, [probed.ci_low, probed.ci_high]
        of["near_duplicates"] = probed.details["near_duplicates"]
    Scores(kept).save(root / "results")
    return found


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure_sklearn(*, folder: str, encoder: str) -> dict[str, Any]:
    """Accuracy and seconds of scikit-learn on the clips of `strict`."""
    import featstore
    from featstore.evaluation import load_task
    from featstore.tasks import load_manifest

    reference = importlib.import_module("tests.real.reference")
    url = Path(folder) / "strict.zarr"
    store, found = featstore.open(url), {}
    group = store.resolve_encoder(encoder).group_name
    for task in TASKS:
        data = load_task(store, load_manifest(Path(folder) / f"{task}.toml"), encoder=encoder, protocol="strict")
        crop = CROP_SECONDS.get(task)
        vectors = reference.read_vectors(url, encoder=group, dataset=task if crop is None else f"{task}+crop{crop}s")
        ids = np.array(data.clip_id)
        began = time.perf_counter()
        scores = [
            reference.logistic_regression(
                vectors, train=ids[each.train], valid=ids[each.valid], test=ids[each.test]
            ).tested.score()
            for each in data.rounds
        ]
        found[task] = {"score": float(np.mean(scores)), "seconds": time.perf_counter() - began}
    return found


def measure_report(*, folder: str) -> float:
    """Seconds of the page with the health of the stored spaces."""
    import featstore

    began = time.perf_counter()
    featstore.report(Path(folder) / "results", Path(folder) / "report.html", store=Path(folder) / "strict.zarr")
    return time.perf_counter() - began


if __name__ == "__main__":
    main(only="real")
