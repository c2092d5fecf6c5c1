from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.metrics.events import count_matches, onsets_of, plan_segments, segments_of_events

seeds = st.integers(0, 2**32 - 1)


def naive_matches(true, found, tolerance):
    """Augmenting paths in the bipartite graph of pairs within the tolerance (Kuhn 1955)."""
    taken = {}

    def place(onset, seen):
        for at, other in enumerate(found):
            if abs(onset - other) <= tolerance + 1e-9 and at not in seen:
                seen.add(at)
                if at not in taken or place(taken[at], seen):
                    taken[at] = onset
                    return True
        return False

    return sum(place(onset, set()) for onset in true)


times = st.lists(st.integers(0, 40).map(lambda tenth: tenth / 10), max_size=9, unique=True).map(sorted)


@settings(max_examples=300)
@given(true=times, found=times, tolerance=st.sampled_from([0.0, 0.1, 0.2, 0.5]))
def test_matching_is_maximal(true, found, tolerance):
    assert count_matches(true, found, tolerance_seconds=tolerance) == naive_matches(true, found, tolerance)


def test_a_run_begins_at_its_first_frame_and_ends_with_its_clip():
    active = np.array([[0, 1], [1, 1], [1, 0], [1, 1], [0, 1]], bool)
    frame, label = onsets_of(active, first_of_clip=np.array([1, 0, 0, 1, 0], bool))
    assert list(zip(label.tolist(), frame.tolist(), strict=True)) == [(0, 1), (0, 3), (1, 0), (1, 3)]


# --- segments ---------------------------------------------------------------------------------------------------------


def naive_truth(onset, offset, n_segments, segment_ms):
    """Milliseconds, one by one."""
    on = {ms // segment_ms for ms in range(onset, max(offset, onset + 1))}
    return [at in on for at in range(n_segments)]


@given(onset=st.integers(0, 900), length=st.integers(0, 900), segment_ms=st.sampled_from([100, 250, 1000]))
def test_an_event_is_on_in_every_segment_that_it_overlaps(onset, length, segment_ms):
    n_segments = -(-1000 // segment_ms)
    found = segments_of_events(
        np.array([onset / 1000]),
        np.array([(onset + length) / 1000]),
        np.array([1]),
        n_segments=n_segments,
        n_classes=2,
        segment_seconds=segment_ms / 1000,
    )
    assert not found[:, 0].any()
    assert found[:, 1].tolist() == naive_truth(onset, onset + length, n_segments, segment_ms)


def test_overlapping_events_of_a_class_are_on_together():
    found = segments_of_events(
        np.array([0.0, 0.1]), np.array([0.15, 0.35]), np.array([0, 0]), n_segments=5, n_classes=1, segment_seconds=0.1
    )
    assert found[:, 0].tolist() == [True, True, True, True, False]


@settings(max_examples=150)
@given(
    seed=seeds,
    hop=st.sampled_from([0.01, 0.02, 0.04, 0.1, 0.16, 0.32]),
    n_frames=st.integers(1, 60),
    segment=st.sampled_from([0.1, 0.25, 1.0]),
)
def test_the_frames_of_a_segment_are_those_whose_centre_is_in_it_or_the_nearest(seed, hop, n_frames, segment):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n_frames, 2))
    centres = (np.arange(n_frames) + 0.5) * hop
    plan = plan_segments(centres, seconds=n_frames * hop, segment_seconds=segment, hop_seconds=hop)
    pooled = plan.pooled(logits)
    frames_ms = [round(centre * 1000) for centre in centres]
    segment_ms = round(segment * 1000)
    for at, found in enumerate(pooled):
        mine = [frame for frame, ms in enumerate(frames_ms) if ms // segment_ms == at]
        if not mine:
            middle = at * segment_ms + segment_ms / 2
            mine = [min(range(n_frames), key=lambda frame, middle=middle: abs(frames_ms[frame] - middle))]
        np.testing.assert_array_equal(found, logits[mine].max(axis=0))
    assert len(pooled) * segment_ms + 1 >= max(frames_ms)
    assert len(pooled) <= -(-round(n_frames * hop * 1000) // segment_ms)


@pytest.mark.parametrize(
    ("seconds", "n_segments"), [(1.0, 1), (2.0, 2), (2.005, 2), (2.3, 3), (10.00006, 10), (0.01, 1)]
)
def test_the_last_segment_is_as_short_as_the_clip_leaves_it(seconds, n_segments):
    n_frames = max(1, round(seconds / 0.02))
    centres = (np.arange(n_frames) + 0.5) * 0.02
    plan = plan_segments(centres, seconds=seconds, segment_seconds=1.0, hop_seconds=0.02)
    assert len(plan.starts) == n_segments


def test_a_perfect_head_at_any_hop_up_to_a_segment_finds_every_long_event():
    rng = np.random.default_rng(0)
    for hop, segment in itertools.product((0.01, 0.02, 0.025, 0.05), (0.1, 1.0)):
        onset = segment * int(rng.integers(3))
        offset = onset + segment * int(rng.integers(1, 4))
        centres = (np.arange(round(8 * segment / hop)) + 0.5) * hop
        plan = plan_segments(centres, seconds=8 * segment, segment_seconds=segment, hop_seconds=hop)
        truth = segments_of_events(
            np.array([onset]), np.array([offset]), np.array([0]), n_segments=8, n_classes=1, segment_seconds=segment
        )
        heard = ((centres >= onset) & (centres < offset))[:, None]
        np.testing.assert_array_equal(plan.pooled(heard), truth)
