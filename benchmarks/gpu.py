"""A CUDA device: its tests, extraction beside bare forward passes, the measured batch size, and the canary beside the CPU's.

Every step runs in a process of its own that is ended when its time is up; all steps together take at most ten minutes.
Nothing configures or resets the device. With ``--quick``, steps are tiny, and run on the CPU where there is no device.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import encode
from benchmarks.harness import ROOT, child_environment, in_child
from benchmarks.peer.grid import Grid
from benchmarks.peer.transformer import Size, write_transformer
from benchmarks.run import Options, main
from benchmarks.table import figure

BASE, LARGE = "wav2vec2-base's size", "300 M parameters"
Cells = tuple[str, str, str, str]
"""What is measured, the figure, its target, and met, missed, passed or failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the steps measure.

    ``sizes`` has the name and size of each encoder, and how many copies of the ``shards`` distinct shards it encodes.
    """

    device: str
    devices: str
    sizes: tuple[tuple[str, Size, int], ...]
    shards: int
    clips_per_shard: int
    seconds: tuple[float, float]


ON_CUDA = Plan(
    device="cuda",
    devices="all",
    sizes=((BASE, "base", 10), (LARGE, "large", 5)),
    shards=20,
    clips_per_shard=32,
    seconds=(1.0, 10.0),
)
STANDIN = Plan(
    device="cpu",
    devices="cpu,cpu",
    sizes=(("tiny transformer", "tiny", 2), ("tiny transformer, half the clips", "tiny", 1)),
    shards=1,
    clips_per_shard=4,
    seconds=(0.5, 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A function of this module, the process it runs in, and the seconds after which it has failed."""

    name: str
    work: Callable[..., list[Cells]]
    arguments: dict[str, Any]
    within_seconds: float


def steps(plan: Plan, folder: str) -> list[Step]:
    """Steps of the plan, at most 570 seconds together."""
    common = {"folder": folder, "device": plan.device}
    found = [Step(name="tests/on_cuda", work=run_tests, arguments={"device": plan.device}, within_seconds=180)]
    for (name, size, copies), limit in zip(plan.sizes, (110, 120), strict=True):
        arguments = {**common, "name": name, "size": size, "dataset": f"copies{copies}"}
        found.append(Step(name=f"extraction, {name}", work=measure_encoder, arguments=arguments, within_seconds=limit))
    _, size, copies = plan.sizes[0]
    arguments = {"folder": folder, "size": size, "dataset": f"copies{copies}", "devices": plan.devices}
    found.append(Step(name=f"--device {plan.devices}", work=measure_devices, arguments=arguments, within_seconds=80))
    arguments = {**common, "size": size, "dataset": "two"}
    found.append(Step(name="canary", work=compare_canaries, arguments=arguments, within_seconds=80))
    return found


def tables(options: Options) -> Iterator[Grid]:
    cuda = in_child(encode.has_cuda)
    if not cuda and not options.quick:
        raise SystemExit("no CUDA device: nothing was measured (--quick runs every step on the CPU)")
    plan = ON_CUDA if cuda and not options.quick else STANDIN
    if cuda and options.quick:
        plan = Plan(**{**asdict(STANDIN), "device": "cuda", "devices": "all"})
    name = in_child(device_name) if cuda else "CPU stand-in, tiny sizes: no figure of a GPU"
    rows: list[Cells] = []
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        write_data(Path(folder), plan)
        for step in steps(plan, folder):
            rows += run_step(step)
    yield Grid(
        title=f"featstore on {name}",
        measures="Precision bfloat16, utterance vectors, the best of two runs into an empty store after one that measured "
        "the size of batches; bare forward passes are of the same batches, ready in memory. The device was busy by CUDA "
        "events around every batch. The canary is the encoder's output for the reference signals.",
        header=("", "figure", "target", ""),
        rows=tuple(rows),
    )
    if any(row[-1] == "failed" for row in rows):
        raise SystemExit(1)


