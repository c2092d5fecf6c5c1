"""Every error that featstore raises on purpose.

FeatstoreError
|-- UsageError                  the call asks for something that cannot be: fix the call          (exit code 2)
|   |-- UnknownTask             no manifest of that name                                          (also a KeyError)
|   |-- UnknownFeatureSet       nothing in the store matches the selection                        (also a KeyError)
|   `-- AmbiguousSelection      several things in the store match the selection
|-- ManifestError               a manifest breaks its format: all of its problems at once
|-- DataError                   the audio data or their labels are not as the manifest says
|   |-- ShardError              a tar is missing or cannot be read
|   |-- LabelError              a sample's JSON has no usable label
|   `-- UnusableClip            one clip cannot be decoded: it is recorded, left out, and the run goes on
|-- EncoderError                an encoder cannot be loaded
|   |-- EncoderContractError    an encoder does not keep the contract: rank, width, finiteness, hop
|   `-- EncoderChanged          an encoder returns other numbers than when its embeddings were stored
|-- WorkerError                 processes or nodes that encode died over and over, or none could be had
|-- StoreError                  the store cannot be read or written
|   |-- StoreNotFound           there is no store at the URL                                 (a FileNotFoundError too)
|   |-- StoreVersionError       the store was written by a newer format
|   |-- RemoteError             a server could not be reached, refuses, or has no such bucket
|   |-- DamagedPart             a part does not hold what its commit record says
|   `-- PartLost                objects of a part went away while it was written: it was not committed
|-- ResultsError                a file of results is damaged, or a score cannot be written
`-- FetchError                  a download failed, or is not what its record says

A message is one line: the rule, what came, what to do.
"""

from __future__ import annotations

__all__ = [
    "AmbiguousSelection",
    "DamagedPart",
    "DataError",
    "EncoderChanged",
    "EncoderContractError",
    "EncoderError",
    "FeatstoreError",
    "FetchError",
    "LabelError",
    "ManifestError",
    "PartLost",
    "RemoteError",
    "ResultsError",
    "ShardError",
    "StoreError",
    "StoreNotFound",
    "StoreVersionError",
    "UnknownFeatureSet",
    "UnknownTask",
    "UnusableClip",
    "UsageError",
    "WorkerError",
]


class FeatstoreError(Exception):
    """Base of every error that featstore raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        # KeyError's own __str__ shows the repr of its argument; a message is a sentence.
        return str(self.args[0]) if self.args else ""


class UsageError(FeatstoreError):
    """The call asks for something that cannot be."""

    exit_code = 2


class UnknownTask(UsageError, KeyError):
    """No manifest of that name."""


class UnknownFeatureSet(UsageError, KeyError):
    """Nothing in the store matches the selection."""


class AmbiguousSelection(UsageError):
    """Several things in the store match the selection."""


class ManifestError(FeatstoreError):
    """A manifest breaks its format.

    Attributes
    ----------
    problems : tuple of str
        Every problem of the file, each with its place, such as ``"probe.epochs: must be at least 1, got 0"``.
    """

    exit_code = 2

    def __init__(self, where: str, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__(f"{where}: " + "; ".join(problems))


class DataError(FeatstoreError):
    """The audio data or their labels are not as the manifest says."""


class ShardError(DataError):
    """A tar is missing or cannot be read."""


class LabelError(DataError):
    """A sample's JSON has no usable label."""


class UnusableClip(DataError):
    """One clip cannot be used.

    Attributes
    ----------
    seconds : float or None
        The length that the clip claims, where that is what rules it out.
    """

    def __init__(self, message: str, *, seconds: float | None = None) -> None:
        self.seconds = seconds
        super().__init__(message)


class EncoderError(FeatstoreError):
    """An encoder cannot be loaded."""


class EncoderContractError(EncoderError):
    """An encoder does not keep the contract."""


class EncoderChanged(EncoderError):
    """An encoder of an unchanged fingerprint returns other numbers than it did, or others each time.

    Attributes
    ----------
    cosine : float
        Of what it returned then and returns now, for the reference signal that moved furthest.
    """

    def __init__(self, message: str, cosine: float) -> None:
        self.cosine = cosine
        super().__init__(message)

    def __reduce__(self) -> tuple[type[EncoderChanged], tuple[str, float]]:
        return type(self), (str(self), self.cosine)


class WorkerError(FeatstoreError):
    """Workers died over and over, or none could be had."""


class StoreError(FeatstoreError):
    """The store cannot be read or written."""


class StoreNotFound(StoreError, FileNotFoundError):
    """There is no store at the URL."""

    exit_code = 2


class StoreVersionError(StoreError):
    """The store was written by a newer format."""


class RemoteError(StoreError):
    """A server could not be reached, refuses, or has no such bucket."""


class DamagedPart(StoreError):
    """A part does not hold what its commit record says."""


class PartLost(StoreError):
    """Objects of a part went away, or changed, while it was written: it was not committed."""


class ResultsError(FeatstoreError):
    """A file of results is damaged, or a score cannot be written."""


class FetchError(FeatstoreError):
    """A download failed, or is not what its record says."""
