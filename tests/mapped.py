"""Feature sets of vectors that a test chooses, clips of several windows among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import tiny
from featstore.store import Member, ShardIdentity, WindowBlock, open_split_writer

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "line\u2028and\u2029paragraph",
    "<!--<script>",
    "'; alert(1); '",
    "\u202eright to left\x1b[2J",
    "&lt;b&gt; {{ 7*7 }} ${7*7} \\u003c",
)


@dataclass(frozen=True)
class Stored:
    """A clip: one vector for each of its windows, of one second each or of other ``seconds``."""

    key: str
    vectors: Any
    meta: dict[str, Any] = field(default_factory=dict)
    seconds: Sequence[float] = ()

    @property
    def rows(self) -> np.ndarray:
        return np.atleast_2d(np.asarray(self.vectors, np.float32))


def write_set(
    url: str | Path,
    clips: Sequence[Stored],
    *,
    split: str = "train",
    dataset: str = "words",
    encoder: str = "mel",
    crop_seconds: float | None = None,
    shards: int = 1,
    spec: str | None = None,
    identity: dict[str, Any] | None = None,
) -> None:
    recipe = replace(
        tiny.recipe(dim=clips[0].rows.shape[1]),
        encoder=encoder,
        encoder_identity={"class": encoder, "arguments": {}, **(identity or {})},
        hop_seconds=0.04,
    )
    writer = open_split_writer(
        str(url), recipe=recipe, spec=spec or encoder, dataset=dataset, crop_seconds=crop_seconds, split=split
    )
    for number in range(shards):
        _write_part(
            writer,
            f"{split}-{number:03d}.tar",
            clips[number * len(clips) // shards : (number + 1) * len(clips) // shards],
        )
    writer.write_catalogue()


def _write_part(writer: Any, shard: str, clips: Sequence[Stored]) -> None:
    counts = [len(clip.rows) for clip in clips]
    numbers = [at for count in counts for at in range(count)]
    owners = [clip for clip, count in zip(clips, counts, strict=True) for _ in range(count)]
    with writer.begin_part(shard) as part:
        part.add_block(
            WindowBlock(
                keys=[f"{clip.key}#{at + 1}" if at else clip.key for clip, at in zip(owners, numbers, strict=True)],
                metas=[json.dumps(clip.meta, ensure_ascii=False) for clip in owners],
                start_seconds=np.array(numbers, float),
                seconds=np.concatenate([clip.seconds or np.ones(len(clip.rows)) for clip in clips]),
                utterance=np.concatenate([clip.rows for clip in clips]),
                frames=None,
                frame_counts=None,
            )
        )
        member = Member(
            shard=ShardIdentity(name=shard, size=10, mtime_ns=7, sha256="00" * 32),
            clips=len(clips),
            windows=len(numbers),
            frames=0,
            audio_seconds=float(len(numbers)),
            skipped=(),
        )
        part.commit([member], frames_stored=False, versions={})
