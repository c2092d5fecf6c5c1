"""Format 1 of the store: names, documents and the commit record. Pure: no I/O.

A store is a tree of Zarr v3 groups. What featstore says about a group stands in the attributes of its group document
(``zarr.json``), sealed by a hash so that damage to the words is found as surely as damage to the numbers.
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
    "is_name_of_ours",
    "is_object_name",
    "is_part_name",
    "is_remains_of_part",
    "is_text",
    "part_stem",
    "recipe_from_json",
    "seal",
    "unseal",
]

FORMAT_VERSION = 1
GROUP_DOCUMENT = "zarr.json"
HEARTBEAT = ".alive"
"""Object that the writer of an in-flight part puts again and again on a server; a local document is touched instead."""

_HEAD = b'{"zarr_format":3,"node_type":"group","attributes":{"featstore":'
_BETWEEN, _TAIL = b',"featstore_sha256":"', b'"}}'
_HASH_CHARACTERS = 64
_MOST_NAME_CHARACTERS = 255  # what file systems allow
_MOST_COUNT = 1 << 53  # beyond it a JSON number is not exact
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=-]*")
_STORED_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._+@=-]*")
_PART_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.[0-9a-f]{8}")
_FINGERPRINT = re.compile(r"[0-9a-f]{8}")
_ARRAYS = "key|meta|start_seconds|seconds|utterance|frame_offsets|frames"
_OBJECT = re.compile(rf"(?:{_ARRAYS})/(?:zarr\.json|c/(?:0|[1-9][0-9]{{0,15}})(?:/0)?)")


class DamagedDocument(StoreError):
    """A group document is not what featstore wrote."""


def seal(content: Mapping[str, Any]) -> bytes:
    """Make the group document that carries `content` in its attributes.

    The content stands in it as canonical JSON, byte for byte what is hashed: it is put into words once, and a reader
    that finds it so need not do that again. Of a hundred thousand commits that is most of the time.

    >>> unseal(seal({"format": 1}))
    {'format': 1}
    """
    words = canonical_json(content).encode()
    return b"".join((_HEAD, words, _BETWEEN, hashlib.sha256(words).hexdigest().encode(), _TAIL))


def unseal(raw: bytes) -> dict[str, Any] | None:
    """Read what `seal` wrote; None for a document that is not of featstore.

    Such are the bare group that zarr-python makes for a parent, and groups and arrays of other software. They are told
    apart by the word `featstore`, which a document of ours holds twice: no single damaged byte takes both away.

    Raises
    ------
    DamagedDocument
        The document is no JSON object, or it is of featstore and its hash does not match its words.
    """
    try:
        if (words := _sealed_words(raw)) is not None:
            return _object(json.loads(words))
        document = json.loads(raw)
        if b"featstore" not in raw and isinstance(document, dict):
            return None
        attributes = document["attributes"]
        if document["zarr_format"] != 3 or document["node_type"] != "group":
            raise DamagedDocument("it is no Zarr v3 group document")
        content, stated = attributes["featstore"], attributes["featstore_sha256"]
        if sha256_of(content) != stated:
            raise DamagedDocument("its hash does not match its words")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedDocument(f"it is no group document of featstore ({type(error).__name__})") from error
    return _object(content)


def _sealed_words(raw: bytes) -> bytes | None:
    """The content's JSON where the document is as `seal` makes it and the hash is of these very bytes."""
    end = len(raw) - len(_BETWEEN) - _HASH_CHARACTERS - len(_TAIL)
    words = raw[len(_HEAD) : end]
    stated = hashlib.sha256(words).hexdigest().encode()
    return words if raw.startswith(_HEAD) and raw[end:] == _BETWEEN + stated + _TAIL else None


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DamagedDocument("its content is no object")
    return content


def is_group_name(name: object) -> bool:
    """Whether a dataset, split or encoder may be called so in a store."""
    return isinstance(name, str) and len(name) <= _MOST_NAME_CHARACTERS and _NAME.fullmatch(name) is not None


def is_name_of_ours(name: str) -> bool:
    """Whether featstore may have given this name to a group of a store, a part included; any other name is foreign.

    >>> is_name_of_ours("train-000000.7d41c0de"), is_name_of_ours(".."), is_name_of_ours("my notes.txt")
    (True, False, False)
    """
    return len(name) <= _MOST_NAME_CHARACTERS and _STORED_NAME.fullmatch(name) is not None


