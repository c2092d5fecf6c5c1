"""Made ``format-1.zarr``, once. It is not run again: the fixture stands for stores that are out in the world."""

from __future__ import annotations

from pathlib import Path

from stores import shard_windows, split_writer, window, write_part

from featstore.records import SkippedClip

if __name__ == "__main__":
    url = Path(__file__).with_name("format-1.zarr")
    train = split_writer(url)
    write_part(train, "a.tar", shard_windows("a.tar"))
    write_part(train, "b.tar", [], skipped=[SkippedClip(shard="b.tar", key="k", reason="it has no samples")])
    train.write_catalogue()
    test = split_writer(url, split="test")
    windows = [window("long", n_frames=4, seed=1), window("long#2", n_frames=2, seed=2, start=5.0)]
    write_part(test, "t.tar", windows)
    test.write_catalogue()
