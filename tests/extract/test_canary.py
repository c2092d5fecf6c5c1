"""The canary: reference signals, what is stored of them, and what counts as moved."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import DEAD_HERE, writing

from featstore.encoders import load_encoder
from featstore.encoders.canary import TOLERANCES, Drift, furthest_drift, read_canary, reference_signals
from featstore.encoders.encoder import Encoder
from featstore.encoders.pooling import Output
from featstore.errors import DamagedPart, EncoderChanged
from featstore.extract import EncoderRequest, ExtractOptions, extract_task, open_engine, plan_tasks
from featstore.extract.job import DeviceEncoder, plan_recipe
from featstore.extract.results import Silent
from featstore.extract.windows import plan_of
from featstore.store import note_in_encoder_group, recipe_groups
from featstore.store.verify import verify_store
from handmade import XARES_ENCODER, build, clip, extract, noise, write_split
from layered import Layered
from tiny import task


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3)), clip("b", noise(0.4))], shards=2)
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_encoder.py"
    path.write_text(XARES_ENCODER)
    return path


def reading(encoder: Encoder, **options: Any) -> Any:
    return DeviceEncoder(encoder, device="cpu").canary(ExtractOptions(device="cpu", **options))


def canaries(store: Path) -> dict[str, Any]:
    documents = {name: json.loads((store / name / "zarr.json").read_text()) for name in recipe_groups(str(store))}
    return {name: found["attributes"]["featstore"].get("canary") for name, found in documents.items()}


def test_reference_signals_are_the_same_bit_for_bit_on_every_machine() -> None:
    signals = reference_signals(16_000)
    assert {name: len(wave) for name, wave in signals.items()} == {
        "noise-0.3s": 4_800, "sweep-1s": 16_000, "pulses-3s": 48_000,
    }  # fmt: skip
    whole = b"".join(np.rint(wave * 32768).astype("<i2").tobytes() for wave in signals.values())
    assert hashlib.sha256(whole).hexdigest()[:16] == "3b91f6b6a52473c4"
    for wave in signals.values():
        assert np.abs(wave).max() <= 1
        assert 0.02 < np.sqrt(np.mean(wave**2)) < 0.5
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
        assert spectrum[20:-20].min() > 0  # no band is empty
    assert len(reference_signals(8_000)["noise-0.3s"]) == 2_400


def test_what_is_stored_is_what_the_encoder_returns_for_each_signal_alone(data: Path, store: Path) -> None:
    encoder = load_encoder("logmel")
    extract(task(), data, store, encoder=encoder, padding="exact")
    [canary] = canaries(store).values()
    assert set(canary) == {"version", "signals", "made_by"}
    assert canary["made_by"]["versions"]["torch"] == metadata.version("torch")
    for name, wave in reference_signals(16_000).items():
        frames = encoder.module(torch.tensor(wave)[None])[0].numpy()
        frames = frames[: round(len(wave) / 640)]
        np.testing.assert_allclose(canary["signals"][name]["utterance"], frames.mean(0), rtol=1e-5)
        summary = canary["signals"][name]["frames"]
        assert summary["count"] == len(frames)
        np.testing.assert_allclose([summary["mean"], summary["std"]], [frames.mean(), frames.std()], rtol=1e-5)
    assert verify_store(str(store)).sound


def test_numbers_make_the_round_trip_to_the_last_bit(encoder_file: Path) -> None:
    encoder = load_encoder(str(encoder_file))
    recipe = plan_recipe(encoder, Output(), device="cpu", options=ExtractOptions(padding="exact"))
    wave = reference_signals(16_000)["noise-0.3s"]
    vector = encoder.module(torch.tensor(wave)[None])[0].mean(0).detach().numpy()
    plan = plan_of(encoder, recipe, crop_seconds=None)
    found = read_canary(encoder, recipe, device="cpu", plan=plan, versions={}).outputs[0]["noise-0.3s"]["utterance"]
    again = np.array(json.loads(json.dumps(found)), np.float32)
    np.testing.assert_allclose(again, vector, rtol=1e-5)
    assert [float(str(value)) for value in again] == found


def test_a_store_without_a_canary_gets_one_at_the_next_extraction_that_encodes(data: Path, store: Path) -> None:
    extract(task(), data, store)
    [(name, first)] = canaries(store).items()
    path = store / name / "zarr.json"
    document = json.loads(path.read_text())
    del document["attributes"]["featstore"]["canary"]
    from featstore.store.format import seal

    path.write_bytes(seal(document["attributes"]["featstore"]))
    extract(task(), data, store)
    assert canaries(store)[name] is None  # nothing to encode: nothing is read
    write_split(data / "tiny", "train-more", [clip("c", noise(0.3))])
    extract(task(), data, store)
    assert canaries(store)[name] == first


def test_each_layer_and_pool_has_its_own_of_one_pass(data: Path, store: Path) -> None:
    outputs = (Output(), Output(layer=2), Output(layer=2, pool="std"))
    module = Layered()
    encoder = Encoder(module=module, name="layered", spec="x", identity={"class": "x"}, outputs=outputs)
    before = module.passes
    found = reading(encoder).outputs
    assert module.passes - before == 4  # three signals, the first of them twice
    assert [len(each["noise-0.3s"]["utterance"]) for each in found] == [2, 4, 4]
    assert [each["noise-0.3s"]["frames"] is None for each in found] == [False, False, True]
    extract(task(), data, store, encoder=encoder)
    assert len([canary for canary in canaries(store).values() if canary]) == 3


class FixedInput(torch.nn.Module):
    """Always 2 s, and nothing under 0.5 s."""

    sampling_rate, output_dim, hop_size_in_ms, input_seconds = 16_000, 2, 20.0, 2.0

    def __init__(self, least: int = 0) -> None:
        super().__init__()
        self.least = least
        self.shapes: list[int] = []

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        self.shapes.append(audio.shape[1])
        if lengths is not None and int(lengths.min()) < self.least:
            raise ValueError("too short")
        return torch.nn.functional.pad(audio, (0, -audio.shape[1] % 320)).reshape(len(audio), -1, 320)[:, :, :2]


def test_an_encoder_of_fixed_input_gets_that_and_of_a_longer_signal_the_first_window() -> None:
    module = FixedInput()
    encoder = build(module)
    module.shapes.clear()
    found = reading(encoder).outputs[0]
    assert module.shapes == [32_000] * 4
    assert [found[name]["frames"]["count"] for name in found] == [15, 50, 75]  # 3 s are two windows of 1.5 s
    cut = reading(encoder, max_window_seconds=0.5).outputs[0]
    assert [cut[name]["frames"]["count"] for name in cut] == [15, 25, 25]


def test_a_signal_that_an_encoder_fails_on_is_passed_over(data: Path, store: Path) -> None:
    found = reading(build(FixedInput(least=8_000))).outputs[0]
    assert [name for name, each in found.items() if each is None] == ["noise-0.3s"]
    write_split(data / "tiny", "train", [clip("a", noise(0.9)), clip("b", noise(0.8))], shards=2)
    for _ in range(2):
        [record] = extract(task(), data, store, encoder=build(FixedInput(least=8_000)))
        write_split(data / "tiny", "train-more", [clip("c", noise(0.9))])
    assert record.shards_done == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_numbers_of_other_threads_batches_or_kernels_are_within_the_tolerance(
    precision: str, encoder_file: Path
) -> None:
    """A transformer's kernels differ with the number of threads; one of 4 layers and random weights."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(64, 4, 256, batch_first=True)

    class Deep(torch.nn.Module):
        sampling_rate, output_dim, hop_size_in_ms = 16_000, 64, 20.0

        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(320, 64)
            self.blocks = torch.nn.TransformerEncoder(layer, 4)

        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return self.blocks(
                self.project(torch.nn.functional.pad(audio, (0, -audio.shape[1] % 320)).unflatten(1, (-1, 320)))
            )

    encoder = build(Deep())
    threads = torch.get_num_threads()
    found = []
    try:
        for number, fast in ((1, True), (4, False)):
            torch.set_num_threads(number)
            torch.backends.mha.set_fastpath_enabled(fast)
            found.append(reading(encoder, precision=precision))
    finally:
        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(True)
    assert [each.unsteady for each in found] == [None, None]
    assert furthest_drift(found[0].outputs[0], found[1].outputs[0], precision=precision) is None