def is_object_name(name: object) -> bool:
    """Whether a part may hold an object of this name: the document or a chunk of one of its arrays.

    >>> is_object_name("utterance/c/0/0"), is_object_name("key/../../../.bashrc")
    (True, False)
    """
    return isinstance(name, str) and _OBJECT.fullmatch(name) is not None


def is_text(value: object) -> bool:
    """Whether a field holds a string."""
    return isinstance(value, str)


def is_amount(value: object) -> bool:
    """Whether a field holds a finite number of 0 or more."""
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
    """Check the fields of a JSON object that was read from a store, and return it; other fields are not looked at.

    Raises
    ------
    DamagedDocument
        It is no object, a field is missing, or its value breaks the field's rule.
    """
    if not isinstance(raw, dict):
        raise DamagedDocument(f"its {of} is no object")
    try:
        for name, is_valid in rules.items():
            if not is_valid(raw[name]):
                raise DamagedDocument(f"its {of} has a value that is not allowed: {name} = {repr(raw[name])[:80]}")
    except KeyError:
        raise DamagedDocument(f"its {of} has no {name}") from None
    return raw


def is_part_name(name: object) -> bool:
    """Whether a group in a split's group may be a part: it is called ``stem.7d41c0de``.

    >>> is_part_name("train-000000.7d41c0de"), is_part_name("notes")
    (True, False)
    """
    return isinstance(name, str) and len(name) <= _MOST_NAME_CHARACTERS and _PART_NAME.fullmatch(name) is not None


def is_remains_of_part(name: str, objects: Iterable[str]) -> bool:
    """Whether a group without a document is what a killed deletion left of a part, by its name and all of its objects.

    >>> is_remains_of_part("a.7d41c0de", ["key/c/0", "frames/zarr.json"]), is_remains_of_part("a.7d41c0de", ["key.txt"])
    (True, False)
    """
    objects = [each for each in objects if not each.startswith(".")]
    return is_part_name(name) and bool(objects) and all(map(is_object_name, objects))


def part_stem(shard: str) -> str:
    """Readable head of a part's name: the shard's own name in characters that every store can hold.

    >>> part_stem("en/wds-audio-train-000000.tar")
    'en-wds-audio-train-000000'
    """
    stem = re.sub(r"\.tar(\.gz)?$", "", shard)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[-80:].strip("-.") or "shard"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIdentity:
    """What tells one state of a shard from another.

    ``mtime_ns`` is of a local file, ``etag`` of an object; ``sha256`` is of the bytes, taken while they were encoded.
    """

    name: str
    size: int
    mtime_ns: int | None = None
    etag: str | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class ObjectSeal:
    """Size in bytes and turned CRC-32C (`codecs.seal_crc32c`) of one stored object, as it was handed to the store."""

    size: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Which process is writing a part that has no commit record yet. `featstore.store.liveness` judges if it lives.

    ``boot_id``, ``pid_namespace``, ``pid`` and ``process_started`` identify a process exactly; where a system does not
    tell the first two they are None, and so they are in documents of older versions. ``writer`` is a random number of
    the process. ``host`` and ``began_at`` are for display.
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
        """Read it from a document; DamagedDocument where a field is missing, unknown or of the wrong type."""
        try:
            writing = cls(**raw)
        except TypeError as error:
            raise DamagedDocument(f"its writer is not of format {FORMAT_VERSION}: {error}") from error
        whole = (writing.pid, *(() if writing.process_started is None else (writing.process_started,)))
        if not all(type(number) is int for number in whole) or not 0 < writing.pid < 1 << 31:
            raise DamagedDocument(f"its writer is not of format {FORMAT_VERSION}: {writing.pid!r} is no process id")
        return writing


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One shard's share of a part: the windows that follow those of the member before it.

    A part that an extraction wrote has one member; one that `compact_store` made of many has as many.
    """

    shard: ShardIdentity
    clips: int
    windows: int
    frames: int
    audio_seconds: float
    skipped: tuple[SkippedClip, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The commit record of a part: its members, what every object must look like, and how it came to be.

    ``part`` is the name of the part's group. ``objects`` maps each object of the part, its own group document apart,
    to its seal; it is empty in a record that was read from a catalogue. ``generation`` is greater than that of every
    part that this one was made to replace; 0, which is not written down, where there was none.
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
        """What decides between two parts that hold one shard: the greatest counts.

        The time decides only between writers that saw the same parts; no clock can hide a part from its successor.
        """
        return (self.generation, self.committed_at, self.part)

    @property
    def windows(self) -> int:
        """Rows of the part's arrays."""
        return sum(member.windows for member in self.members)

    @property
    def frames(self) -> int:
        """Rows of its frames."""
        return sum(member.frames for member in self.members)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, as it stands in the part's group document."""
        seals = {name: [entry.size, entry.crc32c] for name, entry in sorted(self.objects.items())}
        return {**self.as_catalogue_json(), "objects": seals}

    def as_catalogue_json(self) -> dict[str, Any]:
        """The same without the seals, which only `verify` needs."""
        members = [_member_as_json(member) for member in self.members]
        flat = {**_flat(self), "members": members, "versions": dict(self.versions), "objects": {}}
        if not self.generation:
            del flat["generation"]
        return flat

    @classmethod
    def from_json(cls, raw: object, *, part: str | None = None) -> Commit:
        """Inverse of `as_json`. Fields of a later featstore are ignored.

        Parameters
        ----------
        raw : object
            The JSON value, as it was read: nothing about it is believed.
        part : str, optional
            Name of the group that the record was read from, which it must bear.

        Raises
        ------
        DamagedDocument
            A field is missing or breaks its rule, or the record is of another part.
        """
        checked = check_fields(raw, _COMMIT_RULES, of="commit record")
        if part is not None and checked["part"] != part:
            raise DamagedDocument(f"its commit record is of another part, {checked['part']}")
        members = tuple(_member_from_json(member) for member in checked["members"])
        objects = {name: _seal_from_json(name, entry) for name, entry in checked["objects"].items()}
        generation = checked.get("generation", 0)
        if not _is_count(generation):
            raise DamagedDocument(f"its commit record has a value that is not allowed: generation = {generation!r}")
        known = {name: checked[name] for name in _COMMIT_RULES}
        known |= {"members": members, "objects": objects, "generation": generation}
        return cls(**known)


