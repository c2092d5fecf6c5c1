"""The page as data: what is in it is what is in the store, in few bytes, and no text gets out of its place."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

import featstore
from featstore.errors import LabelError, UsageError
from featstore.explore import map as projection
from featstore.explore import page as explore_page
from featstore.explore.columns import Column, columns_of, default_colour
from featstore.explore.map import frame, pca, take_common_points, take_points
from featstore.explore.page import explore, render_map
from mapped import HOSTILE, Stored, write_set

DIM = 6


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def some(n: int, rng: np.random.Generator, *, windows: int = 1) -> list[Stored]:
    centres = rng.standard_normal((3, DIM)) * 3
    return [
        Stored(
            f"clip-{at}",
            centres[at % 3] + rng.standard_normal((1 + at % windows, DIM)),
            {
                "word": f"w{at % 3}",
                "by": {"id": at % 40, "old": at % 2 == 0},
                "snr": at / 7,
                "tags": ["b", "a"][: 1 + at % 2],
            },
        )
        for at in range(n)
    ]


def opened(url: Path) -> featstore.store.FeatureSet:
    return featstore.open(str(url)).select()


def data_of(html: str) -> dict[str, Any]:
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    return json.loads(text)


def numbers(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_coordinates_labels_keys_and_neighbours_of_the_page_are_those_of_the_store(tmp_path, rng):
    clips = some(150, rng, windows=3)
    write_set(tmp_path / "s", clips, shards=2)
    data = data_of(render_map(explore(take_points(opened(tmp_path / "s"), max_points=1000))))
    assert data["keys"] == [clip.key for clip in clips]
    units = [each.rows / np.linalg.norm(each.rows, axis=1, keepdims=True) for each in clips]
    means = np.array([unit.mean(axis=0) for unit in units])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    wanted = PCA(2).fit_transform(means)
    [space] = data["maps"]
    found = numbers(space["xy"], "<f4").reshape(-1, 2)
    for axis in range(2):
        assert abs(np.corrcoef(found[:, axis], wanted[:, axis])[0, 1]) > 0.99999
    cosine = means @ means.T
    np.fill_diagonal(cosine, -2)
    near = numbers(space["near"], "<u1").reshape(150, 8)
    assert near.tolist() == np.argsort(-cosine, axis=1, kind="stable")[:, :8].tolist()
    result = numbers(space["cosines"], "<u2").reshape(150, 8) / 65_535 * 2 - 1
    np.testing.assert_allclose(result, np.take_along_axis(cosine, near.astype(int), axis=1), atol=2e-5)
    by_name = {column["name"]: column for column in data["columns"]}
    assert list(by_name) == ["word", "by.id", "by.old", "snr", "tags", "(seconds)", "(shard)"]
    assert [by_name["word"]["values"][code] for code in numbers(by_name["word"]["codes"], "<u1")] == [
        clip.meta["word"] for clip in clips
    ]
    assert set(by_name["tags"]["values"]) == {"b", "a, b"}
    np.testing.assert_allclose(
        numbers(by_name["snr"]["numbers"], "<f4"), [clip.meta["snr"] for clip in clips], rtol=1e-6
    )
    assert numbers(by_name["(seconds)"]["numbers"], "<f4").tolist() == [len(clip.rows) for clip in clips]
    shard = by_name["(shard)"]
    result = [shard["values"][code] for code in numbers(shard["codes"], "<u1")]
    assert result == ["train-000.tar"] * 75 + ["train-001.tar"] * 75
    assert data["columns"][data["colour"]]["name"] == "word"


def test_of_more_clips_than_points_a_draw_is_shown_that_repeats(tmp_path, rng):
    write_set(tmp_path / "s", some(90, rng))
    html, again = (
        render_map(explore(take_points(opened(tmp_path / "s"), max_points=20), colour="snr"), audio=None)
        for _ in range(2)
    )
    assert data_of(html) == data_of(again)
    assert (data_of(html)["n"], len(set(data_of(html)["keys"]))) == (20, 20)
    assert "20 of 90 clips" in html
    assert data_of(html)["columns"][data_of(html)["colour"]]["name"] == "snr"


@pytest.mark.parametrize("fitted", [10_000, 60], ids=["all rows", "a draw"])
def test_principal_components_are_those_of_scikit_learn_and_repeat(rng, monkeypatch, fitted):
    X = (rng.standard_normal((300, DIM)) * [9, 5, 1, 1, 1, 1]).astype(np.float32)
    monkeypatch.setattr(projection, "MAX_FITTED", fitted)
    monkeypatch.setattr(projection, "ROWS_PER_BLOCK", 7)
    found = pca(X)
    wanted = PCA(2).fit(X)
    for axis in range(2):
        assert abs(np.corrcoef(found.xy[:, axis], wanted.transform(X)[:, axis])[0, 1]) > (
            0.9999 if fitted > 300 else 0.9
        )
    assert np.array_equal(found.xy, pca(X).xy)
    if fitted > 300:
        assert found.axes[0] == f"component 1, {wanted.explained_variance_ratio_[0]:.0%} of variance"


@pytest.mark.parametrize(
    "X", [np.ones((5, 4)), np.zeros((3, 2)), np.arange(4.0)[:, None]], ids=["alike", "zeros", "one dimension"]
)
def test_vectors_that_span_no_plane_still_have_a_place(X):
    found = pca(X.astype(np.float32))
    assert found.xy.shape == (len(X), 2)
    assert np.isfinite(found.xy).all()


@pytest.mark.slow
def test_umap_keeps_clusters_together_and_repeats(rng):
    pytest.importorskip("umap", reason="umap-learn is not installed")
    X = np.repeat(np.eye(3, 10), 30, axis=0) * 8 + rng.standard_normal((90, 10))
    X = (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32)
    found = projection.umap(X)
    assert np.array_equal(found.xy, projection.umap(X).xy)
    distances = np.linalg.norm(found.xy[:, None] - found.xy[None], axis=2) + np.eye(90) * 1e9
    assert (distances.argmin(axis=1) // 30 == np.arange(90) // 30).mean() > 0.95
    assert projection.umap(X[:20]).xy.shape == (20, 2)
    with pytest.raises(UsageError, match=r"20 .* 19: .*--map pca"):
        projection.umap(X[:19])


def test_umap_that_is_not_installed_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError, match=r"--map pca.* umap.*featstore\[umap\]"):
        projection.umap(np.eye(4, dtype=np.float32))


def test_two_clips_make_a_map_and_one_does_not(tmp_path, rng):
    write_set(tmp_path / "two", some(2, rng))
    data = data_of(render_map(explore(take_points(opened(tmp_path / "two"), max_points=9))))
    assert (data["n"], data["k"], numbers(data["maps"][0]["near"], "<u1").tolist()) == (2, 1, [1, 0])
    write_set(tmp_path / "one", some(1, rng))
    with pytest.raises(UsageError):
        take_points(opened(tmp_path / "one"), max_points=9)


def test_vectors_that_are_not_finite_do_not_spoil_the_map(tmp_path, rng):
    clips = [*some(20, rng), Stored("broken", np.full(DIM, np.inf), {"word": "w1"})]
    write_set(tmp_path / "s", clips)
    data = data_of(render_map(explore(take_points(opened(tmp_path / "s"), max_points=99))))
    assert np.isfinite(numbers(data["maps"][0]["xy"], "<f4")).all()
    assert data["n"] == 21


def test_outliers_do_not_widen_the_frame_and_a_spread_without_them_is_shown_in_full(rng):
    xy = rng.standard_normal((500, 2)).astype(np.float32)
    low, high = frame(xy)
    assert np.array_equal(low, xy.min(axis=0))
    assert np.array_equal(high, xy.max(axis=0))
    spoilt = np.vstack([xy, [[1e4, 0], [0, -1e6], [np.float32(3e30), 0]]]).astype(np.float32)
    low, high = frame(spoilt)
    assert (low >= -6).all()
    assert (high <= 6).all()
    assert ((spoilt >= low) & (spoilt <= high)).all(axis=1).sum() == 500
    for n in (1, 2, 3):  # of few points all are shown
        assert np.array_equal(frame(xy[:n]), [xy[:n].min(axis=0), xy[:n].max(axis=0)])
    flat = np.zeros((100, 2), np.float32)
    flat[0] = 5
    assert np.array_equal(frame(flat), [[0, 0], [5, 5]])


def test_two_spaces_have_the_clips_that_both_have_in_one_order_each_with_its_own_neighbours(tmp_path, rng):
    clips = some(40, rng, windows=2)
    write_set(tmp_path / "s", clips, encoder="a")
    others = [Stored(clip.key, rng.standard_normal(3), {}) for clip in clips[5:]] + [Stored("new", np.ones(3), {})]
    write_set(tmp_path / "s", [others[at] for at in rng.permutation(len(others))], encoder="b")
    store = featstore.open(str(tmp_path / "s"))
    a, b = (store.select(encoder=name) for name in "ab")
    pair = take_common_points(a, b, max_points=99)
    assert [points.keys for points in pair] == [[clip.key for clip in clips[5:]]] * 2
    explorer = explore(*pair)
    vectors = {clip.key: clip.rows[0] / np.linalg.norm(clip.rows[0]) for clip in others}
    rows = np.array([vectors[key] for key in explorer.keys])
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -2)
    near_b = np.argsort(-cosine, axis=1, kind="stable")[:, :8]
    near_a = explore(pair[0]).spaces[0].near_rows
    assert [sorted(row) for row in explorer.spaces[1].near_rows.tolist()] == [sorted(row) for row in near_b.tolist()]
    assert np.array_equal(explorer.spaces[0].near_rows, near_a)
    assert explorer.columns[-1].name == "(shared neighbours)"
    assert explorer.columns[-1].numbers.tolist() == [
        len(set(one) & set(other)) for one, other in zip(near_a.tolist(), near_b.tolist(), strict=True)
    ]
    html = render_map(explorer)
    assert [space["name"] for space in data_of(html)["maps"]] == ["a", "b"]
    assert f"featstore explore {a.path} {b.recipe.group_name} --store STORE --data DIR --serve" in html
    sampled = [points.keys for points in take_common_points(a, b, max_points=9)]
    assert sampled[0] == sampled[1]
    assert len(sampled[0]) == 9
    with pytest.raises(UsageError, match=r"a@.*name two"):
        take_common_points(a, a, max_points=9)
    write_set(tmp_path / "s", [Stored("elsewhere", np.ones(3)), Stored(clips[6].key, np.ones(3))], encoder="c")
    with pytest.raises(UsageError, match="1 in common"):
        take_common_points(a, featstore.open(str(tmp_path / "s")).select(encoder="c"), max_points=9)


def columns_of_metas(metas: list[str]) -> tuple[Column, ...]:
    return columns_of([f"clip {at}" for at in range(len(metas))], metas)


def test_columns_are_what_the_json_holds_whatever_it_holds():
    metas = [
        {"a": "x", "n": 1, "deep": {"er": {"est": 1, "too": {"deep": 1}}}, "events": [{"label": "x"}], "none": None},
        {"a": 5, "n": 2.5, "late": True, "big": 10**300, "list": [2, "b"], "n_few": 3},
        ["no object"],
        {"n": float("1e300"), "a": None, "long": "x" * 5000, "n_few": 4.0},
    ]
    found = {column.name: column for column in columns_of_metas([json.dumps(meta) for meta in metas])}
    assert set(found) == {"a", "n", "deep.er.est", "late", "big", "list", "n_few", "long"}
    assert found["a"].values == ("5", "x")
    assert found["a"].codes.tolist() == [1, 0, -1, -1]
    assert (found["n"].kind, found["n"].numbers[:2].tolist(), np.isnan(found["n"].numbers[2:]).all()) == (
        "number",
        [1, 2.5],
        True,
    )
    assert (found["late"].values, found["list"].values) == (("true",), ("2, b",))
    assert len(found["long"].values[0]) == 200
    assert columns_of_metas(["{}", "7"]) == ()
    [numbered] = columns_of_metas([json.dumps({"word": f"w{at}"}) for at in (10, 9, 2, 10)])
    assert numbered.values == ("w10", "w2", "w9")
    assert default_colour(()) == -1


def test_a_column_of_very_many_values_is_text_and_no_colour():
    columns = columns_of_metas([json.dumps({"said": f"sentence {at}", "x": at / 2}) for at in range(1001)])
    assert [column.kind for column in columns] == ["text", "number"]
    assert default_colour(columns) == 1


def test_the_colour_at_first_is_the_label_of_the_task_or_what_is_called_so(tmp_path):
    clips = [
        Stored(f"c{at}", np.eye(DIM)[at % DIM], {"behind": f"b{at % 3}", "label": at % 2, "scene": f"s{at % 4}"})
        for at in range(24)
    ]
    for dataset, named in (("demo-scenes", "scene"), ("words", "label")):
        write_set(tmp_path / dataset, clips, dataset=dataset)
        explorer = explore(take_points(opened(tmp_path / dataset), max_points=99))
        assert explorer.columns[explorer.colour].name == named


def test_columns_that_would_make_the_page_too_large_are_named_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(explore_page, "MAX_COLUMN_BYTES", 3000)
    clips = [
        Stored(f"c{at}", np.eye(DIM)[at % DIM] + at, {"said": f"a long sentence {at}", "word": f"w{at % 3}"})
        for at in range(120)
    ]
    write_set(tmp_path / "s", clips)
    html = render_map(explore(take_points(opened(tmp_path / "s"), max_points=999)))
    assert [column["name"] for column in data_of(html)["columns"]] == ["word", "(seconds)", "(shard)"]
    assert "<dd>said: " in html


def test_a_colour_that_no_clip_has_is_reported(tmp_path, rng):
    write_set(tmp_path / "s", some(5, rng))
    with pytest.raises(LabelError, match=r"'wrod'.* word, by\.id"):
        explore(take_points(opened(tmp_path / "s"), max_points=9), colour="wrod")


def test_hostile_texts_stay_texts(tmp_path, rng):
    clips = [Stored(text, rng.standard_normal(DIM), {text: text, "word": text}) for text in HOSTILE]
    write_set(tmp_path / "s", clips)
    html = render_map(explore(take_points(opened(tmp_path / "s"), max_points=99)), title=HOSTILE[0])
    assert data_of(html)["keys"] == list(HOSTILE)
    assert len(re.findall(r"<script", html)) == 2
    assert len(re.findall(r"</script", html)) == 2
    assert "<img" not in html
    assert "\u2028" not in html
    assert set(HOSTILE) <= {column["name"] for column in data_of(html)["columns"]}


def test_the_page_forbids_every_request_but_its_own_sounds(tmp_path, rng):
    write_set(tmp_path / "s", some(9, rng))
    explorer = explore(take_points(opened(tmp_path / "s"), max_points=9))
    for audio, media in ((None, ""), ({0: "data:audio/ogg;base64,AA=="}, "media-src data:; ")):
        html = render_map(explorer, audio=audio)
        [policy] = re.findall(r'Content-Security-Policy" content="(.*?)"', html)
        assert policy == (
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
            f"{media}base-uri 'none'; form-action 'none'"
        )
        assert not re.findall(r'(?:src|href)="(?!#|data:)', html)
