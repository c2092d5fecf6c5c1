"""Writers in processes that begin at once, forked from one that has imported everything; some are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["many_writers", "torch", "featstore.extract.run", "featstore.encoders.running"])


def _extract(folder: Path, store: str, environment: dict[str, str], told: Path) -> None:
    os.environ.update(environment)
    from featstore.encoders import load_encoder
    from featstore.extract import ExtractOptions, extract_task
    from featstore.manifest import load_manifest
    from featstore.store import layout

    layout.BLOCK_BYTES, layout.FILE_BYTES = 4096, 16384  # several files of frames to a part
    options = ExtractOptions(frames="always", workers=2, device="cpu")
    try:
        extract_task(
            load_manifest(folder / "harm.toml"),
            load_encoder("logmel"),
            data_dir=folder / "data",
            store_url=store,
            options=options,
        )
    except BaseException as error:
        (told / str(os.getpid())).write_text(f"{type(error).__name__}: {error}")
        raise


def writers(
    folder: Path, store: str, *, n: int, environment: dict[str, str], told: Path, kill: random.Random | None
) -> int:
    """Run so many writers to their end, each as likely as not killed at some moment; returns how many were.

    What a writer that was not killed had to complain of is a file in `told`.
    """
    started = [
        _context.Process(target=_extract, args=(folder, store, environment, told), daemon=True) for _ in range(n)
    ]
    for process in started:
        process.start()
    if kill is not None:
        doomed = sorted((kill.uniform(0, 2.5), process.pid) for process in started if kill.random() < 0.5)
        began = time.monotonic()
        for moment, pid in doomed:
            time.sleep(max(0.0, began + moment - time.monotonic()))
            [process] = [each for each in started if each.pid == pid]
            process.kill()
    for process in started:
        process.join(120)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"a writer of {store} does not end")
    return sum(process.exitcode == -9 for process in started)
