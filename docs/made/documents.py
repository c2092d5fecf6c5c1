"""Generate the page of the documents of a store from the records that are written and read."""

from __future__ import annotations

import json

from docs.made.markdown import code, table
from docs.made.records import Printed, record_section
from featstore.records import Recipe
from featstore.store.format import FORMAT_VERSION, Commit, Member, ShardIdentity, Writing
from featstore.store.layout import one_file_layout, plain_layout, strings_document

WORDS = {"objects": "object: relative key to list of 2, size in bytes and seal", "skipped": "list of key and reason"}
SECTIONS = (
    (Recipe, "`recipe` of an encoder's group."),
    (Commit, "`commit` of the group of a committed part."),
    (Member, "An element of `members` of a commit record."),
    (ShardIdentity, "`shard` of a member."),
    (Writing, "`writing` of the group of an uncommitted part."),
)
CLIPS, FRAMES, DIM = 1000, 125_000, 768


def documents_page() -> str:
    """Build the page: records by their location, and the documents of the arrays."""
    shown = {record for record, _ in SECTIONS}
    stored = Printed(record="", commands=(), words=WORDS)
    sections = [
        f"## {record.__name__}\n\n{where}\n\n{record_section(record, stored, shown)}" for record, where in SECTIONS
    ]
    return "\n".join(
        [
            "# Documents of a store\n",
            f"Fields of format {FORMAT_VERSION}, generated from the records that featstore writes and reads. "
            "[Store format](../store-format.md) specifies their meaning and the order of writing.\n",
            *sections,
            "## Arrays\n",
            f"Layout for a part of {CLIPS:,} clips of one window and {FRAMES:,} frames of dimension {DIM}.\n",
            table(("array", "type", "shape", "chunk", "codecs"), [_array_row(*each) for each in _arrays()]),
        ]
    )


def _arrays() -> tuple[tuple[str, bytes], ...]:
    text = strings_document(CLIPS)
    return (
        ("key", text),
        ("meta", text),
        ("start_seconds", plain_layout((CLIPS,), "float64").document()),
        ("seconds", plain_layout((CLIPS,), "float64").document()),
        ("utterance", plain_layout((CLIPS, DIM), "float32").document()),
        ("frame_offsets", plain_layout((CLIPS + 1,), "int64").document()),
        ("frames", one_file_layout((FRAMES, DIM), "float16").document()),
    )


def _array_row(name: str, raw: bytes) -> tuple[str, ...]:
    document = json.loads(raw)
    chunk, codecs = document["chunk_grid"]["configuration"]["chunk_shape"], document["codecs"]
    words = ", ".join(code(codec["name"]) for codec in codecs)
    if codecs[0]["name"] == "sharding_indexed":
        inner = codecs[0]["configuration"]
        names = ", ".join(code(codec["name"]) for codec in inner["codecs"])
        words += f" of {names}, in chunks of {_shape(inner['chunk_shape'])}"
    return code(name), document["data_type"], _shape(document["shape"]), _shape(chunk), words


def _shape(shape: list[int]) -> str:
    return " x ".join(f"{n:,}" for n in shape)