@pytest.mark.parametrize("precision", sorted(TOLERANCES))
def test_more_than_the_precision_explains_is_drift(precision: str) -> None:
    vector = np.random.default_rng(0).standard_normal(64).astype(np.float32)

    def moved(share: float) -> Drift | None:
        other = vector + share * np.linalg.norm(vector) / 8 * np.resize([1.0, -1.0], 64)
        one, two = ({"s": {"utterance": [float(x) for x in v], "frames": None}} for v in (vector, other))
        return furthest_drift(one, two, precision=precision)

    assert moved(0.9 * TOLERANCES[precision]) is None
    drift = moved(1.1 * TOLERANCES[precision])
    assert drift is not None
    assert drift.relative == pytest.approx(1.1 * TOLERANCES[precision], rel=1e-2)
    assert drift.cosine < 1


@pytest.mark.parametrize(
    "change",
    [{"count": 14}, {"mean": 0.2}, {"std": 1.1}, None],
    ids=["fewer frames", "their mean", "their spread", "no frames"],
)
def test_frames_that_move_under_an_equal_vector_are_drift_too(change: dict[str, float] | None) -> None:
    frames = {"count": 15, "mean": 0.1, "std": 1.0}
    one = {"s": {"utterance": [1.0, 2.0], "frames": frames}}
    other = {"s": {"utterance": [1.0, 2.0], "frames": change and {**frames, **change}}}
    assert furthest_drift(one, one, precision="float32") is None
    assert furthest_drift(one, other, precision="float32") is not None


