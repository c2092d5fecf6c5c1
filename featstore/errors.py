"""The exceptions of featstore, and the error for a missing optional library.

FeatstoreError
|-- UsageError                  the call is invalid: change the arguments                   (exit code 2)
|   |-- UnknownTask             there is no manifest with that name                         (also a KeyError)
|   |-- UnknownFeatureSet       nothing in the store matches the selection                  (also a KeyError)
|   `-- AmbiguousSelection      several feature sets or recipes match the selection
|-- ManifestError               a manifest is invalid; lists all problems of the file       (exit code 2)
|-- DataError                   the audio data or the labels do not match the manifest
|   |-- ShardError              a shard is missing or cannot be read
|   |-- LabelError              a sample's JSON has no usable label
|   `-- UnusableClip            a clip cannot be decoded: it is skipped and listed, and the run continues
|-- EncoderError                an encoder cannot be loaded
|   |-- EncoderContractError    an encoder violates the contract: rank, width, finiteness, hop
|   `-- EncoderChanged          an encoder's output differs from the output that the store was made with
|-- WorkerError                 worker processes or nodes died repeatedly, or none is available
|-- StoreError                  the store cannot be read or written
|   |-- StoreNotFound           there is no store at the URL                                (also a FileNotFoundError)
|   |-- StoreVersionError       a newer featstore wrote the store
|   |-- RemoteError             a server is unreachable, refuses the request, or has no such bucket
|   |-- DamagedPart             a part differs from its commit record
|   `-- PartLost                objects of a part were deleted while it was written: it was not committed
|-- ResultsError                a results file is damaged, or a score cannot be written
`-- FetchError                  a download failed, or does not match its record

The exit code is 1 unless stated otherwise. A message is one line: the rule, the value, the fix.
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
    "missing_extra",
]


class FeatstoreError(Exception):
    """Base class of the errors that featstore raises."""

    exit_code = 1

    def __str__(self) -> str:
        # KeyError.__str__ returns the repr of its argument.
        return str(self.args[0]) if self.args else ""


class UsageError(FeatstoreError):
    """The call is invalid: change the arguments."""

    exit_code = 2


class UnknownTask(UsageError, KeyError):
    """There is no manifest with that name."""


class UnknownFeatureSet(UsageError, KeyError):
    """Nothing in the store matches the selection."""


class AmbiguousSelection(UsageError):
    """Several feature sets or recipes match the selection."""


class ManifestError(FeatstoreError):
    """A manifest is invalid.

    Attributes
    ----------
    problems : tuple of str
        All problems of the file, each with its location, such as ``"probe.epochs: must be at least 1, got 0"``.
    """

    exit_code = 2

    def __init__(self, where: str, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__(f"{where}: " + "; ".join(problems))


class DataError(FeatstoreError):
    """The audio data or the labels do not match the manifest."""


class ShardError(DataError):
    """A shard is missing or cannot be read."""


class LabelError(DataError):
    """A sample's JSON has no usable label."""


class UnusableClip(DataError):
    """A clip cannot be decoded or is too long.

    Attributes
    ----------
    seconds : float or None
        The stated duration of a clip that is too long, else None.
    """

    def __init__(self, message: str, *, seconds: float | None = None) -> None:
        self.seconds = seconds
        super().__init__(message)


class EncoderError(FeatstoreError):
    """An encoder cannot be loaded."""


class EncoderContractError(EncoderError):
    """An encoder violates the contract."""


class EncoderChanged(EncoderError):
    """An encoder with an unchanged fingerprint returns different embeddings than before, or is not deterministic.

    Attributes
    ----------
    cosine : float
        Smallest cosine similarity between the stored and the new output, over the reference signals.
    """

    def __init__(self, message: str, cosine: float) -> None:
        self.cosine = cosine
        super().__init__(message)

    def __reduce__(self) -> tuple[type[EncoderChanged], tuple[str, float]]:
        return type(self), (str(self), self.cosine)


class WorkerError(FeatstoreError):
    """Workers died repeatedly, or none is available."""


class StoreError(FeatstoreError):
    """The store cannot be read or written."""


class StoreNotFound(StoreError, FileNotFoundError):
    """There is no store at the URL."""

    exit_code = 2


class StoreVersionError(StoreError):
    """A newer featstore wrote the store."""


class RemoteError(StoreError):
    """A server is unreachable, refuses the request, or has no such bucket."""


class DamagedPart(StoreError):
    """A part differs from its commit record."""


class PartLost(StoreError):
    """Objects of a part were deleted or changed while it was written: it was not committed."""


class ResultsError(FeatstoreError):
    """A results file is damaged, or a score cannot be written."""


class FetchError(FeatstoreError):
    """A download failed, or does not match its record."""


def missing_extra(what: str, missing: ImportError | str, extra: str) -> UsageError:
    """Return the error for a feature whose optional library is not installed.

    >>> str(missing_extra("to_dask", "dask", "arrays"))
    "to_dask needs dask, which is not installed: `pip install 'featstore[arrays]'`"
    """
    library = missing if isinstance(missing, str) else missing.name or str(missing)
    return UsageError(f"{what} needs {library}, which is not installed: `pip install 'featstore[{extra}]'`")
