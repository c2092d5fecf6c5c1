from __future__ import annotations

from math import ceil

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import framed
import handmade
from featstore.errors import DataError, LabelError, UnknownFeatureSet
from featstore.evaluation import load_frame_task
from featstore.metrics import find_metric
from featstore.probe import probe_task
from featstore.probe.frame_heads import FrameFeatures, frame_logits, train_frame_head, worker_threads
from featstore.probe.frame_scoring import Rows, excerpts_of, segment_groups, spans_of
from featstore.store import open_store

PROBE = {"epochs": 40, "learning_rate": 1e-2, "batch_size": 4}
EPOCHS = 3
pytestmark = pytest.mark.usefixtures("few_epochs")
SETS = {name: framed.clips(name, n) for name, n in (("train", 24), ("valid", 10), ("test", 14))}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return framed.write(tmp_path_factory.mktemp("frames") / "store.zarr", SETS)


def load(store, protocol, **changes):
    return load_frame_task(store, framed.task(**changes), encoder=None, protocol=protocol)


# --- the peer, written down again from its own formulas ---------------------------------------------------------------


def peer_targets(events, *, hop, n_classes, seconds=None):
    """A label processor of X-ARES: DESED's with a length in seconds, MAESTRO's without."""

    def frames(sec):
        return ceil(sec / hop)

    length = frames(seconds) if seconds else frames(max(offset for _, offset, _ in events))
    target = torch.zeros(n_classes, length)
    for onset, offset, label in events:
        target[ord(label) - ord("a"), frames(onset) : frames(offset)] = 1.0
    return target


def peer_batch(frames, targets):
    """Both padded to the longest of the batch, then targets padded or trimmed to the embeddings."""
    longest, longest_target = max(map(len, frames)), max(target.shape[1] for target in targets)
    x, y = torch.zeros(len(frames), longest, frames[0].shape[1]), torch.zeros(len(frames), targets[0].shape[0], longest)
    for at, (each, target) in enumerate(zip(frames, targets, strict=True)):
        x[at, : len(each)] = torch.from_numpy(np.asarray(each, np.float32))
        kept = target[:, : min(longest, longest_target)]
        y[at, :, : kept.shape[1]] = kept
    return x, y.transpose(1, 2)


def peer_segments(decided, target, *, n_frames):
    """SegmentF1Metric.update: maxima of windows of frames, what is left over dropped."""

    def pooled(each):
        return torch.nn.functional.max_pool1d(each.transpose(1, 2), n_frames).transpose(1, 2).flatten(0, 1).numpy()

    return pooled(decided), pooled(target)


def peer_training(excerpts, reader, targets, *, seed, batch_size, pos_weight, padded):
    """LayerNorm and Linear by autograd and torch.optim, from the weights and in the order of the generator."""
    rng = np.random.default_rng((seed, 0))
    n_classes, dim = excerpts.n_classes, reader[0].shape[1]
    drawn = rng.uniform(-(dim**-0.5), dim**-0.5, (n_classes, dim + 1)).astype(np.float32)
    model = torch.nn.Sequential(torch.nn.LayerNorm(dim), torch.nn.Linear(dim, n_classes))
    model[1].weight.data, model[1].bias.data = torch.from_numpy(drawn[:, :-1]), torch.from_numpy(drawn[:, -1])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(pos_weight), reduction="none")
    for epoch in range(EPOCHS):
        optimiser.param_groups[0]["lr"] = 1e-2 * (0.1 + 0.9 * (1 + np.cos(np.pi * epoch / EPOCHS)) / 2)
        order = rng.permutation(len(excerpts))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            x, y = peer_batch([reader[at] for at in batch], [targets[at] for at in batch])
            counts = torch.ones(x.shape[:2], dtype=torch.bool)
            if not padded:
                counts = torch.arange(x.shape[1]) < torch.tensor([len(reader[at]) for at in batch])[:, None]
            optimiser.zero_grad()
            loss(model(x), y)[counts].mean().backward()
            optimiser.step()
    return model.eval()