def test_a_stored_canary_of_other_numbers_stops_the_run_and_says_by_how_much(data: Path, store: Path) -> None:
    extract(task(), data, store)
    [(name, canary)] = canaries(store).items()
    canary["signals"]["sweep-1s"]["utterance"][3] *= 1.5
    canary["made_by"]["versions"]["torch"] = "1.0"
    note_in_encoder_group(str(store), name, canary=canary)
    write_split(data / "tiny", "train-more", [clip("c", noise(0.3))])
    with pytest.raises(EncoderChanged, match=r"sweep-1s.*cosine.*torch 1\.0") as caught:
        extract(task(), data, store)
    assert 0.9 < caught.value.cosine < 1
    [record] = extract(task(), data, store, allow_drift=True)
    assert (record.shards_done, len(record.notes)) == (1, 1)
    assert canaries(store)[name] == canary  # what it is held against stays


def test_another_version_of_the_signals_is_replaced(data: Path, store: Path) -> None:
    extract(task(), data, store)
    [(name, canary)] = canaries(store).items()
    note_in_encoder_group(str(store), name, canary={**canary, "version": 99, "signals": {"x": None}})
    write_split(data / "tiny", "train-more", [clip("c", noise(0.3))])
    extract(task(), data, store)
    assert canaries(store)[name] == canary


def test_a_worker_reads_the_same_canary_and_a_drift_ends_the_run(data: Path, store: Path, encoder_file: Path) -> None:
    options = ExtractOptions(device="cpu", workers=1)

    extract(task(), data, store.with_name("alone"), encoder=load_encoder(str(encoder_file)))
    with open_engine(EncoderRequest(spec=str(encoder_file)), device="cpu,cpu") as engine:

        def run() -> None:
            extract_task(task(), engine, data_dir=data, store_url=str(store), options=options, splits=("train",))

        run()
        of_worker = canaries(store)
        moved(store)
        write_split(data / "tiny", "train-more", [clip("c", noise(0.3))])
        with pytest.raises(EncoderChanged):
            run()
    [(one, read), (other, alone)] = [*of_worker.items(), *canaries(store.with_name("alone")).items()]
    assert (one, read["signals"].keys()) == (other, alone["signals"].keys())  # versions are of what a process imported
    for signal, output in read["signals"].items():  # another process may have another number of threads
        np.testing.assert_allclose(output["utterance"], alone["signals"][signal]["utterance"], rtol=1e-4, atol=1e-6)


def moved(store: Path) -> None:
    """Change a number of the one canary that a store has."""
    [(name, canary)] = canaries(store).items()
    canary["signals"]["noise-0.3s"]["utterance"][0] += 1.0
    note_in_encoder_group(str(store), name, canary=canary)


