"""A store that format 1 wrote is read as it always was, whatever featstore writes now."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore.store.format import DamagedDocument, seal, unseal
from featstore.store.verify import verify_store

FIXTURE = Path(__file__).with_name("format-1.zarr")


def test_the_store_that_was_committed_with_format_1_still_reads_number_for_number():
    store = featstore.open(str(FIXTURE))
    train, test = (store.select(encoder="tiny@f4501fa0", dataset="words", split=name) for name in ("train", "test"))
    assert train.key.tolist() == ["a.tar-0", "a.tar-1", "a.tar-2", "a.tar-3", "a.tar-4"]
    assert train.meta_json[0] == '{"label": "é2", "n": 47000}'
    assert (train.n_clips, len(train), train.frames.lengths.tolist()) == (5, 5, LENGTHS)
    assert [clip.reason for clip in train.skipped] == ["it has no samples"]
    assert hashlib.sha256(train.utterance.tobytes()).hexdigest() == UTTERANCE_SHA256
    assert hashlib.sha256(np.concatenate(list(train.frames)).tobytes()).hexdigest() == FRAMES_SHA256
    assert (test.n_clips, test.clip.tolist(), test.start_seconds.tolist()) == (1, [0, 0], [0.0, 5.0])
    assert (train.hop_seconds, train.recipe.sample_rate_hz, train.recipe.frame_dtype) == (0.02, 16000, "float16")


def test_the_store_that_was_committed_with_format_1_still_verifies():
    assert verify_store(str(FIXTURE)).sound


def test_a_document_stands_in_canonical_json_and_reads_alike_with_white_space_between() -> None:
    content = {"split": "träin", "numbers": [1.5, None, 2**60], "a": {"b": []}}
    document = seal(content)
    parsed = json.loads(document)
    words = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert words in document
    assert parsed["attributes"] == {"featstore": content, "featstore_sha256": hashlib.sha256(words).hexdigest()}
    for other in (document, json.dumps(parsed, indent=1).encode(), json.dumps(parsed, sort_keys=True).encode()):
        assert unseal(other) == content
        with pytest.raises(DamagedDocument):
            unseal(other.replace(b"1.5", b"1.6"))


LENGTHS = [3, 2, 4, 3, 6]
UTTERANCE_SHA256 = "c1647e75b7f24a0abe2e3fb519346efb1868eb977d23af6d4ea034eba081f8a2"
FRAMES_SHA256 = "648531a7db48910f75c0fafc4158e0af14f6b26c6118c8fb7d59e5dae4ce2785"
