"""Format 1 of the store: names, documents and the commit record. This module does no I/O.

A store is a tree of Zarr v3 groups. The metadata of a group is stored in the attributes of its group document
(``zarr.json``), with a hash, so that damage to metadata is detected as reliably as damage to arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from featstore.errors import StoreError
from featstore.records import Recipe, SkippedClip, canonical_json, sha256_of

__all__ = [
    "FORMAT_VERSION",
    "GROUP_DOCUMENT",
    "HEARTBEAT",
    "TEXT_GROUP",
    "Commit",
    "DamagedDocument",
    "Member",
    "ObjectSeal",
    "Segment",
    "ShardIdentity",
    "Writing",
    "check_fields",
    "counted_segments",
    "is_amount",
    "is_group_name",
    "is_object_name",
    "is_part_name",
    "is_remains_of_part",
    "is_store_name",
    "is_text",
    "part_stem",
    "recipe_from_json",
    "recipe_of_group",
    "seal",
    "unseal",
]

FORMAT_VERSION = 1
GROUP_DOCUMENT = "zarr.json"
TEXT_GROUP = ".text"
"""Group of an encoder that takes the place of a dataset: its splits hold vectors of texts, one split per task."""
HEARTBEAT = ".alive"
"""Object that the writer of an uncommitted part rewrites periodically on a server; local writers touch the document."""

_HEAD = b'{"zarr_format":3,"node_type":"group","attributes":{"featstore":'
_BETWEEN, _TAIL = b',"featstore_sha256":"', b'"}}'
_HASH_CHARACTERS = 64
_MOST_NAME_CHARACTERS = 255  # limit of most file systems
_MOST_COUNT = 1 << 53  # beyond it a JSON number is not exact
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=-]*")
_STORED_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._+@=-]*")
_PART_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.[0-9a-f]{8}")
_FINGERPRINT = re.compile(r"[0-9a-f]{8}")
_ARRAYS = "key|meta|start_seconds|seconds|utterance|frame_offsets|frames"
_OBJECT = re.compile(rf"(?:{_ARRAYS})/(?:zarr\.json|c/(?:0|[1-9][0-9]{{0,15}})(?:/0)?)")


class DamagedDocument(StoreError):
    """A group document is damaged."""


def seal(content: Mapping[str, Any]) -> bytes:
    """Encode the group document with `content` in its attributes.

    The document contains the content as canonical JSON, the bytes that are hashed. A reader can hash these bytes
    instead of encoding the content again, which would take most of the time for 100,000 commits.

    >>> unseal(seal({"format": 1}))
    {'format': 1}
    """
    content_json = canonical_json(content).encode()
    return b"".join((_HEAD, content_json, _BETWEEN, hashlib.sha256(content_json).hexdigest().encode(), _TAIL))


def unseal(raw: bytes) -> dict[str, Any] | None:
    """Decode a document that `seal` encoded; None for a document that featstore did not write.

    The bare groups that zarr-python creates, and groups and arrays of other software, do not contain the word
    `featstore`. Documents of featstore contain it twice, so that a single damaged byte does not remove it.

    Raises
    ------
    DamagedDocument
        The document is not a JSON object, or it is a featstore document whose hash does not match.
    """
    try:
        if (content_json := _sealed_json(raw)) is not None:
            return _object(json.loads(content_json))
        document = json.loads(raw)
        if b"featstore" not in raw and isinstance(document, dict):
            return None
        attributes = document["attributes"]
        if document["zarr_format"] != 3 or document["node_type"] != "group":
            raise DamagedDocument("it is not a Zarr v3 group document")
        content, stated = attributes["featstore"], attributes["featstore_sha256"]
        if sha256_of(content) != stated:
            raise DamagedDocument("its hash does not match its content")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedDocument(f"it is not a group document of featstore ({type(error).__name__})") from error
    return _object(content)


def _sealed_json(raw: bytes) -> bytes | None:
    """The JSON of the content if the document is exactly as `seal` encodes it and the hash matches, else None."""
    end = len(raw) - len(_BETWEEN) - _HASH_CHARACTERS - len(_TAIL)
    content_json = raw[len(_HEAD) : end]
    stated = hashlib.sha256(content_json).hexdigest().encode()
    return content_json if raw.startswith(_HEAD) and raw[end:] == _BETWEEN + stated + _TAIL else None


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DamagedDocument("its content is not an object")
    return content


def is_group_name(name: object) -> bool:
    """Whether a value is a valid name of a dataset, split or encoder in a store."""
    return isinstance(name, str) and len(name) <= _MOST_NAME_CHARACTERS and _NAME.fullmatch(name) is not None


def is_store_name(name: str) -> bool:
    """Whether featstore may have given this name to a group, including parts; all other names are foreign.

    >>> is_store_name("train-000000.7d41c0de"), is_store_name(".."), is_store_name("my notes.txt")
    (True, False, False)
    """
    return len(name) <= _MOST_NAME_CHARACTERS and _STORED_NAME.fullmatch(name) is not None


def is_object_name(name: object) -> bool:
    """Whether a value is a valid object name in a part: the document or a chunk of one of its arrays.

    >>> is_object_name("utterance/c/0/0"), is_object_name("key/../../../.bashrc")
    (True, False)
    """
    return isinstance(name, str) and _OBJECT.fullmatch(name) is not None


def is_text(value: object) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def is_amount(value: object) -> bool:
    """Whether a value is a finite number of at least 0."""
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_COUNT


def _is_flag(value: object) -> bool:
    return type(value) is bool


def _is_fingerprint(value: object) -> bool:
    return isinstance(value, str) and _FINGERPRINT.fullmatch(value) is not None


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _is_mapping_of_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_text, value.values()))


def _or_null(is_valid: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or is_valid(value)


def check_fields(raw: object, rules: Mapping[str, Callable[[object], bool]], *, of: str) -> dict[str, Any]:
    """Check the fields of a JSON object from a store, and return it. Fields without a rule are not checked.

    Raises
    ------
    DamagedDocument
        The value is not an object, a field is missing, or its value violates the rule.
    """
    if not isinstance(raw, dict):
        raise DamagedDocument(f"its {of} is not an object")
    try:
        for name, is_valid in rules.items():
            if not is_valid(raw[name]):
                raise DamagedDocument(f"its {of} has an invalid value: {name} = {repr(raw[name])[:80]}")
    except KeyError:
        raise DamagedDocument(f"its {of} has no {name}") from None
    return raw


def is_part_name(name: object) -> bool:
    """Whether a name in a split's group is a part name: ``stem.7d41c0de``.

    >>> is_part_name("train-000000.7d41c0de"), is_part_name("notes")
    (True, False)
    """
    return isinstance(name, str) and len(name) <= _MOST_NAME_CHARACTERS and _PART_NAME.fullmatch(name) is not None


def is_remains_of_part(name: str, objects: Iterable[str]) -> bool:
    """Whether a group without a document is the rest of a part whose deletion was killed, by its name and objects.

    >>> is_remains_of_part("a.7d41c0de", ["key/c/0", "frames/zarr.json"]), is_remains_of_part("a.7d41c0de", ["key.txt"])
    (True, False)
    """
    objects = [each for each in objects if not each.startswith(".")]
    return is_part_name(name) and bool(objects) and all(map(is_object_name, objects))


def part_stem(shard: str) -> str:
    """First component of a part's name: the shard's name, restricted to characters that every store supports.

    >>> part_stem("en/wds-audio-train-000000.tar")
    'en-wds-audio-train-000000'
    """
    stem = re.sub(r"\.tar(\.gz)?$", "", shard)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[-80:].strip("-.") or "shard"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIdentity:
    """Identifies one version of a shard.

    Local files have ``mtime_ns``, remote objects ``etag``. ``sha256`` is the hash of the bytes that were encoded.
    """

    name: str
    size: int
    mtime_ns: int | None = None
    etag: str | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class ObjectSeal:
    """Size in bytes and checksum (`codecs.seal_crc32c`) of a stored object, computed before it was written."""

    size: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """The process that writes an uncommitted part. `featstore.store.liveness` decides whether it is alive.

    ``boot_id``, ``pid_namespace``, ``pid`` and ``process_started`` identify a process exactly. The first two are None
    on systems that do not provide them, and in documents of older versions. ``writer`` is a random number of the
    process. ``host`` and ``began_at`` are for display.
    """

    host: str
    pid: int
    process_started: int | None
    began_at: str
    writer: str = ""
    boot_id: str | None = None
    pid_namespace: str | None = None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Writing:
        """Read a record. Raises DamagedDocument if a field is missing, unknown or of the wrong type."""
        try:
            writing = cls(**raw)
        except TypeError as error:
            raise DamagedDocument(f"its writer is not of format {FORMAT_VERSION}: {error}") from error
        integers = (writing.pid, *(() if writing.process_started is None else (writing.process_started,)))
        if not all(type(number) is int for number in integers) or not 0 < writing.pid < 1 << 31:
            raise DamagedDocument(f"its writer is not of format {FORMAT_VERSION}: {writing.pid!r} is not a process id")
        return writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """The windows of one shard in a part; they follow the windows of the previous member.

    A part from an extraction has one member; a part that `compact_store` merged has one for each of its shards.
    """

    shard: ShardIdentity
    clips: int
    windows: int
    frames: int
    audio_seconds: float
    skipped: tuple[SkippedClip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The commit record of a part: its members, the seals of its objects, and its provenance.

    ``part`` is the name of the part's group. ``objects`` maps each object of the part, except its group document, to
    its seal; it is empty in records from a catalogue. ``generation`` is greater than the generations of the parts that
    this part replaces; it is 0, and omitted in JSON, if the part replaces none.
    """

    part: str
    members: tuple[Member, ...]
    frames_stored: bool
    recipe_fingerprint: str
    crop_seconds: float | None
    committed_at: str
    seconds: float
    versions: Mapping[str, str]
    objects: Mapping[str, ObjectSeal]
    generation: int = 0

    @property
    def order(self) -> tuple[int, str, str]:
        """Sort key for parts with the same shard: the part with the greatest key is current.

        The commit time is compared only within a generation, so that a wrong clock cannot hide a newer part.
        """
        return (self.generation, self.committed_at, self.part)

    @property
    def windows(self) -> int:
        """Number of windows, the rows of the part's arrays."""
        return sum(member.windows for member in self.members)

    @property
    def frames(self) -> int:
        """Number of frames, the rows of its frames array."""
        return sum(member.frames for member in self.members)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, as in the part's group document."""
        seals = {name: [entry.size, entry.crc32c] for name, entry in sorted(self.objects.items())}
        return {**self.as_catalogue_json(), "objects": seals}

    def as_catalogue_json(self) -> dict[str, Any]:
        """Plain JSON without the seals, as in the catalogue."""
        members = [_member_as_json(member) for member in self.members]
        flat = {**_flat(self), "members": members, "versions": dict(self.versions), "objects": {}}
        if not self.generation:
            del flat["generation"]
        return flat

    @classmethod
    def from_json(cls, raw: object, *, part: str | None = None) -> Commit:
        """Inverse of `as_json`. Unknown fields, from a later featstore, are ignored.

        Parameters
        ----------
        raw : object
            The untrusted JSON value.
        part : str, optional
            Name of the group that the record was read from; the record must have the same name.

        Raises
        ------
        DamagedDocument
            A field is missing or invalid, or the record belongs to another part.
        """
        checked = check_fields(raw, _COMMIT_RULES, of="commit record")
        if part is not None and checked["part"] != part:
            raise DamagedDocument(f"its commit record belongs to another part, {checked['part']}")
        members = tuple(_member_from_json(member) for member in checked["members"])
        objects = {name: _seal_from_json(name, entry) for name, entry in checked["objects"].items()}
        generation = checked.get("generation", 0)
        if not _is_count(generation):
            raise DamagedDocument(f"its commit record has an invalid value: generation = {generation!r}")
        known = {name: checked[name] for name in _COMMIT_RULES}
        known |= {"members": members, "objects": objects, "generation": generation}
        return cls(**known)


