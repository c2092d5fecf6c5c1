"""Certificates of audits: the record, its file, and the hash that covers it.

The hash is the SHA-256 of the canonical JSON of everything else. It identifies a certificate and detects changes. It is
no signature with a secret key: it does not show who audited. A reader who does not trust the author of a certificate
runs the audit again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from featstore.errors import ResultsError
from featstore.files import write_whole
from featstore.records import ScoreRecord, sha256_of

__all__ = [
    "CERTIFICATE_FORMAT",
    "CERTIFICATE_SUFFIX",
    "AuditFinding",
    "AuditedRecipe",
    "AuditedScore",
    "AuditedSet",
    "Certificate",
    "certified_scores",
    "hash_of_score",
    "read_certificate",
]

CERTIFICATE_FORMAT = 1
CERTIFICATE_SUFFIX = ".certificate.json"
_MOST_BYTES = 256 << 20

FindingKind = Literal[
    "checksum", "canary", "shard", "clips", "label", "windows", "vector", "frames", "skipped", "score", "results"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding:
    """One problem.

    Attributes
    ----------
    kind : str
        ``checksum``: an object of the store differs from its commit record. ``canary``: the encoder's output for the
        reference signals differs from the stored one. ``shard``: a shard is missing, unreadable or of another size.
        ``clips``: shard and store have different clips. ``label``, ``windows``, ``vector``, ``frames``: the clip's
        JSON, its windows or its embeddings differ. ``skipped``: a skipped clip can be decoded. ``score``: a score does
        not follow from the store. ``results``: a file of results is damaged.
    where : str
        Feature set, clip or score.
    problem : str
    """

    kind: FindingKind
    where: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedRecipe:
    """One recipe (a layer and pool of the encoder), its sample, and the probability of missing a forgery.

    Attributes
    ----------
    group : str
        Name in the store, such as ``logmel@3f9c2a71``.
    clips, sampled : int
        Number of clips, and of those that were encoded again.
    tolerance, frame_tolerance : float
        Largest change of a vector, and of a frame, that arithmetic explains, relative to the stored norm.
    largest_change : float or None
        Largest change of a vector in the sample; None if no vector could be compared.
    largest_frame_change : float or None
        Largest change of a frame; None if no frames are stored.
    missed : mapping
        Fraction of forged clips (``"0.01"``, ``"0.05"``) -> largest probability that the sample has none of them.
    forged_at_most : float
        Upper bound, at 95 % confidence, of the fraction of forged clips if the sample has none.
    canary : str
        ``same``, ``changed``, or ``not stored``.
    """

    group: str
    clips: int
    sampled: int
    tolerance: float
    frame_tolerance: float
    largest_change: float | None
    largest_frame_change: float | None
    missed: Mapping[str, float]
    forged_at_most: float
    canary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedSet:
    """One feature set: path, content hash, clips, sampled clips, and the number of its shards that were read."""

    path: str
    content_hash: str
    clips: int
    sampled: int
    shards: int
    shards_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedScore:
    """One score that was computed again.

    Attributes
    ----------
    key : str
        `ScoreRecord.key`, a hash of what the score was computed from.
    score_sha256 : str
        Hash of the complete score record (`hash_of_score`).
    value, recomputed : float
        Value in the results, and value computed from the store; None if it could not be computed.
    agrees : bool
        Whether the score follows from the store, with its interval, counts, settings and features.
    """

    task: str
    track: str
    protocol: str
    encoder: str
    fingerprint: str
    metric: str
    key: str
    score_sha256: str
    value: float
    recomputed: float | None
    agrees: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Result of an audit: what was compared, the findings, and what an unfound forgery could amount to.

    Attributes
    ----------
    certified : bool
        Whether there is no finding.
    store : str
        URL of the store, without credentials.
    store_sha256 : str
        Hash of the audited feature sets: paths, recipes and commit records, which have the checksum of every object.
    encoder : str
        Spec of the encoder.
    seed : int
        Seed of the sample. The guarantee assumes that the author of the store did not know it.
    sample : str
        Requested size.
    score_tolerance : float
        Largest difference of a score that is accepted, relative for values above 1.
    other_scores : tuple of str
        Scores in the folder of results that are of other encoders, which were not audited.
    issued_at : str
        UTC, for display.
    versions : mapping
        Software of the audit.
    sha256 : str
        Hash of the canonical JSON of all other keys; empty in a record that is being hashed.
    """

    certified: bool
    store: str
    store_sha256: str
    encoder: str
    seed: int
    sample: str
    recipes: tuple[AuditedRecipe, ...]
    feature_sets: tuple[AuditedSet, ...]
    scores: tuple[AuditedScore, ...]
    score_tolerance: float
    other_scores: tuple[str, ...]
    findings: tuple[AuditFinding, ...]
    device: str
    issued_at: str
    versions: Mapping[str, str]
    certificate_format: int = CERTIFICATE_FORMAT
    sha256: str = ""

    def as_json(self) -> dict[str, Any]:
        """The certificate as plain JSON, with its hash."""
        raw = asdict(self)
        return {**raw, "sha256": _hash_of(raw)}

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the certificate atomically. Raises OSError if the file cannot be written."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(self.as_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        return path


def _hash_of(raw: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a certificate without its hash."""
    return sha256_of({name: value for name, value in raw.items() if name != "sha256"})


def hash_of_score(record: ScoreRecord) -> str:
    """SHA-256 of the canonical JSON of a complete score record; `ScoreRecord.key` covers the inputs only."""
    return sha256_of(json.loads(json.dumps(record.as_json())))


def read_certificate(path: str | os.PathLike[str]) -> Certificate:
    """Read the file of a certificate.

    Raises
    ------
    ResultsError
        The file cannot be read, is not a certificate, or was changed after it was issued.
    """
    try:
        if Path(path).stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if raw["certificate_format"] != CERTIFICATE_FORMAT:
            raise ValueError(f"certificate format {raw['certificate_format']!r} is not {CERTIFICATE_FORMAT}")
        if raw["sha256"] != _hash_of(raw):
            raise ValueError("its hash does not match its content: it was changed")
        certificate = Certificate(
            **{
                **raw,
                "recipes": tuple(AuditedRecipe(**each) for each in raw["recipes"]),
                "feature_sets": tuple(AuditedSet(**each) for each in raw["feature_sets"]),
                "scores": tuple(AuditedScore(**each) for each in raw["scores"]),
                "findings": tuple(AuditFinding(**each) for each in raw["findings"]),
                "other_scores": tuple(raw["other_scores"]),
            }
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ResultsError(f"{path} is not a certificate ({problem}): run `featstore audit` again") from error
    if certificate.certified != (not certificate.findings):
        raise ResultsError(
            f"{path} is not a certificate (it is certified and has findings): run `featstore audit` again"
        )
    return certificate


def certified_scores(certificates: Iterable[Certificate]) -> frozenset[str]:
    """Hashes (`hash_of_score`) of the scores that some certificate without findings covers."""
    return frozenset(
        score.score_sha256 for each in certificates if each.certified for score in each.scores if score.agrees
    )
