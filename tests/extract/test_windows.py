"""The plan of a clip's windows."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.errors import UsageError
from featstore.extract.windows import Padding, plan_windows

PADDINGS = st.sampled_from(["0.25", "exact", "0.1", "3"])


@given(
    n=st.integers(1, 200_000),
    crop=st.none() | st.floats(0.01, 30),
    padding=PADDINGS,
    rate=st.sampled_from([100, 8000, 16_000]),
)
def test_windows_cover_every_sample_once_and_in_order(n: int, crop: float | None, padding: str, rate: int) -> None:
    windows = plan_windows(n, crop_seconds=crop, padding=Padding.parse(padding), sample_rate_hz=rate)
    assert windows[0].start == 0
    assert windows[-1].stop == n
    for window, after in pairwise(windows):
        assert window.stop == after.start
    for window in windows:
        assert window.start < window.stop <= window.start + window.padded


@given(n=st.integers(1, 200_000), crop=st.floats(0.01, 30), padding=PADDINGS)
def test_with_a_crop_all_but_the_last_window_are_whole_and_none_is_longer(n: int, crop: float, padding: str) -> None:
    windows = plan_windows(n, crop_seconds=crop, padding=Padding.parse(padding), sample_rate_hz=16_000)
    size = max(1, round(crop * 16_000))
    assert all(window.stop - window.start == window.padded == size for window in windows[:-1])
    assert windows[-1].padded <= size


@given(n=st.integers(1, 200_000), crop=st.floats(0.01, 30))
def test_under_xares_the_rest_of_a_clip_is_dropped_and_a_short_clip_is_not(n: int, crop: float) -> None:
    windows = plan_windows(n, crop_seconds=crop, padding=Padding.parse("xares"), sample_rate_hz=16_000)
    size = max(1, round(crop * 16_000))
    assert len(windows) == max(1, n // size)
    assert {window.padded for window in windows} == {size}
    assert windows[-1].stop == (n if n < size else n // size * size)


@given(n=st.integers(1, 200_000), longest=st.floats(0.1, 30), crop=st.none() | st.floats(0.01, 60), padding=PADDINGS)
def test_a_clip_longer_than_a_window_may_be_is_cut_as_evenly_as_it_goes(
    n: int, longest: float, crop: float | None, padding: str
) -> None:
    kind = Padding.parse(padding)
    windows = plan_windows(n, crop_seconds=crop, padding=kind, sample_rate_hz=16_000, longest_seconds=longest)
    if crop is not None and crop <= longest:
        assert windows == plan_windows(n, crop_seconds=crop, padding=kind, sample_rate_hz=16_000)
        return
    sizes = [window.stop - window.start for window in windows]
    assert sum(sizes) == n
    assert len(windows) == -(-n // round(longest * 16_000))
    assert max(sizes) <= round(longest * 16_000)
    assert max(sizes) - min(sizes) <= 1
    assert all(window.stop == after.start for window, after in pairwise(windows))


@given(n=st.integers(1, 480_000), padding=PADDINGS)
def test_an_encoder_of_fixed_input_gets_it_and_under_xares_what_x_ares_gives(n: int, padding: str) -> None:
    for text, least in ((padding, 480_000), ("xares", n)):
        [window] = plan_windows(
            n, crop_seconds=None, padding=Padding.parse(text), sample_rate_hz=16_000, longest_seconds=30.0,
            input_seconds=30.0,
        )  # fmt: skip
        assert window.stop - window.start == n
        assert least <= window.padded < least + 48_000


@given(n=st.integers(1, 200_000))
def test_a_windows_padded_length_is_the_next_multiple_of_the_quantum(n: int) -> None:
    [window] = plan_windows(n, crop_seconds=None, padding=Padding.parse("0.25"), sample_rate_hz=16_000)
    assert window.padded % 4000 == 0
    assert 0 <= window.padded - n < 4000


@given(n=st.integers(1, 200_000))
def test_exact_adds_nothing(n: int) -> None:
    [window] = plan_windows(n, crop_seconds=None, padding=Padding.parse("exact"), sample_rate_hz=16_000)
    assert window.padded == n


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e9", "quarter", "XARES"])
def test_a_padding_that_makes_no_sense_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=rf"--padding.*{re.escape(repr(text))}"):
        Padding.parse(text)


@pytest.mark.parametrize(("text", "written"), [("0.25", "0.25"), (".250", "0.25"), ("1.0", "1"), ("exact", "exact")])
def test_a_padding_has_one_name_in_the_recipe(text: str, written: str) -> None:
    assert str(Padding.parse(text)) == written