def _flat(record: Commit | Member | ShardIdentity) -> dict[str, Any]:
    """Fields and their values. `dataclasses.asdict` copies recursively, and is ten times slower."""
    return {each.name: getattr(record, each.name) for each in fields(record)}


def _member_as_json(member: Member) -> dict[str, Any]:
    skipped = [
        [clip.key, clip.reason] if clip.seconds is None else [clip.key, clip.reason, clip.seconds]
        for clip in member.skipped
    ]
    return {**_flat(member), "shard": _flat(member.shard), "skipped": skipped}


_SHARD_RULES: Mapping[str, Callable[[object], bool]] = {
    "name": is_text,
    "size": _is_count,
    "mtime_ns": _or_null(lambda value: type(value) is int),
    "etag": _or_null(is_text),
    "sha256": is_text,
}
_MEMBER_RULES: Mapping[str, Callable[[object], bool]] = {
    "clips": _is_count,
    "windows": _is_count,
    "frames": _is_count,
    "audio_seconds": is_amount,
    "skipped": lambda value: isinstance(value, list),
    "shard": lambda value: isinstance(value, dict),
}
_COMMIT_RULES: Mapping[str, Callable[[object], bool]] = {
    "part": is_part_name,
    "members": lambda value: isinstance(value, list),
    "frames_stored": _is_flag,
    "recipe_fingerprint": _is_fingerprint,
    "crop_seconds": _or_null(is_amount),
    "committed_at": _is_time,
    "seconds": is_amount,
    "versions": _is_mapping_of_texts,
    "objects": lambda value: isinstance(value, dict),
}