@pytest.mark.parametrize("protocol", ["xares", "strict"])
@pytest.mark.parametrize("cache_bytes", [pytest.param(2**30, id="in memory"), pytest.param(0, id="from disk")])
@pytest.mark.parametrize("pos_weight", [1.0, 10.0])
def test_training_is_that_of_x_ares_by_autograd_padding_and_all(store, protocol, cache_bytes, pos_weight):
    task = load(store, protocol)
    samples = task.samples(task.rounds[0].train)
    excerpts = excerpts_of(task, samples)
    padded = protocol == "xares"
    reader = [np.asarray(task.frames[window]) for window in samples.windows]
    known = [torch.from_numpy(excerpts.targets(at, start=0, stop=90).T).float() for at in range(len(excerpts))]
    model = peer_training(excerpts, reader, known, seed=5, batch_size=5, pos_weight=pos_weight, padded=padded)
    with worker_threads() as workers:
        features = FrameFeatures(task.frames, dim=24, threads=workers, cache_bytes=cache_bytes)
        head = train_frame_head(
            features,
            excerpts,
            threads=workers,
            padded=padded,
            pos_weight=pos_weight,
            seed=(5, 0),
            score=None,
            epochs=EPOCHS,
            batch_size=5,
            learning_rate=1e-2,
            rates=None,
        )
    rows = frame_logits(features, excerpts, range(len(excerpts)), head)
    with torch.no_grad():
        expected = torch.cat([model(torch.from_numpy(each.astype(np.float32))) for each in reader]).numpy()
    np.testing.assert_allclose(rows.logits, expected, atol=2e-4)
    np.testing.assert_allclose(rows.padding, model(torch.zeros(1, 24)).detach().numpy()[0], atol=2e-4)


def test_targets_of_xares_are_those_of_its_label_processors(store):
    task = load(store, "xares")
    for part in (task.rounds[0].train, task.rounds[0].test):
        samples = task.samples(part)
        excerpts = excerpts_of(task, samples)
        names = dict(
            zip(task.clip_id, (clip for name in ("train", "valid", "test") for clip in SETS[name]), strict=True)
        )
        for at in range(len(excerpts)):
            events = names[task.clip_id[samples.clip[at]]].events
            expected = peer_targets(events, hop=framed.HOP, n_classes=3, seconds=2.0)
            ours = excerpts.targets(at, start=0, stop=expected.shape[1])
            np.testing.assert_array_equal(ours.T, expected.numpy())


def test_targets_of_desed_end_after_ten_seconds_under_xares_alone(tmp_path):
    long = framed.Clip("long", np.ones((60, 4)), [(1.0, 11.0, "a"), (10.5, 11.5, "b")])
    store = framed.write(tmp_path / "store.zarr", {name: [long] for name in SETS}, hop=0.2)
    for protocol, name, heard in (
        ("xares", "desed", (45, 0)),
        ("xares", "other", (50, 5)),
        ("strict", "desed", (50, 5)),
    ):
        task = load(store, protocol, name=name)
        excerpts = excerpts_of(task, task.samples(task.rounds[0].test))
        assert tuple(excerpts.targets(0, start=0, stop=60).sum(axis=0)[:2]) == heard, (protocol, name)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    hop=st.sampled_from([0.02, 0.04, 0.1, 0.16]),
    segment=st.sampled_from([0.1, 0.2, 0.25, 1.0]),
    batch_size=st.integers(1, 5),
    same_length=st.booleans(),
)
def test_segments_of_xares_are_those_of_its_metric(tmp_path_factory, seed, hop, segment, batch_size, same_length):
    rng = np.random.default_rng(seed)
    lengths = np.full(7, 40) if same_length else rng.integers(12, 40, size=7)
    made = []
    for number, length in enumerate(lengths):
        onsets = rng.uniform(0, length * hop, 4)
        offsets = onsets + rng.uniform(0, 1.0, 4)
        labels = [chr(97 + label) for label in rng.integers(3, size=4)]
        events = list(zip(onsets.tolist(), offsets.tolist(), labels, strict=True))
        made.append(framed.Clip(str(number), np.zeros((length, 4)), events))
    store = framed.write(tmp_path_factory.mktemp("x") / "store.zarr", {"test": made}, hop=hop)
    task = load(
        store,
        "xares",
        metric_args={"segment_seconds": segment},
        probe={**PROBE, "batch_size": batch_size},
        splits=dict.fromkeys(("train", "valid", "test"), "test*.tar"),
    )
    samples = task.samples(task.rounds[0].test)
    excerpts = excerpts_of(task, samples)
    segments = segment_groups(task, samples, excerpts)
    logits = [rng.standard_normal((length, 3)).astype(np.float32) for length in lengths]
    padding = rng.standard_normal(3).astype(np.float32)
    found = segments.predicted_counts(
        lambda group: Rows(logits=np.concatenate([logits[at] for at in group]), padding=padding)
    )

    predictions, truths = [], []
    for start in range(0, 7, batch_size):
        batch = range(start, min(7, start + batch_size))
        targets = [peer_targets(made[at].events, hop=hop, n_classes=3) for at in batch]
        _, y = peer_batch([made[at].frames for at in batch], targets)
        scores = torch.from_numpy(padding).repeat(len(batch), y.shape[1], 1)
        for row, at in enumerate(batch):
            scores[row, : lengths[at]] = torch.from_numpy(logits[at])
        n_frames = ceil(segment / hop)
        if y.shape[1] < n_frames:  # torch would refuse it
            continue
        decided, truth = peer_segments(scores.sigmoid().round(), y, n_frames=n_frames)
        predictions.append(decided)
        truths.append(truth)
    if not predictions:
        assert found.sum() == 0
        return
    for average in ("micro", "macro"):
        expected = sk.f1_score(np.concatenate(truths), np.concatenate(predictions), average=average, zero_division=0.0)
        metric = find_metric(f"segment_f1_{average}", "xares")
        assert metric.score(segments.true_counts(), found) == pytest.approx(expected, abs=1e-12)


