"""What an import puts where: the names in the store, the columns, and the recipe of imported embeddings."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.errors import UsageError
from featstore.extract.embedding_files import Columns
from featstore.records import Recipe
from featstore.shard_patterns import ShardPattern
from featstore.store import FORMAT_VERSION
from featstore.store.format import is_group_name

if TYPE_CHECKING:
    from featstore.tasks import Manifest

__all__ = ["ImportSettings"]

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What is imported, and its place in the store.

    Attributes
    ----------
    encoder : str
        Name of the encoder in the store.
    source : str
        Words about the origin of the embeddings; part of the encoder's identity.
    dataset : str
    split : str
        Split of all rows, if there is no column of splits.
    columns : Columns
    hop_seconds : float or None
        Time from one frame to the next; None: no frames are stored.
    frame_dtype : "float32" or "float16"
        Type of the stored frames.
    crop_seconds : float or None
        Of the dataset of a task.
    shard_patterns : mapping or None
        Split -> feature set and shard pattern, of a task; None: shards are called SPLIT-*.tar.
    """

    encoder: str
    source: str
    dataset: str
    split: str | None
    columns: Columns
    hop_seconds: float | None
    frame_dtype: str
    crop_seconds: float | None = None
    shard_patterns: Mapping[str, tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        for kind, name in (("encoder", self.encoder), ("dataset", self.dataset)):
            if not is_group_name(name):
                raise UsageError(f"the name of the {kind} may have letters, digits and . _ + @ = -: got {name!r}")
        if "@" in self.encoder:
            raise UsageError(
                f"the name of the encoder has no '@', which separates its fingerprint: got {self.encoder!r}"
            )
        if not self.source.isprintable():
            raise UsageError("the source must be one line of text")
        if self.hop_seconds is not None and not 0 < self.hop_seconds < math.inf:
            raise UsageError(f"hop must be above 0 seconds: got {self.hop_seconds:g}")
        if self.split is not None:
            self.feature_set(self.split)

    @classmethod
    def of_task(cls, manifest: Manifest, **settings: Any) -> ImportSettings:
        """Settings of an import whose shards are those of a task.

        Raises
        ------
        UsageError
            A pattern of the task lists its shards, instead of having a ``*``.
        """
        stored_as = manifest.feature_sets
        patterns = {split: (stored_as[split], pattern) for split, pattern in manifest.patterns.items()}
        for split, (_, pattern) in patterns.items():
            if len(ShardPattern(pattern).alternatives) != 1 or pattern.count("*") - 2 * pattern.count("**") != 1:
                raise UsageError(
                    f"task {manifest.name}: {split} = {pattern!r} must have one '*' and no list, which names imported "
                    f"shards; import without the task, into a manifest with {split} = '{split}-*.tar'"
                )
        data = manifest.data
        return cls(dataset=data.dataset, crop_seconds=data.crop_seconds, shard_patterns=patterns, **settings)

    def feature_set(self, split: str) -> str:
        """Name of the feature set of a split. Raises UsageError if the name is invalid, or not of the task."""
        if self.shard_patterns is not None:
            if split not in self.shard_patterns:
                raise UsageError(f"the task has no split {split!r}: it has {', '.join(self.shard_patterns)}")
            return self.shard_patterns[split][0]
        if not _SPLIT_NAME.fullmatch(split):
            raise UsageError(f"{split!r} is not a valid split name: use letters, digits and . _ -")
        return split

    def shard(self, feature_set: str, *, file: int, part: int, sha256: str) -> str:
        """Name of the shard of a part; a file's parts are in order."""
        middle = f"{file:04d}-{part:04d}-{sha256[:8]}"
        if self.shard_patterns is None:
            return f"{feature_set}-{middle}.tar"
        pattern = next(pattern for name, pattern in self.shard_patterns.values() if name == feature_set)
        return re.sub(r"\*\*/", "", pattern).replace("*", middle)

    def recipe(self, dim: int) -> Recipe:
        """Recipe of the embeddings. Sample rate, padding, precision and resampler are not known."""
        return Recipe(
            encoder=self.encoder,
            encoder_identity={"imported": self.source},
            sample_rate_hz=1,
            dim=dim,
            hop_seconds=self.hop_seconds or 0.0,
            padding="imported",
            precision="imported",
            frame_dtype=self.frame_dtype,
            resampler="imported",
            format_version=FORMAT_VERSION,
        )