def run_step(step: Step) -> list[Cells]:
    """The step's rows, or one row that has failed."""
    print(f"{step.name}: at most {step.within_seconds:g} s", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.harness",
        f"benchmarks.gpu:{step.work.__name__}",
        json.dumps(step.arguments),
    ]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:  # fmt: skip
        try:
            out, err = child.communicate(timeout=step.within_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return [(step.name, f"no result within {step.within_seconds:g} s", "", "failed")]
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode:
        print(err, file=sys.stderr)
        reason = (err.strip().splitlines() or ["no message"])[-1]
        return [(step.name, f"exit code {child.returncode}: {reason[:200]}", "", "failed")]
    rows = [(what, value, target, verdict) for what, value, target, verdict in json.loads(out.splitlines()[-1])]
    return [
        *rows,
        (f"{step.name}: step", f"{time.perf_counter() - began:.0f} s", f"at most {step.within_seconds:g} s", ""),
    ]


def write_data(folder: Path, plan: Plan) -> None:
    """Data sets ``copiesN``, whose shards are N copies of the same, and ``two`` of two short clips."""
    n_clips = plan.shards * plan.clips_per_shard
    data = {"name": "once", "n_clips": n_clips, "seconds": plan.seconds, "clips_per_shard": plan.clips_per_shard}
    encode.make_shards(folder=str(folder), data=data)
    encode.make_shards(folder=str(folder), data={"name": "two", "n_clips": 2, "seconds": (0.5, 1.0)})
    shards = sorted((folder / "data/once").glob("*.tar"))
    for copies in {copies for _, _, copies in plan.sizes}:
        target = folder / f"data/copies{copies}"
        target.mkdir()
        for number, shard in enumerate(shards * copies):
            shutil.copyfile(shard, target / f"wds-audio-fold-1-{number:06d}.tar")


# --- steps, each in a child


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def run_tests(*, device: str) -> list[Cells]:
    """`tests/on_cuda` with the device in sight. Without one, they are skipped."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "all")  # as tests/conftest.py would store it, and hide the device
    environment = {**child_environment(), "FEATSTORE_TEST_GPUS": shown}
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT / 'tests'}"
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "-W", "default", "-p", "no:cacheprovider", "tests/on_cuda"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", done.stdout)}
    text = ", ".join(f"{number} {word}" for word, number in counts.items()) or "no tests ran"
    is_sound = done.returncode == 0 and (device == "cpu" or counts.get("passed", 0) > 0)
    if not is_sound:
        print(done.stdout[-8000:] + done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"pytest: {text}")
    return [("tests/on_cuda", text, "no failure", "passed")]


def measure_encoder(*, folder: str, device: str, name: str, size: Size, dataset: str) -> list[Cells]:
    """Extraction beside its bare forward passes, its busy share, and the measured size of batches."""
    import torch

    path = write_transformer(Path(folder), size=size)
    measured = encode.measure_forward(
        folder=folder,
        dataset=dataset,
        encoder=str(path),
        device=device,
        precision="bfloat16",
        repeats=1 if size == "tiny" else 2,
    )
    audio_seconds = measured["audio_seconds"]
    ratio = measured["extract"] / measured["forward"]
    rows: list[Cells] = [
        (f"{name}: bare forward passes", f"{figure(measured['forward'])} s, {measured['batches']}", "", ""),
        (
            f"{name}: extract_task",
            f"{figure(measured['extract'])} s, {audio_seconds / measured['extract']:,.0f} x real time",
            "",
            "",
        ),
        (f"{name}: ... x bare forward passes", figure(ratio), "at most 1.05", _verdict(is_met=ratio <= 1.05)),
        (f"{name}: ... frames stored", f"{figure(measured['extract_frames'])} s", "", ""),
        (f"{name}: busy share", f"{measured['busy']:.1%}", "at least 95%", _verdict(is_met=measured["busy"] >= 0.95)),
        (f"{name}: measured batch", f"{measured['batch_seconds']:g} s of audio", "", ""),
    ]
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        share = torch.cuda.max_memory_allocated() / total
        rows.append((f"{name}: peak of PyTorch's memory", f"{share:.1%} of the device", "", ""))
    return rows


def measure_devices(*, folder: str, size: Size, dataset: str, devices: str) -> list[Cells]:
    """Extraction by a worker on each device, loading of the encoder included."""
    from featstore.extract import EncoderRequest, open_engine

    path = write_transformer(Path(folder), size=size)
    began = time.perf_counter()
    with open_engine(EncoderRequest(spec=str(path)), device=devices) as engine:
        record = encode._extract(folder, dataset, engine, frames="never", device="auto", precision="bfloat16")
    seconds = time.perf_counter() - began
    n_shards = len(list((Path(folder) / "data" / dataset).glob("*.tar")))
    if (record.shards_done, record.deaths) != (n_shards, ()):
        raise SystemExit(f"{record.shards_done} of {n_shards} shards are stored; deaths: {record.deaths}")
    return [
        (
            f"--device {devices}: {record.workers} of the workers took part",
            f"{figure(seconds)} s, loading included",
            "",
            "",
        ),
        (f"--device {devices}: {n_shards} shards", f"{figure(record.seconds['total'])} s", "all stored", "passed"),
    ]


def compare_canaries(*, folder: str, device: str, size: Size, dataset: str) -> list[Cells]:
    """Extract on one device into a store that was made on the other, both ways, which compares the stored canary."""
    from featstore.encoders import load_encoder
    from featstore.encoders.canary import TOLERANCES, cosine
    from featstore.extract import ExtractOptions, extract_task
    from featstore.extract.job import DeviceEncoder

    path = str(write_transformer(Path(folder), size=size))
    rows: list[Cells] = []
    for precision in ("float32", "bfloat16"):
        readings = []
        for first, second in (("cpu", device), (device, "cpu")):
            store = Path(folder) / "canary.zarr"
            shutil.rmtree(store, ignore_errors=True)
            for split, where in (("train", first), ("test", second)):
                encoder, options = load_encoder(path), ExtractOptions(device=where, precision=precision, frames="never")
                extract_task(  # raises EncoderChanged if the canary is out of tolerance
                    encode._manifest(dataset), encoder, data_dir=Path(folder) / "data", store_url=str(store),
                    options=options, splits=(split,),
                )  # fmt: skip
            rows.append((f"canary, {precision}: made on {first}, extended on {second}", "accepted", "", "passed"))
            readings.append(DeviceEncoder(encoder, device=second).canary(options).outputs[0])
        pairs = [tuple(np.array(each[signal]["utterance"], np.float64) for each in readings) for signal in readings[0]]
        nearest = min(cosine(one, other) for one, other in pairs)
        apart = max(float(np.linalg.norm(one - other) / np.linalg.norm(other)) for one, other in pairs)
        limit = TOLERANCES[precision]
        rows.append((f"canary, {precision}: least cosine", f"{nearest:.8f}", "", ""))
        rows.append(
            (f"canary, {precision}: largest change", f"{apart:.2g} of the norm", f"at most {limit:g}", "passed")
        )
    return rows


def _verdict(*, is_met: bool) -> str:
    return "met" if is_met else "missed"


if __name__ == "__main__":
    main(only="gpu")