def _member_from_json(raw: object) -> Member:
    checked = check_fields(raw, _MEMBER_RULES, of="member")
    of_shard = check_fields(checked["shard"], _SHARD_RULES, of="shard")
    shard = ShardIdentity(**{name: of_shard[name] for name in _SHARD_RULES})
    skipped = tuple(_skipped_from_json(shard.name, clip) for clip in checked["skipped"])
    known = {name: checked[name] for name in _MEMBER_RULES}
    known |= {"shard": shard, "skipped": skipped}
    return Member(**known)


def _skipped_from_json(shard: str, raw: object) -> SkippedClip:
    """Read an entry of ``skipped``: key and reason, and the duration if the clip was too long."""
    if not (
        isinstance(raw, list) and len(raw) in (2, 3) and all(map(is_text, raw[:2])) and all(map(is_amount, raw[2:]))
    ):
        raise DamagedDocument("an entry of its list of skipped clips is not key, reason and optional seconds")
    return SkippedClip(shard=shard, key=raw[0], reason=raw[1], seconds=raw[2] if len(raw) == 3 else None)


def _seal_from_json(name: object, raw: object) -> ObjectSeal:
    if not is_object_name(name):
        raise DamagedDocument(f"its commit record names an invalid object: {repr(name)[:80]}")
    if not (isinstance(raw, list) and len(raw) == 2 and all(map(_is_count, raw)) and raw[1] < 1 << 32):
        raise DamagedDocument(f"its commit record has no size and checksum for {name}")
    return ObjectSeal(*raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The rows of one shard in its current part: windows [start, start + member.windows)."""

    commit: Commit
    member: Member
    start: int


def counted_segments(commits: Iterable[Commit]) -> tuple[Segment, ...]:
    """Return each shard's current segment: of the part with the greatest `Commit.order`. Sorted by shard name."""
    chosen: dict[str, Segment] = {}
    for commit in commits:
        start = 0
        for member in commit.members:
            rival = chosen.get(member.shard.name)
            if rival is None or commit.order > rival.commit.order:
                chosen[member.shard.name] = Segment(commit=commit, member=member, start=start)
            start += member.windows
    return tuple(chosen[name] for name in sorted(chosen))


_RECIPE_RULES: Mapping[str, Callable[[object], bool]] = {
    "encoder": is_group_name,
    "encoder_identity": lambda value: isinstance(value, dict),
    "sample_rate_hz": lambda value: _is_count(value) and value != 0,
    "dim": lambda value: _is_count(value) and value != 0,
    "hop_seconds": is_amount,
    "padding": is_text,
    "precision": is_text,
    "frame_dtype": is_text,
    "resampler": is_text,
    "format_version": _is_count,
}
_LATER_RECIPE_RULES: Mapping[str, Callable[[object], bool]] = {
    "pool": is_text,
    "max_window_seconds": _or_null(is_amount),
    "named_by": lambda value: value in ("class", "place"),
}


def recipe_from_json(raw: object) -> Recipe:
    """Read the recipe of an encoder's group. Raises DamagedDocument if it is invalid.

    Unknown fields are rejected, because they may determine the embeddings.
    """
    checked = check_fields(raw, _RECIPE_RULES, of="recipe")
    check_fields(checked, {name: rule for name, rule in _LATER_RECIPE_RULES.items() if name in checked}, of="recipe")
    if unknown := checked.keys() - _RECIPE_RULES.keys() - _LATER_RECIPE_RULES.keys():
        raise DamagedDocument(f"its recipe has a field that this featstore does not know: {sorted(unknown)[0]}")
    recipe = Recipe(**checked)
    try:
        recipe.fingerprint  # noqa: B018 - raises if the identity has no canonical JSON
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedDocument(f"its recipe cannot be hashed: {error}") from error
    return recipe


def recipe_of_group(raw: object, group: str) -> Recipe:
    """Read the recipe in a document of the encoder's group `group`, under the name that the group gives the encoder.

    The name of a group is ``NAME@FINGERPRINT``. The recipe decides the fingerprint only: `rename_encoder` changes the
    name of the group and no document. Raises DamagedDocument if the recipe is invalid or has another fingerprint.
    """
    recipe = recipe_from_json(raw)
    name, at, fingerprint = group.rpartition("@")
    if not at or fingerprint != recipe.fingerprint or not is_group_name(name):
        raise DamagedDocument(f"its recipe is that of {recipe.group_name}")
    return recipe.renamed(name)
