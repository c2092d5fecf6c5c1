"""The public Python API: what `import featstore` offers, against the functions below it and against scikit-learn."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import featstore
from cached import cached
from featstore.errors import (
    EncoderContractError,
    EncoderError,
    FeatstoreError,
    StoreError,
    StoreNotFound,
    UnknownFeatureSet,
    UnknownTask,
    UsageError,
)
from featstore.extract import ExtractOptions, Silent, TaskExtraction
from featstore.extract.options import ExtractSettings
from featstore.records import ExtractFailure, ScoreRecord
from featstore.store import FeatureSet
from featstore.tasks import load_manifest
from handmade import XARES_ENCODER, clip, environment, noise, task_toml, write_split
from scored import scored

SPLITS = {"train": 16, "valid": 8, "test": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two classes, a manifest, and a store of two encoders."""
    folder = tmp_path_factory.mktemp("api")
    for split, n in SPLITS.items():
        clips = [
            clip(f"{split}{at}", noise(0.3, seed=40 * (at % 2) + len(split)) * (1 + at % 2), label="ab"[at % 2])
            for at in range(n)
        ]
        write_split(folder / "data" / "tiny", split, clips)
    task_toml(folder)
    made = featstore.extract(
        folder / "tiny.toml", encoder=["logmel", "mfcc"], data=folder / "data", store=folder / "s.zarr"
    )
    assert (len(made), made.failures) == (6, ())
    return folder


def in_a_process(code: str, *, cwd: Path | None = None) -> str:
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment(), capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.strip()


# --- importing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "imports",
    [
        "import featstore",
        "import featstore.probe.selection, featstore",
        "from featstore.probe import probe_task; import featstore",
    ],
)
def test_a_package_is_called_whatever_was_imported_before(imports: str) -> None:
    # an unknown task is reported before torch is imported
    code = f"{imports}\ntry: featstore.probe('no-such-task', store='s')\nexcept Exception as error: print(type(error))"
    assert in_a_process(code) == "<class 'featstore.errors.UnknownTask'>"


@pytest.mark.parametrize("name", ["explore", "extract", "fetch", "probe", "report", "retrieve"])
def test_a_callable_package_stays_a_package_and_has_the_signature_of_its_function(name: str) -> None:
    import featstore.api

    package = getattr(featstore, name)
    assert inspect.ismodule(package)
    assert package is sys.modules[f"featstore.{name}"]
    assert inspect.signature(package) == inspect.signature(getattr(featstore.api, name))


def test_every_public_name_is_there_and_no_other() -> None:
    assert not [name for name in featstore.__all__ if not hasattr(featstore, name)]
    assert set(featstore.__all__) <= set(dir(featstore))
    with pytest.raises(AttributeError):
        _ = featstore.nothing  # type: ignore[attr-defined]


def test_reading_a_store_imports_neither_torch_nor_faiss_nor_webdataset(tmp_path: Path) -> None:
    url = cached(tmp_path).url
    code = f"""
import sys, featstore
store = featstore.open({url!r})
fs = store["mel/words/train"]
fs.utterance.sum(), fs.xy("label.word"), fs.meta[0], fs.frames[fs.key[0]].shape, repr(store), store._repr_html_()
print({{"torch", "faiss", "webdataset", "sklearn", "ray", "pydantic"}} & set(sys.modules))
"""
    assert in_a_process(code) == "set()"


