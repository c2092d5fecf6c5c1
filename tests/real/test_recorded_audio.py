"""On recorded audio, with a trained encoder and two without weights, a score is what independent code computes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from corpus import ENCODERS, Corpus
from ge2e import FFT_SIZE, N_MELS, STEP_SAMPLES, Ge2eEncoder
from recordings import TASKS
from reference import Vectors, logistic_regression, nearest_neighbours, read_vectors

import featstore.probe.clips
import featstore.retrieve.track
from featstore.probe import probe_task
from featstore.records import ScoreRecord
from featstore.retrieve import retrieve_task
from featstore.taskdata import Outcome, TaskData

pytestmark = pytest.mark.real

PAIRS = [(task.name, encoder) for task in TASKS for encoder in ENCODERS]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A record, and the predictions that it was made of."""

    record: ScoreRecord
    task: TaskData
    outcomes: tuple[Outcome, ...]


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch) -> dict[str, Scored]:
    """What `probe_task` and `retrieve_task` make their records of, by track."""
    found: dict[str, Scored] = {}

    def watch(module: ModuleType) -> None:
        made = module.score_record

        def score_record(task: TaskData, outcomes: list[Outcome], *args: object, **options: object) -> ScoreRecord:
            record = made(task, outcomes, *args, **options)
            found[record.track] = Scored(record=record, task=task, outcomes=tuple(outcomes))
            return record

        monkeypatch.setattr(module, "score_record", score_record)

    watch(featstore.probe.clips)
    watch(featstore.retrieve.track)
    return found


@pytest.fixture(scope="session")
def table(corpus: Corpus) -> Iterator[dict[tuple[str, str], dict[str, object]]]:
    """Scores by task and encoder, written beside the store at the end: ``table.json``."""
    rows: dict[tuple[str, str], dict[str, object]] = {}
    yield rows
    told = [{"task": task, "encoder": encoder, **row} for (task, encoder), row in rows.items()]
    (corpus.folder / "table.json").write_text(json.dumps(told, indent=1) + "\n")


def vectors_of(corpus: Corpus, name: str, encoder: str) -> Vectors:
    data = corpus.manifests[name].data
    group = data.dataset if data.crop_seconds is None else f"{data.dataset}+crop{data.crop_seconds:g}s"
    return read_vectors(corpus.store_path, encoder=corpus.store.resolve_encoder(encoder).group_name, dataset=group)


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_the_probe_is_scikit_learn_at_convergence(
    corpus: Corpus, scoring: dict[str, Scored], table: dict, name: str, encoder: str
) -> None:
    started = time.perf_counter()
    record = probe_task(corpus.store, corpus.manifests[name], encoder=encoder)
    ours_seconds, started = time.perf_counter() - started, time.perf_counter()
    of = scoring["A"]
    fit = record.details["fit"]
    vectors = vectors_of(corpus, name, encoder)
    ids = np.array(of.task.clip_id)
    scores, agree = [], []
    for each, outcome in zip(of.task.rounds, of.outcomes, strict=True):
        (fitted,) = fit["rounds"][each.name]
        found = logistic_regression(
            vectors, train=ids[each.train], valid=ids[each.valid], test=ids[each.test], grid=fitted["grid"]
        )
        assert abs(np.log10(fitted["strength"] / found.C)) < 0.51, (fitted["strength"], found.C)
        scores.append(found.tested.score())
        order = np.argsort(ids[outcome.samples.clip])
        assert ids[outcome.samples.clip][order].tolist() == found.tested.clip.tolist()
        predicted = outcome.y_scores[0][order]
        if vectors.y.ndim == 1:
            agree.append(predicted.argmax(axis=1) == found.tested.shares.argmax(axis=1))
        else:
            agree.append(((predicted > 0) == (found.tested.shares > 0.5)).ravel())
    agreement = float(np.concatenate(agree).mean())
    table.setdefault((name, encoder), {}).update(
        clips=len(ids), windows=len(vectors.X), strict=record.value, reference=float(np.mean(scores)),
        agreement=agreement, seconds=ours_seconds, reference_seconds=time.perf_counter() - started,
        extended=fit["extended"], strengths=[of[0]["strength"] for of in fit["rounds"].values()],
    )  # fmt: skip
    assert fit["converged"]
    assert agreement >= 0.99
    assert record.value == pytest.approx(np.mean(scores), abs=0.005)


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_the_neighbours_vote_is_numpys(
    corpus: Corpus, scoring: dict[str, Scored], table: dict, name: str, encoder: str
) -> None:
    started = time.perf_counter()
    record = retrieve_task(corpus.store, corpus.manifests[name], encoder=encoder)
    seconds = time.perf_counter() - started
    voted = nearest_neighbours(vectors_of(corpus, name, encoder))
    table.setdefault((name, encoder), {}).update(knn=record.value, knn_reference=voted.score(), knn_seconds=seconds)
    assert record.value == pytest.approx(voted.score(), abs=1e-3)
    of = scoring["B"]
    ids = np.array(of.task.clip_id)
    clip, shares = zip(*((ids[each.samples.clip], each.y_scores[0]) for each in of.outcomes), strict=True)
    order = np.argsort(np.concatenate(clip))
    assert np.concatenate(clip)[order].tolist() == voted.clip.tolist()
    # a tenth and an eleventh neighbour may be as near as float32 can tell: that clip has another vote
    agree = np.isclose(np.concatenate(shares)[order], voted.shares, atol=1e-4).all(axis=1)
    assert agree.mean() >= 0.99


@pytest.mark.parametrize(("name", "encoder"), PAIRS)
def test_the_schedule_of_xares_can_be_had_and_is_no_better(
    corpus: Corpus, table: dict, name: str, encoder: str
) -> None:
    started = time.perf_counter()
    record = probe_task(corpus.store, corpus.manifests[name], encoder=encoder, head="linear")
    strict = probe_task(corpus.store, corpus.manifests[name], encoder=encoder)
    table.setdefault((name, encoder), {}).update(linear=record.value, linear_seconds=time.perf_counter() - started)
    assert record.value < strict.ci_high


def test_the_trained_encoder_tells_speakers_apart_far_better_than_spectra(corpus: Corpus) -> None:
    errors = {
        encoder: 1.0 - probe_task(corpus.store, corpus.manifests["languages"], encoder=encoder).value
        for encoder in ENCODERS
    }
    assert errors["Ge2eEncoder"] < 0.05


def test_mel_bands_are_those_of_librosa() -> None:
    """Slaney's filters and power of an STFT written out; librosa 0.11 gives these numbers to 3e-7 of the largest."""
    wave = np.random.default_rng(0).standard_normal(4000)
    padded = np.pad(wave, FFT_SIZE // 2)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE)
    power = np.array(
        [
            np.abs(np.fft.rfft(padded[at : at + FFT_SIZE] * hann)) ** 2
            for at in range(0, len(wave) + 1, STEP_SAMPLES)
        ]
    )  # fmt: skip
    hertz = np.arange(0, 8000 + 1, 16_000 / FFT_SIZE)
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = [mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27) for mel in np.linspace(0, top, N_MELS + 2)]
    filters = np.array(
        [
            np.interp(hertz, [low, middle, high], [0, 2 / (high - low), 0], left=0, right=0)
            for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
        ]
    )
    expected = power @ filters.T
    found = Ge2eEncoder().mels(torch.from_numpy(wave.astype(np.float32))[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())