def as_it_is(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def test_a_drift_stops_the_run_before_a_document_is_written_or_a_part_is_pruned(data: Path, store: Path) -> None:
    extract(task(), data, store)
    moved(store)
    before = as_it_is(store)
    write_split(data / "other", "train", [clip("c", noise(0.3))])
    with pytest.raises(EncoderChanged):
        extract(task(data={"dataset": "other"}), data, store)
    assert as_it_is(store) == before
    for path in (data / "tiny").glob("*.tar"):  # all that is stored is gone, and something else is there
        path.unlink()
    write_split(data / "tiny", "train-more", [clip("c", noise(0.3))])
    with pytest.raises(EncoderChanged):
        extract(task(), data, store, prune=True)
    assert as_it_is(store) == before
    [record] = extract(task(), data, store, prune=True, allow_drift=True)
    assert (record.gone, record.clips, len(record.notes)) == ((), 1, 1)


@pytest.mark.parametrize("prune", [True, False])
def test_a_drift_that_a_later_split_shows_stops_the_run_before_an_earlier_one_loses_anything(
    data: Path, store: Path, *, prune: bool
) -> None:
    write_split(data / "tiny", "valid", [clip("v", noise(0.3))])
    extract(task(), data, store, splits=("train", "valid"))
    moved(store)
    [train] = store.glob("*/*/train")
    if prune:
        (data / "tiny" / "train-000.tar").unlink()
    else:
        (train / "d.00000000").mkdir()
        (train / "d.00000000" / "zarr.json").write_bytes(writing(**DEAD_HERE))
    write_split(data / "tiny", "valid-more", [clip("c", noise(0.3))])
    before = as_it_is(store)
    with pytest.raises(EncoderChanged):
        extract(task(), data, store, splits=("train", "valid"), prune=prune)
    assert as_it_is(store) == before
    extract(task(), data, store, splits=("train", "valid"), prune=prune, allow_drift=True)
    assert not before.keys() <= as_it_is(store).keys()
    assert len([each for each in train.iterdir() if each.is_dir()]) == (1 if prune else 2)


def test_of_several_tasks_the_first_that_encodes_reads_the_canary_and_has_the_notes(data: Path, store: Path) -> None:
    extract(task(), data, store)
    moved(store)
    write_split(data / "b", "train", [clip("c", noise(0.3))])
    write_split(data / "c", "train", [clip("d", noise(0.3))])
    manifests = [task(), *(task(data={"dataset": name}) for name in ("b", "c"))]
    options = ExtractOptions(device="cpu", workers=1, allow_drift=True)
    plans = plan_tasks(
        manifests,
        DeviceEncoder(load_encoder("logmel"), device="cpu"),
        data_dir=data,
        store_url=str(store),
        options=options,
        splits=("train",),
    )
    records = [record for plan in plans for of_split in plan.extract(Silent()) for record in of_split]
    assert [(record.shards_done, len(record.notes)) for record in records] == [(0, 0), (1, 1), (1, 0)]


@pytest.mark.parametrize(
    "forged",
    [
        {"version": 1, "signals": {"noise-0.3s": {"utterance": [10**400], "frames": None}}, "made_by": {}},
        {"version": 1, "signals": {"noise-0.3s": {"utterance": [float("nan")], "frames": None}}, "made_by": {}},
        {"version": 1, "signals": {}, "made_by": {"device": float("inf")}},
        {"version": "1", "signals": {}, "made_by": {}},
        {"version": 1, "signals": {"x": {"utterance": "numbers", "frames": None}}, "made_by": {}},
        [1],
        None,
    ],
)
def test_what_is_no_canary_is_replaced_and_no_error(forged: object, data: Path, store: Path) -> None:
    extract(task(), data, store)
    [(name, canary)] = canaries(store).items()
    forge(store / name / "zarr.json", canary=forged, encoder_identity=["x"])
    write_split(data / "tiny", "train-more", [clip("c", noise(0.3))])
    [record] = extract(task(), data, store)
    assert (record.shards_done, record.notes) == (1, ())
    assert canaries(store)[name] == canary


def test_a_document_with_a_number_that_is_none_costs_its_task_one_line(data: Path, store: Path) -> None:
    extract(task(), data, store)
    [name] = recipe_groups(str(store))
    forge(store / name / "zarr.json", canary=None, encoder_identity={"class": float("inf")})
    write_split(data / "tiny", "train-more", [clip("c", noise(0.3))])
    with pytest.raises(DamagedPart):
        extract(task(), data, store)


def forge(path: Path, **changes: object) -> None:
    """Seal a document over what `seal` would refuse."""
    content = json.loads(path.read_text())["attributes"]["featstore"] | changes
    words = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    sealed = f'"featstore":{words},"featstore_sha256":"{hashlib.sha256(words.encode()).hexdigest()}"'
    path.write_text(f'{{"zarr_format":3,"node_type":"group","attributes":{{{sealed}}}}}')


@pytest.mark.parametrize("harm", ["damaged", "link"])
def test_another_encoders_group_that_cannot_be_read_costs_nothing(harm: str, data: Path, store: Path) -> None:
    extract(task(), data, store)
    document = store / recipe_groups(str(store))[0] / "zarr.json"
    if harm == "damaged":
        document.write_bytes(b"{")
    else:
        document.rename(store.with_name("elsewhere"))
        document.symlink_to(store.with_name("elsewhere"))
    [record] = extract(task(), data, store, encoder=load_encoder("mfcc"))
    assert record.shards_done == 2
