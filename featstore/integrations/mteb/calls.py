"""A call of `CachedEncoder.encode`: its clips, decoded and hashed, and its names in the store."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.records import canonical_json

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

__all__ = ["DATASETS", "Call", "Clip", "content_key", "group_name", "groups"]

DATASETS = "mteb-"
"""Prefix of the names of datasets in the store."""

_MODALITIES = {"text", "image", "audio", "video"}
_GROUP_CLIPS, _GROUP_BYTES = 1024, 256 << 20


@dataclass(frozen=True, kw_only=True)  # no slots: cached properties
class Call:
    """The arguments of `CachedEncoder.encode`."""

    inputs: DataLoader[Any]
    task_metadata: TaskMetadata
    hf_split: str
    hf_subset: str
    prompt_type: PromptType | None
    kwargs: Mapping[str, Any]

    @cached_property
    def rows(self) -> Any:
        """The inputs as a `datasets.Dataset`."""
        return self.inputs.dataset

    @property
    def modalities(self) -> set[str]:
        """Modalities of the inputs."""
        return _MODALITIES & set(self.rows.column_names)

    @property
    def dataset(self) -> str:
        """Name of the dataset in the store."""
        return f"{DATASETS}{group_name(self.task_metadata.name)}"

    @property
    def split(self) -> str:
        """Name of the split in the store; subsets are separate splits."""
        subset = "" if self.hf_subset == "default" else f"-{self.hf_subset}"
        return group_name(f"{self.hf_split}{subset}")

    @cached_property
    def fields(self) -> Any:
        """The other columns of the inputs, such as labels, which are read without decoding audio."""
        return self.rows.remove_columns(sorted(self.modalities))

    def clips(self) -> Iterator[Clip]:
        """Decode the inputs, one after the other."""
        row = 0
        for batch in self.inputs:
            for audio in batch["audio"]:
                samples, rate_hz = _decoded(audio)
                yield Clip(key=content_key(samples, rate_hz), row=row, samples=samples, rate_hz=rate_hz)
                row += 1

    def meta(self, clip: Clip) -> str:
        """JSON of a clip: where it was encoded, and the other columns of its row that are JSON values."""
        found = {"task": self.task_metadata.name, "subset": self.hf_subset, "sampling_rate": clip.rate_hz}
        for name, value in (self.fields[clip.row] if self.fields.column_names else {}).items():
            try:
                canonical_json(value)
            except (TypeError, ValueError):  # for example, a date or NaN
                continue
            found.setdefault(name, value)
        return canonical_json(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A decoded input: samples (samples,) or (channels, samples), its content key and its row in the call."""

    key: str
    row: int
    samples: NDArray[np.generic]
    rate_hz: int

    @property
    def seconds(self) -> float:
        """Duration of the clip."""
        return float(self.samples.shape[-1] / self.rate_hz)


def _decoded(audio: Any) -> tuple[NDArray[np.generic], int]:
    """Samples and sample rate of a torchcodec decoder, or of ``{"array", "sampling_rate"}``."""
    if hasattr(audio, "get_all_samples"):
        decoded = audio.get_all_samples()
        samples, rate_hz = decoded.data.cpu().numpy(), decoded.sample_rate
    else:
        samples, rate_hz = np.asarray(audio["array"]), audio["sampling_rate"]
    return (samples[0] if samples.ndim == 2 and len(samples) == 1 else samples), int(rate_hz)


def content_key(samples: NDArray[np.generic], rate_hz: int) -> str:
    """Key of a clip: 32 hexadecimal digits of a hash of its samples and sample rate, whatever their data type.

    >>> content_key(np.zeros(8, np.float32), 8_000) == content_key(np.zeros(8), 8_000)
    True
    """
    digest = hashlib.sha256(f"{rate_hz}|{samples.shape}|".encode())
    digest.update(np.ascontiguousarray(samples, "<f8").data)  # exact for float32 and integers of up to 53 bits
    return digest.hexdigest()[:32]


def groups(clips: Iterable[Clip], *, seconds: Callable[[], float]) -> Iterator[list[Clip]]:
    """Group clips to encode together: of about `seconds()` of audio, and of limited number and memory."""
    group: list[Clip] = []
    n_seconds, n_bytes = 0.0, 0
    for clip in clips:
        group.append(clip)
        n_seconds, n_bytes = n_seconds + clip.seconds, n_bytes + clip.samples.nbytes
        if len(group) >= _GROUP_CLIPS or n_bytes >= _GROUP_BYTES or n_seconds >= seconds():
            yield group
            group, n_seconds, n_bytes = [], 0.0, 0
    if group:
        yield group


def group_name(name: str) -> str:
    """Replace the characters that a name in a store must not have."""
    return re.sub(r"[^A-Za-z0-9._+@=-]+", "-", name).lstrip("._+@=-") or "unnamed"