def _flat(record: Commit | Member | ShardIdentity) -> dict[str, Any]:
    """Fields and their values; `dataclasses.asdict` copies to the bottom, ten times as slowly."""
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
    """One entry of ``skipped``: a pair, or a triple where the clip was too long."""
    if not (
        isinstance(raw, list) and len(raw) in (2, 3) and all(map(is_text, raw[:2])) and all(map(is_amount, raw[2:]))
    ):
        raise DamagedDocument("its list of skipped clips holds something else than key, reason and perhaps seconds")
    return SkippedClip(shard=shard, key=raw[0], reason=raw[1], seconds=raw[2] if len(raw) == 3 else None)


def _seal_from_json(name: object, raw: object) -> ObjectSeal:
    if not is_object_name(name):
        raise DamagedDocument(f"its commit record names an object that no part has: {repr(name)[:80]}")
    if not (isinstance(raw, list) and len(raw) == 2 and all(map(_is_count, raw)) and raw[1] < 1 << 32):
        raise DamagedDocument(f"its commit record has no size and checksum for {name}")
    return ObjectSeal(*raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One shard's rows of the part that counts for it: windows [start, start + member.windows)."""

    commit: Commit
    member: Member
    start: int


def counted_segments(commits: Iterable[Commit]) -> tuple[Segment, ...]:
    """The rows that a reader takes: one part per shard, the greatest by `Commit.order`, in order of shard name."""
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
    """Read the recipe of an encoder's group; DamagedDocument where it is not one.

    A field that this featstore does not know is refused, for it may decide the numbers.
    """
    checked = check_fields(raw, _RECIPE_RULES, of="recipe")
    check_fields(checked, {name: rule for name, rule in _LATER_RECIPE_RULES.items() if name in checked}, of="recipe")
    if unknown := checked.keys() - _RECIPE_RULES.keys() - _LATER_RECIPE_RULES.keys():
        raise DamagedDocument(f"its recipe has a field that this featstore does not know: {sorted(unknown)[0]}")
    recipe = Recipe(**checked)
    try:
        recipe.fingerprint  # noqa: B018  (of an identity that is no canonical JSON there is none)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedDocument(f"its recipe cannot be hashed: {error}") from error
    return recipe
