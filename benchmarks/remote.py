"""What a laptop pulls of a remote store: bytes that the server sends, counted by the server."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import featstore
from benchmarks.arrays import DIM
from benchmarks.recipes import commit_made_up, made_up_recipe
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most_times
from featstore.store import WindowBlock, open_split_writer

CLIPS_PER_PART = 50
FRAMES_PER_CLIP = 500  # ten seconds at 20 ms


class _Counting(SimpleHTTPRequestHandler):
    sent: list[int]

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:
        data = source.read()
        self.sent.append(len(data))
        outputfile.write(data)


def tables(options: Options) -> Iterator[Table]:
    n_parts = 2 if options.quick else 16
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEATSTORE_CACHE"] = f"{folder}/cache"
        _write_store(f"{folder}/data/e.zarr", n_parts)
        size = sum(path.stat().st_size for path in Path(folder, "data").rglob("*") if path.is_file())
        with _server(Path(folder, "data")) as (url, sent):
            pulled, answers = _probed(f"{url}/e.zarr", sent)
            pulled_again, answers_again = _probed(f"{url}/e.zarr", sent)
    yield Table(
        title="What is pulled to score an encoder from a web server",
        measures=(
            f"Keys, JSON, times and utterance vectors of {n_parts * CLIPS_PER_PART} clips of ten seconds, {DIM} wide, in "
            f"{n_parts} parts, of a store that holds their frames too ({answers} answers; {answers_again} the second time)."
        ),
        unit="MB",
        baseline="the store",
        rows=(
            Row("the store", size / 1e6),
            Row("the first time", pulled / 1e6, (at_most_times(0.02),)),
            Row("the second time, from the cache", pulled_again / 1e6),
        ),
    )


def _probed(url: str, sent: list[int]) -> tuple[int, int]:
    sent.clear()
    fs = featstore.open(url).select()
    float(fs.utterance.sum()), len(fs.key), len(fs.meta_json), float(fs.seconds.sum())
    return sum(sent), len(sent)


def _write_store(url: str, n_parts: int) -> None:
    recipe = made_up_recipe("noise", dim=DIM, hop_seconds=0.02)
    writer = open_split_writer(url, recipe=recipe, spec="noise", dataset="noise", crop_seconds=None, split="train")
    rng = np.random.default_rng(0)
    for number in range(n_parts):
        frames = rng.standard_normal((CLIPS_PER_PART * FRAMES_PER_CLIP, DIM), np.float32)
        with writer.begin_part(f"noise-{number:06}.tar") as part:
            part.add_block(
                WindowBlock(
                    keys=[f"noise-{number:06}-{clip:04}" for clip in range(CLIPS_PER_PART)],
                    metas=[f'{{"label": "{clip % 10}"}}' for clip in range(CLIPS_PER_PART)],
                    start_seconds=np.zeros(CLIPS_PER_PART),
                    seconds=np.full(CLIPS_PER_PART, 10.0),
                    utterance=frames.reshape(CLIPS_PER_PART, FRAMES_PER_CLIP, DIM).mean(axis=1),
                    frames=frames.astype(np.float16),
                    frame_counts=np.full(CLIPS_PER_PART, FRAMES_PER_CLIP),
                )
            )
            commit_made_up(part, f"noise-{number:06}.tar", clips=CLIPS_PER_PART, audio_seconds=10.0 * CLIPS_PER_PART)
    writer.write_catalogue()


@contextmanager
def _server(folder: Path) -> Iterator[tuple[str, list[int]]]:
    sent: list[int] = []
    handler = type("Counting", (_Counting,), {"sent": sent})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main(only="remote")
