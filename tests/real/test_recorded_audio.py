"""On recorded audio, with a trained encoder and two without weights, a score is what independent code computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import recordings
import soundfile
import soxr
import torch
from corpus import ENCODERS, Corpus, Table
from ge2e import Ge2eEncoder, weights_file
from reference import (
    Vectors,
    compared_clips,
    logistic_regression,
    mel_power,
    nearest_neighbours,
    read_vectors,
    speaker_vector,
)

import featstore.probe.clips
import featstore.retrieve.api
from featstore.evaluation import TaskData
from featstore.metrics import TestSet
from featstore.metrics.comparison import ALPHA
from featstore.probe import probe_task
from featstore.records import ScoreRecord
from featstore.report.pairing import evidence_of, pair
from featstore.retrieve import retrieve_task, score_measures

pytestmark = pytest.mark.real

PAIRS = [(task.name, encoder) for task in recordings.TASKS for encoder in ENCODERS]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A record, and the predictions that it was made of."""

    record: ScoreRecord
    task: TaskData
    outcomes: tuple[TestSet, ...]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A task by an encoder: its vectors, its scores, and its row of the table."""

    name: str
    encoder: str
    vectors: Vectors
    probed: Scored
    retrieved: Scored
    row: dict[str, float]


def scored(module: ModuleType, score: Callable[..., ScoreRecord], *arguments: Any, **options: Any) -> Scored:
    """What `probe_task` or `retrieve_task`, whose module is given, makes its record of."""
    seen: list[tuple[TaskData, tuple[TestSet, ...]]] = []
    scores_of = module.score_outcomes

    def score_outcomes(task: TaskData, outcomes: list[TestSet], **more: object) -> object:
        seen.append((task, tuple(outcomes)))
        return scores_of(task, outcomes, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "score_outcomes", score_outcomes)
        record = score(*arguments, **options)
    [(task, outcomes)] = seen
    return Scored(record=record, task=task, outcomes=outcomes)


@pytest.fixture(scope="session", params=PAIRS, ids="-".join)
def case(request: pytest.FixtureRequest, corpus: Corpus, table: Table) -> Case:
    """Each task by each encoder, scored once for all tests."""
    name, encoder = request.param
    manifest = corpus.manifests[name]
    data = manifest.data
    group = data.dataset if data.crop_seconds is None else f"{data.dataset}+crop{data.crop_seconds:g}s"
    probed = scored(featstore.probe.clips, probe_task, corpus.store, manifest, encoder=encoder)
    retrieved = scored(featstore.retrieve.api, retrieve_task, corpus.store, manifest, encoder=encoder)
    row = table.setdefault((name, encoder), {})
    row |= {"strict": probed.record.value, "knn": retrieved.record.value}
    return Case(
        name=name,
        encoder=encoder,
        vectors=read_vectors(
            corpus.store_path, encoder=corpus.store.resolve_encoder(encoder).group_name, dataset=group
        ),
        probed=probed,
        retrieved=retrieved,
        row=row,
    )


def test_the_probe_is_scikit_learn_at_convergence(case: Case) -> None:
    of, fit, vectors = case.probed, case.probed.record.details["fit"], case.vectors
    ids = np.array(of.task.clip_id)
    scores, agree = [], []
    for each, outcome in zip(of.task.rounds, of.outcomes, strict=True):
        (fitted,) = fit["rounds"][each.name]
        found = logistic_regression(vectors, train=ids[each.train], valid=ids[each.valid], test=ids[each.test])
        assert abs(np.log10(fitted["strength"] / found.C)) < 0.51, (fitted["strength"], found.C)
        scores.append(found.tested.score())
        order = np.argsort(ids[outcome.clip])
        assert ids[outcome.clip][order].tolist() == found.tested.clip.tolist()
        predicted = outcome.y_scores[0][order]
        if vectors.y.ndim == 1:
            agree.append(predicted.argmax(axis=1) == found.tested.shares.argmax(axis=1))
        else:
            agree.append(((predicted > 0) == (found.tested.shares > 0.5)).ravel())
    case.row["reference"] = float(np.mean(scores))
    assert fit["converged"]
    assert np.concatenate(agree).mean() >= 0.99
    assert of.record.value == pytest.approx(np.mean(scores), abs=0.005)


def test_the_neighbours_vote_is_numpys(case: Case) -> None:
    of = case.retrieved
    expected = nearest_neighbours(case.vectors)
    ids = np.array(of.task.clip_id)
    clip, shares = zip(*((ids[each.clip], each.y_scores[0]) for each in of.outcomes), strict=True)
    order = np.argsort(np.concatenate(clip))
    assert np.concatenate(clip)[order].tolist() == expected.voted.clip.tolist()
    found = np.concatenate(shares)[order].astype(np.float64)
    # float32 cannot tell a tenth and an eleventh neighbour apart that are as near: either may vote
    sure = ~expected.tied
    assert sure.mean() > 0.9
    np.testing.assert_allclose(found[sure], expected.voted.shares[sure], atol=1e-5)
    either = replace(expected.voted, shares=np.where(sure[:, None], expected.voted.shares, found))
    assert of.record.value == pytest.approx(either.score(), abs=1e-6)


def test_clips_that_are_compared_score_as_scikit_learn_does(case: Case, corpus: Corpus) -> None:
    manifest = corpus.manifests[case.name]
    retrieval, pairs, clusters = score_measures(
        corpus.store, manifest, encoder=case.encoder, measures=("retrieval", "pairs", "clustering")
    )
    ids = np.array(case.retrieved.task.clip_id)
    precision, error_rate = compared_clips(
        case.vectors, [ids[each.test].tolist() for each in case.retrieved.task.rounds]
    )
    assert retrieval.value == pytest.approx(precision, abs=1e-3)
    assert pairs.value == pytest.approx(error_rate, abs=1e-3)
    assert all(each.ci_low < each.value < each.ci_high for each in (retrieval, pairs, clusters))


def test_the_schedule_of_xares_is_nowhere_significantly_better(case: Case, corpus: Corpus) -> None:
    record = probe_task(corpus.store, corpus.manifests[case.name], encoder=case.encoder, head="linear")
    case.row["schedule"] = record.value
    compared = pair(evidence_of(record), evidence_of(case.probed.record))
    assert compared is not None
    assert compared.difference <= 0 or compared.p > ALPHA / len(PAIRS)


def test_stored_vectors_of_the_trained_encoder_are_numpys(corpus: Corpus) -> None:
    """From the file on: decoding, resampling, mel bands and the network."""
    weights = {
        name: of.double().numpy()
        for name, of in torch.load(weights_file(), map_location="cpu", weights_only=True)["model_state"].items()
    }
    group = corpus.store.resolve_encoder("Ge2eEncoder").group_name
    vectors = read_vectors(corpus.store_path, encoder=group, dataset="languages")
    for row in recordings.languages()[::200]:
        wave, rate = soundfile.read(recordings.KLETTRES / row.path, always_2d=True)
        resampled = soxr.resample(wave.mean(axis=1), rate, 16_000, quality="HQ")
        [stored] = vectors.X[vectors.clip == f"{row.split}/{row.key}"]
        np.testing.assert_allclose(stored, speaker_vector(resampled, weights), atol=1e-5)


def test_mel_bands_are_those_of_librosa() -> None:
    wave = np.random.default_rng(0).standard_normal(4000)
    expected = mel_power(wave)
    found = Ge2eEncoder().mels(torch.from_numpy(wave.astype(np.float32))[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())