@pytest.mark.slow
def test_the_types_are_those_of_the_functions_for_a_type_checker(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(
        "import featstore\n"
        "from featstore.probe import probe_task\n"
        "reveal_type(featstore.probe('words', store='s.zarr'))\n"
        "reveal_type(featstore.open('s.zarr')['logmel/words/train'].xy('label')[0])\n"
        "reveal_type(probe_task)\n"
        "featstore.probe('words')\n"
        "featstore.extract('words', encoder='logmel', data='d', store='s', precison='float32')\n"
    )
    root = Path(featstore.__file__).parents[1]
    child = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml")),
            *("--cache-dir", str(root / ".mypy_cache"), "user.py"),  # that of `make lint`
        ],
        cwd=tmp_path, env={**os.environ, "MYPYPATH": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = child.stdout.splitlines()
    assert 'featstore.report.scores.Scores"' in lines[0]
    assert "ndarray" in lines[1]
    assert "ScoreRecord" in lines[2]
    errors = [line for line in lines if "error:" in line]
    assert [line.partition(":")[2][0] for line in errors] == ["6", "7"]


# --- scores -----------------------------------------------------------------------------------------------------------


def test_probe_is_probe_task_for_every_encoder(folder: Path) -> None:
    from featstore.probe import probe_task

    store = featstore.open(folder / "s.zarr")
    manifest = load_manifest(folder / "tiny.toml")
    found = featstore.probe(manifest, store=store, head="sweep", seeds=np.int64(1))
    assert [each.encoder for each in found] == ["logmel", "mfcc"]
    for each in found:
        alone = probe_task(store, manifest, encoder=each.encoder, head="sweep", seeds=(0,))
        assert dataclasses.replace(each, seconds={}) == dataclasses.replace(alone, seconds={})


def test_a_list_of_tasks_may_be_of_any_kind(folder: Path) -> None:
    path = folder / "tiny.toml"
    alone = featstore.retrieve(str(path), store=str(folder / "s.zarr"), k=np.array([1, 3]))
    listed = featstore.retrieve([path, load_manifest(path)], store=folder / "s.zarr", k=[1, 3])
    assert [dataclasses.replace(each, seconds={}) for each in listed] == [
        dataclasses.replace(each, seconds={}) for each in alone
    ]


def test_what_fails_is_returned_and_logged_and_the_others_are_scored(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = task_toml(tmp_path, name="broken", data={"dataset": "elsewhere"})
    calls: list[tuple[int, int, str]] = []
    with caplog.at_level(logging.WARNING, logger="featstore"):
        scores = featstore.retrieve(
            [broken, folder / "tiny.toml"], store=folder / "s.zarr", encoder="mfcc", results=tmp_path / "r",
            progress=lambda *each: calls.append(each),
        )  # fmt: skip
    [failure] = scores.failures
    assert (failure.task, failure.encoder, failure.error, failure.exit_code) == (
        "broken",
        "mfcc",
        "UnknownFeatureSet",
        2,
    )
    assert [record.name for record in caplog.records] == ["featstore"]
    assert [each.task for each in scores] == ["tiny"]
    assert [each[:2] for each in calls] == [(0, 2), (1, 2), (2, 2)]
    assert [path.name.split(".")[0] for path in (tmp_path / "r").iterdir()] == ["tiny"]
    with pytest.raises(FeatstoreError) as error:
        scores.raise_failures()
    assert error.value.exit_code == 2
    assert json.loads(json.dumps(failure.as_json()))["task"] == "broken"


def test_a_wrong_call_raises(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownTask):
        featstore.probe("no-such-task", store=folder / "s.zarr")
    with pytest.raises(UsageError):
        featstore.probe([], store=folder / "s.zarr")
    with pytest.raises(StoreNotFound):
        featstore.probe(folder / "tiny.toml", store=tmp_path / "none.zarr")
    other = task_toml(tmp_path, probe={"epochs": 3})
    with pytest.raises(UsageError):
        featstore.probe([load_manifest(other), load_manifest(folder / "tiny.toml")], store=folder / "s.zarr")


def test_a_value_that_is_none_of_the_choices_raises_and_computes_nothing(folder: Path, tmp_path: Path) -> None:
    task, store, data = folder / "tiny.toml", folder / "s.zarr", folder / "data"
    for call in (
        lambda: featstore.probe(task, store=store, protocol="stric"),  # type: ignore[arg-type]
        lambda: featstore.retrieve(task, store=store, protocol="stric"),  # type: ignore[arg-type]
        lambda: featstore.extract(task, encoder=[], data=data, store=tmp_path / "s.zarr"),
        lambda: featstore.extract(
            task,
            encoder="mfcc",
            data=data,
            store=tmp_path / "s.zarr",
            engine="lcal",  # type: ignore[arg-type]
        ),
        lambda: featstore.report([], tmp_path / "board.md", format="cvs"),  # type: ignore[arg-type]
        lambda: featstore.query("test0", store=store, encoder="mfcc", k=0),
        lambda: featstore.health(store, near_cosine=1.5),
        lambda: featstore.open(store)[0],  # type: ignore[index]
    ):
        with pytest.raises(UsageError):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_no_encoder_has_reports_what_to_extract(folder: Path) -> None:
    [failure] = featstore.probe(["esc50"], store=folder / "s.zarr").failures
    assert failure.error == "UnknownFeatureSet"
    assert f"featstore extract esc50 --encoder ENCODER --data DIR --store {folder / 's.zarr'}" in failure.message


def test_one_pool_may_be_given_as_a_text(folder: Path, tmp_path: Path) -> None:
    made = featstore.extract(
        folder / "tiny.toml", encoder="mfcc", data=folder / "data", store=tmp_path / "s.zarr", split="test", pool="max"
    )
    assert [each.encoder for each in made] == ["mfcc.max"]


def test_scores_add_up_and_the_last_of_equals_counts_in_tables() -> None:
    one, other = scored("a", "x", 0.5), scored("a", "y", 0.75)
    scores = featstore.Scores([one])
    before = scores
    scores += [other]
    scores += featstore.Scores([scored("a", "x", 0.25)])
    assert (len(before), len(scores), scores[1], scores[-1].value) == (1, 3, other, 0.25)
    assert list(scores[:2]) == [one, other]
    [table] = scores.leaderboard().tables
    assert [cell and cell.value for cell in table.rows[0].cells] == [0.25, 0.75]
    assert "0.750" in repr(scores.leaderboard())
    assert "0.750" in scores._repr_html_()
    assert "0.7500" in repr(scores)


def test_a_table_in_a_notebook_shows_the_text_of_others_as_text() -> None:
    record = scored("<b>t", "<script>x", 0.5, title="<i>")
    for html in (featstore.Scores([record])._repr_html_(), record._repr_html_()):
        assert "<script>" not in html
        assert "&lt;script&gt;" in html


def test_a_leaderboard_as_text_is_one_line_for_each_encoder_without_control_characters() -> None:
    names = ("a\x1b[31m|\nb", "c")
    scores = featstore.Scores([scored("words", name, value) for name, value in zip(names, (0.9, 0.5), strict=True)])
    text = repr(scores.leaderboard())
    assert "\x1b" not in text
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    lines = [row.replace("\\|", "").count("|") for row in rows]
    assert lines == [header.count("|")] * (len(names) + 1)  # the last row is the resolution


def test_scores_as_a_data_frame_and_as_files(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    scores = featstore.Scores([scored("a", "x", 0.5), scored("a", "x", 0.25, track="B")])
    frame = scores.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["value"].tolist() == [0.5, 0.25]
    assert frame["head"].tolist()[0] == "linear"
    for records in (scores, scores[1:], ()):
        assert {featstore.Scores(records).to_pandas()[name].dtype.kind for name in ("std", "k")} == {"f"}
    assert frame["k"].tolist()[1] == 10
    assert len(scores.save(str(tmp_path / "r"))) == 2
    from featstore.report import read_scores

    assert {each.key for each in read_scores(str(tmp_path / "r"))} == {each.key for each in scores}


def test_without_pandas_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install"):
        featstore.Scores().to_pandas()


def test_compare_and_report_take_scores_and_folders(tmp_path: Path) -> None:
    scores = featstore.Scores([scored("a", "x", 0.5), scored("a", "y", 0.9)])
    scores.save(tmp_path / "r")
    assert featstore.compare(scores, "x", "y") == featstore.compare(tmp_path / "r", "x", "y")
    for suffix in ("md", "csv", "json"):
        from_scores = featstore.report(scores, tmp_path / f"one.{suffix}")
        from_files = featstore.report(str(tmp_path / "r"), str(tmp_path / f"other.{suffix}"))
        assert from_scores.read_text() == from_files.read_text()
    assert featstore.report(scores, tmp_path / "x.txt", format="csv").read_text().startswith("line,")
    with pytest.raises(UsageError):
        featstore.report(scores, tmp_path / "x.txt")


# --- extraction -------------------------------------------------------------------------------------------------------


def test_the_keywords_of_extract_are_the_fields_of_its_options() -> None:
    assert get_type_hints(ExtractSettings) == get_type_hints(ExtractOptions)


def encoder_module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = XARES_ENCODER) -> object:
    (folder / "mine.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    import mine

    return mine


def test_a_class_is_the_encoder_that_its_spec_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = encoder_module(tmp_path, monkeypatch)
    places = {"data": folder / "data", "store": tmp_path / "s.zarr", "split": "test", "workers": 1}
    by_spec = featstore.extract(folder / "tiny.toml", encoder=tmp_path / "mine.py", arguments={"width": 4}, **places)
    by_class = featstore.extract(folder / "tiny.toml", encoder=mine.MyEncoder, arguments={"width": 4}, **places)
    assert by_class[0].fingerprint == by_spec[0].fingerprint
    assert (by_spec[0].shards_done, by_class[0].shards_reused) == (1, 1)


def test_the_identity_of_a_module_holds_its_weights_its_code_and_its_plain_attributes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featstore.encoders.load import load_object

    mine = encoder_module(
        tmp_path, monkeypatch, XARES_ENCODER.replace("self.output_dim", "self.scale = 1.0; self.output_dim")
    )

    def identity(module: object) -> dict:
        return dict(load_object(module, arguments={}, layers=(), pools=()).identity)  # type: ignore[arg-type]

    first = identity(mine.MyEncoder())
    assert first == identity(mine.MyEncoder())
    assert first == identity(partial(mine.MyEncoder))
    scaled = mine.MyEncoder()
    scaled.scale = 2.0
    reseeded = mine.MyEncoder(seed=1)
    assert [name for name in first if first[name] != identity(scaled)[name]] == ["attributes_sha256"]
    assert [name for name in first if first[name] != identity(reseeded)[name]] == ["state_sha256"]
    assert {"class", "code_sha256", "state_sha256"} <= set(first)


def test_a_module_is_put_in_evaluation_mode_and_one_of_no_file_is_refused(folder: Path, tmp_path: Path) -> None:
    import torch

    places = {"data": folder / "data", "store": tmp_path / "s.zarr"}
    namespace: dict = {"__name__": "__nowhere__"}
    sys.modules["__nowhere__"] = type(sys)("__nowhere__")
    try:
        exec(XARES_ENCODER, namespace)
        with pytest.raises(EncoderError, match="file"):
            featstore.extract(folder / "tiny.toml", encoder=namespace["MyEncoder"](), **places)
    finally:
        del sys.modules["__nowhere__"]
    with pytest.raises(EncoderContractError):
        featstore.extract(folder / "tiny.toml", encoder=torch.nn.Linear(2, 2), **places)
    with pytest.raises(UsageError):
        featstore.extract(folder / "tiny.toml", encoder=torch.nn.Linear(2, 2), device="cpu", engine="ray", **places)


def test_of_several_encoders_and_tasks_one_that_fails_does_not_stop_the_others(folder: Path, tmp_path: Path) -> None:
    missing = task_toml(tmp_path, name="missing", data={"dataset": "nothing"})
    made = featstore.extract(
        [missing, folder / "tiny.toml"], encoder=["./no_such_file.py", "logmel"], data=folder / "data",
        store=tmp_path / "s.zarr", split=["test"],
    )  # fmt: skip
    assert [(each.encoder, each.split) for each in made] == [("logmel", "test")]
    assert {(each.task, each.error) for each in made.failures} == {
        ("missing", "EncoderError"), ("tiny", "EncoderError"), ("missing", "ShardError")
    }  # fmt: skip
    assert all(isinstance(each, ExtractFailure) for each in made.failures)


def test_results_of_tasks_arrive_one_by_one_those_without_shards_first(folder: Path, tmp_path: Path) -> None:
    missing = task_toml(tmp_path, name="missing", data={"dataset": "nothing"})
    events: list[object] = []

    @contextmanager
    def opened() -> Iterator[Silent]:
        events.append("opened")
        yield Silent()
        events.append("closed")

    made = featstore.extract(
        [folder / "tiny.toml", missing], encoder="mfcc", data=folder / "data", store=tmp_path / "s.zarr",
        progress=opened, on_task=events.append,
    )  # fmt: skip
    first, *around, last = events
    assert around == ["opened", "closed"]
    assert isinstance(first, TaskExtraction)
    assert isinstance(last, TaskExtraction)
    assert (first.number, first.records, first.failure) == (1, (), made.failures[0])
    assert (last.number, last.records, last.failure, last.fatal) == (0, tuple(made), None, None)


def test_an_error_that_ends_the_run_is_raised_after_every_task_has_a_result(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("featstore.extract.task.TaskPlan._bring_up_to_date", full)
    other = task_toml(tmp_path, name="other", data={"dataset": "tiny"})
    results: list[TaskExtraction] = []
    with pytest.raises(StoreError) as error:
        featstore.extract(
            [folder / "tiny.toml", other], encoder="mfcc", data=folder / "data", store=tmp_path / "s.zarr",
            on_task=results.append,
        )  # fmt: skip
    assert [each.fatal for each in results] == [error.value, None]
    assert [each.failure.error for each in results if each.failure] == ["StoreError", ""]


def test_extracted_prints_no_control_characters() -> None:
    made = featstore.Extracted([], failures=[ExtractFailure(task="a\x1b[2J", error="DataError", message="b\x9b")])
    assert not [each for each in repr(made).replace("\n", "") if not each.isprintable()]


def test_one_encoder_that_cannot_be_loaded_raises(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError):
        featstore.extract(folder / "tiny.toml", encoder="./no.py", data=folder / "data", store=tmp_path / "s.zarr")


# --- stores -----------------------------------------------------------------------------------------------------------


def test_a_store_is_a_collection_of_feature_sets(tmp_path: Path) -> None:
    store = featstore.open(tmp_path / Path(cached(tmp_path).url).name)
    assert len(store) == len(list(store)) == 3
    fs = store["mel/words/train"]
    assert fs.path == store[f"{fs.recipe.group_name}/words/train"].path
    assert fs.path in store
    assert "mel/words/test" in store
    assert not any(name in store for name in ("mel", "mel/words/valid", "", 3))
    for wrong in ("mel/words/valid", "mel", "a/b/c/d"):
        with pytest.raises(UnknownFeatureSet):
            store[wrong]
    with pytest.raises(KeyError):
        store["mel/words"]
    assert fs.path in fs._repr_html_()
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again["mel/words/train"].utterance, fs.utterance)


def test_meta_gives_dicts_and_frames_are_found_by_key(tmp_path: Path) -> None:
    written = cached(tmp_path)
    fs = featstore.open(written.url)["mel/words/train"]
    assert fs.meta.tolist() == [json.loads(text) for text in fs.meta_json.tolist()]
    for at, window in enumerate(written.windows):
        np.testing.assert_array_equal(fs.frames[window.key], window.frames)
        np.testing.assert_array_equal(fs.frames[fs.key[at]], fs.frames[at])
    with pytest.raises(KeyError):
        fs.frames["nothing"]


def test_stores_are_copied_compacted_verified_and_exported(folder: Path, tmp_path: Path) -> None:
    parts: list[str] = []
    copied = featstore.copy(folder / "s.zarr", tmp_path / "c.zarr", encoder="mfcc", on_part=parts.append)
    assert [each.copied for each in copied] == [1, 1, 1]
    assert len(parts) == 3
    store = featstore.open(tmp_path / "c.zarr")
    assert {fs.recipe.encoder for fs in store} == {"mfcc"}
    assert featstore.verify(store).sound
    assert featstore.compact(store) == featstore.gc(store) == ()
    with pytest.raises(UsageError):
        featstore.compact(store, part_bytes=0)
    record = featstore.export(store, tmp_path / "x.npz", split="test", label="label")
    with np.load(tmp_path / "x.npz") as arrays:
        np.testing.assert_array_equal(arrays["utterance"], store["mfcc/tiny/test"].utterance)
    assert (record.format, record.clips) == ("npz", 8)
    for wrong in (tmp_path / "x.unknown", tmp_path / "x"):
        with pytest.raises(UsageError):
            featstore.export(store, wrong, split="test")
    [array] = [
        path
        for path in (tmp_path / "c.zarr").rglob("*")
        if path.is_file() and "test/" in path.as_posix() and "utterance/c/" in path.as_posix()
    ]
    array.write_bytes(b"\0" * array.stat().st_size)
    report = featstore.verify(store)
    assert (report.sound, len(report.findings)) == (False, 1)
    assert featstore.verify(store, repair=True).sound


def test_inspect_summarises_and_details_have_the_same_counts(folder: Path) -> None:
    store = featstore.open(folder / "s.zarr")
    summaries = featstore.inspect(store)
    details = featstore.inspect(store, details=True)
    assert [(each.encoder, each.split, each.clips) for each in summaries] == [
        (encoder, split, SPLITS[split]) for encoder in ("logmel", "mfcc") for split in sorted(SPLITS)
    ]
    assert [each.summary for each in details] == list(summaries)
    with pytest.raises(UnknownFeatureSet):
        featstore.inspect(store, encoder="nothing")
    assert [each.path for each in featstore.health(store)] == [each.path for each in summaries]


def test_an_encoder_is_checked_and_a_broken_contract_is_a_failed_check(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(XARES_ENCODER.replace("self.output_dim", "self.width"))
    steps: list[str] = []
    report = featstore.check(tmp_path / "broken.py", on_step=steps.append)
    assert [each.verdict for each in report.checks] == ["failed"]
    assert report.failed == report.checks
    assert len(steps) == 1


def test_a_map_is_written_and_served(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    chosen = {"encoder": "mfcc", "split": "test"}
    record = featstore.explore(folder / "s.zarr", out=tmp_path / "m.html", data=folder / "data", n_audio=3, **chosen)
    assert (record.clips, record.sounds, record.sounds_skipped) == (8, 3, 0)
    assert record.out.stat().st_size == record.bytes
    with featstore.explore_server(folder / "s.zarr", encoder_b="logmel", port=0, **chosen) as server:
        assert server.page.startswith(b"<!")
        assert server.page.count(b"<canvas") == 2
        with pytest.raises(UsageError):
            featstore.explore_server(folder / "s.zarr", port=server.server_port, **chosen)


def test_a_private_task_cannot_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        featstore.fetch(task_toml(tmp_path), data=tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- label sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tagged(tmp_path: Path) -> FeatureSet:
    from stores import split_writer, write_part

    from featstore.store import EmbeddedWindow

    tags = [["rain", "dog"], [], ["dog"], ["cat"]]
    windows = [
        EmbeddedWindow(key=str(at), meta=json.dumps({"tags": each}), start_seconds=0.0, seconds=1.0,
                       utterance=np.full(6, at, np.float32), frames=np.zeros((1, 6), np.float16))
        for at, each in enumerate(tags)
    ]  # fmt: skip
    write_part(split_writer(tmp_path / "tags.zarr"), "a.tar", windows)
    return featstore.open(tmp_path / "tags.zarr").select()


MULTI_HOT = [[0, 1, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_lists_of_labels_are_multi_hot_wherever_labels_are_read(tagged, tmp_path: Path) -> None:
    _, y = tagged.xy("tags")
    assert (y.dtype, y.tolist(), tagged.classes("tags")) == (np.uint8, MULTI_HOT, ("cat", "dog", "rain"))
    assert tagged.xy("tags", classes=["rain", "cat", "dog"])[1].tolist() == [[r, c, d] for c, d, r in MULTI_HOT]
    with pytest.raises(featstore.errors.LabelError):
        tagged.xy("tags", classes=["rain"])
    dataset = tagged.as_dataset("tags")
    assert (dataset.classes, dataset.labels.tolist()) == (("cat", "dog", "rain"), MULTI_HOT)
    batch = dataset.collate([dataset[at] for at in range(len(dataset))])
    assert (str(batch.y.dtype), tuple(batch.y.shape)) == ("torch.float32", (4, 3))


@pytest.mark.parametrize("form", ["npz", "zarr", "parquet", "hf"])
def test_an_export_has_label_sets_as_a_multi_hot_column_and_names_its_classes(
    tagged, tmp_path: Path, form: str
) -> None:
    from featstore.store.export import export_feature_set

    out = tmp_path / "out"
    if form in ("parquet", "hf"):
        pytest.importorskip("pyarrow")
    if form == "hf":
        pytest.importorskip("datasets")
    export_feature_set(tagged, str(out), file_format=form, frames=False, label="tags", force=False)  # type: ignore[arg-type]
    if form == "npz":
        arrays = np.load(out)
        labels, provenance = arrays["label"], json.loads(str(arrays["featstore"]))
    elif form == "zarr":
        import zarr

        group = zarr.open_group(out, mode="r")
        labels, provenance = np.asarray(group["label"]), group.attrs["featstore_export"]
    elif form == "parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(out)
        labels, provenance = table["label"].to_pylist(), json.loads(table.schema.metadata[b"featstore"])
    else:
        import datasets

        labels = datasets.load_from_disk(str(out))["label"][:]
        provenance = json.loads((out / "featstore_export.json").read_text())
    assert np.asarray(labels).tolist() == MULTI_HOT
    assert provenance["label_classes"] == ["cat", "dog", "rain"]


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_probing_arrays_is_the_probe_of_a_store_with_the_same_embeddings(folder: Path) -> None:
    store = featstore.open(folder / "s.zarr")
    parts = {split: store[f"logmel/tiny/{split}"].xy("label") for split in SPLITS}
    found = featstore.probe_arrays(*parts["train"], valid=parts["valid"], test=parts["test"])
    [stored] = featstore.probe(folder / "tiny.toml", store=store, encoder="logmel")
    assert isinstance(found, ScoreRecord)
    assert (found.value, found.ci_low, found.ci_high) == (stored.value, stored.ci_low, stored.ci_high)
    assert found.details["fit"] == stored.details["fit"]


def test_probing_arrays_agrees_with_scikit_learn_on_each_kind_of_label() -> None:
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 10))
    truth = rng.standard_normal((10, 3))
    logits = X @ truth
    train, test = slice(0, 300), slice(300, 400)

    numbers = logits[:, 0] + rng.standard_normal(400)
    scaler = StandardScaler().fit(X[train])
    ridge = RidgeCV(np.logspace(-1, 4, 20)).fit(scaler.transform(X[train]), numbers[train])
    expected = np.corrcoef(ridge.predict(scaler.transform(X[test])), numbers[test])[0, 1]
    found = featstore.probe_arrays(X[train], numbers[train], test=(X[test], numbers[test]))
    assert (found.metric, found.value) == ("pearson", pytest.approx(expected, abs=0.01))

    hot = (logits > 0).astype(int)
    names = [[f"c{column}" for column in np.flatnonzero(row)] for row in hot]
    by_array = featstore.probe_arrays(X[train], hot[train], test=(X[test], hot[test]))
    by_names = featstore.probe_arrays(X[train], names[:300], test=(X[test], names[300:]))
    assert by_array.metric == "mAP"
    assert by_array.value == by_names.value > 0.95

    classes = logits.argmax(axis=1)
    found = featstore.probe_arrays(X[train], classes[train], test=(X[test], classes[test]), seeds=[0], head="sweep")
    assert (found.seeds, found.settings["head"]) == ((0,), "sweep")
    assert found.value > 0.85


@pytest.mark.parametrize(
    ("X", "y", "test"),
    [
        (np.zeros((4, 2)), [0, 1, 0], (np.zeros((1, 2)), [0])),
        (np.zeros((4, 2)), [0, 1, 0, 1], (np.zeros((1, 3)), [0])),
        (np.zeros((2, 2)), np.full((2, 2), 7), (np.zeros((1, 2)), [0])),
        (np.zeros((0, 2)), [], (np.zeros((1, 2)), ["a"])),
        (np.zeros((4, 2)), [["a"], "b"] * 2, (np.zeros((1, 2)), ["b"])),
        (np.eye(4), ["a", None] * 2, (np.zeros((1, 4)), ["a"])),
        (np.eye(4), [[0, 1], [1, 0]] * 2, (np.zeros((2, 4)), [[1], [0]])),
        (np.eye(4), [["a"], ["b"]] * 2, (np.zeros((2, 4)), ["a", "b"])),
    ],
)
def test_arrays_that_do_not_fit_together_are_an_error(X, y, test) -> None:
    with pytest.raises(FeatstoreError):
        featstore.probe_arrays(X, y, test=test)


def test_a_metric_that_the_labels_do_not_have_is_an_error() -> None:
    for metric in ("acc", "pearson"):
        with pytest.raises(UsageError):
            featstore.probe_arrays(np.eye(4), ["a", "b"] * 2, test=(np.eye(4), ["a", "b"] * 2), metric=metric)


def test_whole_numbers_are_the_same_classes_whatever_their_type() -> None:
    X = np.eye(4)[[0, 1] * 20]
    found = featstore.probe_arrays(X, np.array([0, 1] * 20), test=(X, np.array([0.0, 1.0] * 20)), seeds=2)
    assert found.value == 1.0


def test_the_neighbours_of_arrays_vote_as_scikit_learn_has_it() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 300)
    X = np.eye(6)[y] + 0.8 * rng.standard_normal((300, 6))
    train, test = slice(0, 200), slice(200, 300)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    for k in (1, 10):
        reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
        expected = reference.fit(X[train], y[train]).score(X[test], y[test])
        found = featstore.knn_arrays(X[train], y[train], test=(X[test], y[test]), k=k)
        assert (found.track, found.metric, found.value) == ("B", "accuracy", pytest.approx(expected))
        assert 0.3 < found.ci_low < found.value < found.ci_high
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    expected = float(np.mean(y[cosines.argmax(axis=1)] == y))
    alone = featstore.knn_arrays(X, y, k=1)
    assert (alone.value, alone.n_test) == (pytest.approx(expected), 300)


def test_the_neighbours_of_label_sets_are_the_same_by_names_and_by_columns() -> None:
    rng = np.random.default_rng(0)
    hot = (rng.random((120, 3)) < 0.4).astype(int)
    X = hot @ rng.standard_normal((3, 8)) + 0.3 * rng.standard_normal((120, 8))
    names = [[f"c{column}" for column in np.flatnonzero(row)] for row in hot]
    by_array = featstore.knn_arrays(X[:80], hot[:80], test=(X[80:], hot[80:]))
    by_names = featstore.knn_arrays(X[:80], names[:80], test=(X[80:], names[80:]))
    assert by_array.metric == "mAP"
    assert by_array.value == by_names.value > 0.8


@pytest.mark.parametrize("score", [featstore.probe_arrays, featstore.knn_arrays])
def test_intervals_of_arrays_resample_groups(score) -> None:
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(60), 10)
    y = np.repeat(rng.integers(0, 2, 60), 10)
    X = np.eye(4)[y] + np.repeat(0.8 * rng.standard_normal((60, 4)), 10, axis=0) + 0.1 * rng.standard_normal((600, 4))
    train, test = slice(0, 300), slice(300, 600)
    alone = score(X[train], y[train], test=(X[test], y[test]))
    grouped = score(X[train], y[train], groups=speaker[train], test=(X[test], y[test], speaker[test]))
    assert grouped.ci_high - grouped.ci_low > 1.5 * (alone.ci_high - alone.ci_low)
    with pytest.raises(UsageError):
        score(X[train], y[train], groups=speaker[train], test=(X[test], y[test]))
    with pytest.raises(UsageError):
        score(X[train], y[train], test=(X[test], y[test], speaker[test]))
    with pytest.raises(FeatstoreError):
        score(X[train], y[train], groups=speaker[train][:-1], test=(X[test], y[test], speaker[test]))


def test_without_a_test_set_neighbours_of_ones_own_group_do_not_vote() -> None:
    speaker = np.repeat(np.arange(8), 2)
    y = np.repeat([0, 1] * 4, 2)
    X = np.repeat(np.eye(8), 2, axis=0) + 0.01 * np.random.default_rng(0).standard_normal((16, 8))
    assert featstore.knn_arrays(X, y, k=1).value == 1.0  # the other clip of the speaker
    assert featstore.knn_arrays(X, y, k=1, groups=speaker).value < 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"y": np.arange(4) + 0.5},
        {"k": 0},
        {"metric": "pearson"},
        {"test": (np.eye(4),)},
        {"X": np.full((4, 4), np.nan)},
    ],
)
def test_a_wrong_call_of_knn_arrays_is_an_error(options) -> None:
    given = {"X": np.eye(4), "y": [0, 1, 0, 1], "test": (np.eye(4), [0, 1, 0, 1]), **options}
    with pytest.raises(FeatstoreError):
        featstore.knn_arrays(given.pop("X"), given.pop("y"), **given)


def test_measures_of_arrays_are_records_and_one_that_fails_is_a_failure() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = np.eye(8)[y] + 0.4 * rng.standard_normal((60, 8))
    scores = featstore.measure_arrays(X, y)
    assert [(each.measure, each.metric) for each in scores] == [
        ("retrieval", "mAP"),
        ("clustering", "v_measure"),
        ("pairs", "eer"),
    ]
    assert [table.measure for table in scores.leaderboard().tables] == ["clustering", "pairs", "retrieval"]
    apart = featstore.measure_arrays(X, np.arange(60), measure=["retrieval", "pairs"])  # no two clips of a class
    assert [each.measure for each in apart.failures] == ["retrieval", "pairs"]
    grouped = featstore.measure_arrays(X, y, groups=np.arange(60) // 2, measure="pairs")
    assert grouped[0].details["spread"]["units"] == "groups"
    with pytest.raises(UsageError):
        featstore.measure_arrays(X, rng.random(60))