# --- strict -----------------------------------------------------------------------------------------------------------


def test_a_frame_hears_what_sounds_at_its_centre_and_no_event_is_too_short_to_be_heard(tmp_path):
    events = [(0.0, 0.3, "a"), (0.34, 0.36, "b"), (0.45, 0.65, "c"), (0.89, 2.0, "c")]
    clip = framed.Clip("one", np.ones((10, 4)), events)
    store = framed.write(tmp_path / "store.zarr", {"train": [clip], "valid": [clip], "test": [clip]}, hop=0.1)
    task = load(store, "strict")
    heard = excerpts_of(task, task.samples(task.rounds[0].test)).targets(0, start=0, stop=10)
    assert [np.flatnonzero(each).tolist() for each in heard.T] == [[0, 1, 2], [3], [4, 5, 9]]


def test_what_an_encoder_says_of_padding_is_masked_under_strict_and_kept_under_xares(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((25, 4))
    whole = framed.Clip("whole", frames[:20], [(0.1, 0.3, "a")])
    padded = framed.Clip("padded", frames, [(0.1, 0.3, "a")], seconds=0.4)
    stores = {clip.key: framed.write(tmp_path / clip.key, {name: [clip] for name in SETS}) for clip in (whole, padded)}
    tasks = {name: load(store, "strict") for name, store in stores.items()}
    for task in tasks.values():
        assert task.frames.lengths.tolist() == [20, 20, 20]
        np.testing.assert_array_equal(task.frames[0], frames[:20].astype(np.float16))
    assert load(stores["padded"], "xares").frames.lengths.tolist() == [25, 25, 25]

    def counts(task, value):
        samples = task.samples(task.rounds[0].test)
        excerpts = excerpts_of(task, samples)
        segments = segment_groups(task, samples, excerpts)
        rows = Rows(logits=np.full((20, 3), value, np.float32), padding=np.full(3, 9.0, np.float32))
        return segments.true_counts(), segments.predicted_counts(lambda _: rows)

    assert counts(tasks["padded"], 1.0)[1][0, 0].tolist() == [4, 2]  # 0.4 s are four segments of 0.1 s
    assert counts(tasks["padded"], -1.0)[1].sum() == 0
    assert counts(tasks["padded"], -1.0)[0].tolist() == [[2, 0, 0]]


def test_windows_of_a_cropped_clip_score_as_the_clip_that_they_are_of(tmp_path):
    def cut(clips, window_frames):
        return [framed.Clip(c.key, c.frames, c.events, window_frames=window_frames) for c in clips]

    whole = framed.write(tmp_path / "whole.zarr", SETS)
    cropped = framed.write(tmp_path / "cropped.zarr", {name: cut(clips, 15) for name, clips in SETS.items()})
    one, two = (probe_task(each, framed.task(probe=PROBE), seeds=(0,)) for each in (whole, cropped))
    assert len(cropped.select(split="test")) > len(whole.select(split="test"))
    assert one.value == two.value
    # Streamed statistics and gradients are added up in other pieces.
    assert one.details["fit"]["rounds"]["test"][0].pop("gradient_norm") == pytest.approx(
        two.details["fit"]["rounds"]["test"][0].pop("gradient_norm"), rel=1e-3
    )
    others = {"spread": 0, "near_duplicates": 0}  # these count windows
    assert one.details | others == two.details | others


def test_chunks_hold_every_frame_once_and_in_order(store):
    task = load(store, "strict")
    samples = task.samples(np.arange(len(task.clip_id)))
    excerpts = excerpts_of(task, samples)
    for max_rows in (1, 7, 64, 10_000):
        chunks = list(spans_of(excerpts, range(len(excerpts)), max_rows=max_rows))
        assert max(sum(map(len, chunk)) for chunk in chunks) <= max_rows
        rows = [(span.sample, span.row + at) for chunk in chunks for span in chunk for at in range(len(span))]
        assert rows == [(at, row) for at, n_rows in enumerate(excerpts.n_rows) for row in range(n_rows)]


# --- the whole task ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("protocol", "metric"), [("strict", "segment_f1_macro"), ("xares", "segment_f1_micro")])
def test_a_probe_learns_when_what_sounds(store, protocol, metric):
    record = probe_task(store, framed.task(probe=PROBE, metric=metric), protocol=protocol, seeds=(0,))
    assert record.value > 0.85
    assert (record.ci_low, record.ci_high) == (None, None)
    assert "14" in record.details["interval"]["reason"]
    assert (record.n_train, record.n_valid, record.n_test) == (24, 10, 14)
    assert ("event_f1" in record.details) == (protocol == "strict")
    assert set(record.seconds) == {"read", "train", "score", "warnings"}
    assert record.settings["segment_seconds"] == 0.1


def test_events_are_found_by_their_onsets(store):
    record = probe_task(store, framed.task(probe=PROBE), seeds=(0,))
    assert record.details["event_f1"]["value"] > 0.6
    assert record.details["event_f1"]["average"] == "macro"


@pytest.mark.parametrize("protocol", ["strict", pytest.param("xares", marks=pytest.mark.slow)])
def test_a_run_repeats_to_the_last_digit_whatever_the_threads(store, protocol):
    before = torch.get_num_threads()
    records = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        records.append(probe_task(store, framed.task(probe=PROBE), protocol=protocol, seeds=(0, 1)))
    torch.set_num_threads(before)
    one, two = records
    assert {**one.as_json(), "seconds": {}} == {**two.as_json(), "seconds": {}}


def test_the_test_set_has_no_say_in_the_selection_of_strict(tmp_path):
    patterns = {"train": "train*.tar", "valid": "test*.tar", "test": "test*.tar"}
    silent = [framed.Clip(clip.key, clip.frames, []) for clip in SETS["test"]]
    found = []
    for name, test in (("true", SETS["test"]), ("false", silent)):
        store = framed.write(tmp_path / name, {"train": SETS["train"], "test": test})
        found.append(probe_task(store, framed.task(probe=PROBE, splits=patterns), seeds=(0,)).details)
    assert found[0]["validation"] == found[1]["validation"]
    assert found[0]["best_epoch"] == found[1]["best_epoch"]


def test_a_set_without_frames_says_how_to_get_them(tmp_path):
    store = framed.write(tmp_path / "store.zarr", SETS, frames_stored=False)
    with pytest.raises(UnknownFeatureSet, match="--frames always"):
        probe_task(store, framed.task())


def test_training_clips_without_an_event_are_one_clear_error(tmp_path):
    silent = {name: [framed.Clip(clip.key, clip.frames, []) for clip in clips] for name, clips in SETS.items()}
    with pytest.raises(LabelError, match=r"\b24\b.*\b0\b"):
        probe_task(framed.write(tmp_path / "store.zarr", silent), framed.task())


def test_frames_that_are_not_finite_are_one_clear_error(tmp_path):
    broken = framed.clips("train", 6)
    broken[2].frames[5] = np.nan
    store = framed.write(tmp_path / "store.zarr", {**SETS, "train": broken})
    with pytest.raises(DataError, match="finite"):
        probe_task(store, framed.task(probe=PROBE))


def test_from_audio_to_a_score(tmp_path):
    """Tones of three pitches that come and go, hand-made shards, logmel."""
    rng = np.random.default_rng(1)
    for split, n in (("train", 24), ("valid", 8), ("test", 10)):
        members = []
        for number in range(n):
            wave = 0.01 * rng.standard_normal(int(16_000 * rng.uniform(1.5, 2.5)))
            events = []
            for label, pitch_hz in zip("abc", (300, 1000, 3000), strict=True):
                start, length = (int(16_000 * each) for each in (rng.uniform(0, 1.0), rng.uniform(0.3, 0.8)))
                stop = min(len(wave), start + length)
                if rng.random() < 0.7:
                    wave[start:stop] += 0.2 * np.sin(2 * np.pi * pitch_hz * np.arange(stop - start) / 16_000)
                    events.append({"onset": start / 16_000, "offset": stop / 16_000, "label": label})
            members += handmade.clip(f"{split}-{number}", wave.astype(np.float32), label=events)
        handmade.write_tar(tmp_path / "data" / "tiny" / f"{split}-0.tar", members)
    manifest = framed.task(probe=PROBE, label={"events": "label", "field": "label", "classes": ["a", "b", "c"]})
    handmade.extract(manifest, tmp_path / "data", tmp_path / "store.zarr", splits=("train", "valid", "test"))
    store = open_store(str(tmp_path / "store.zarr"))
    for protocol in ("strict", "xares"):
        assert probe_task(store, manifest, protocol=protocol, seeds=(0,)).value > 0.85
