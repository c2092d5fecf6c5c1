"""Specs of encoders have one parser, and constructor arguments that are stored hold no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.encoders import load_encoder, parse_spec
from featstore.encoders.specs import looks_secret, spec_with_layer
from featstore.errors import EncoderError, FeatstoreError, UsageError
from handmade import XARES_ENCODER


@pytest.mark.parametrize(
    ("text", "scheme", "name", "class_name", "layer"),
    [
        ("logmel", "built-in", "logmel", "", None),
        ("mfcc#layer=last", "built-in", "mfcc", "", None),
        ("hf:a/b#layer=12", "hf", "a/b", "", 12),
        ("hf:/models/logmel", "hf", "/models/logmel", "", None),
        ("hf:folder/evil.py", "hf", "folder/evil.py", "", None),
        ("dasheng:base", "dasheng", "base", "", None),
        ("./my.py", "file", "./my.py", "", None),
        ("a:b/my.py:Mine#layer=0", "file", "a:b/my.py", "Mine", 0),
        ("pack.age:Mine", "module", "pack.age", "Mine", None),
    ],
)
def test_a_spec_is_taken_apart(text: str, scheme: str, name: str, class_name: str, layer: int | None) -> None:
    spec = parse_spec(text)
    assert (spec.scheme, spec.name, spec.class_name, spec.layer) == (scheme, name, class_name, layer)
    assert spec.runs_code == (scheme in ("file", "module"))


@pytest.mark.parametrize(
    "text",
    [
        "logmel#layer=evil.py#layer=0",
        "logmel#layer=0#layer=0",
        "#layer=1#layer=2",
        "logmel#layer=",
        "logmel#layer=-1",
        "logmel#layer=٣",
        "logmel#layer=" + "9" * 5000,
        "logmel#layer=evil.py",
    ],
)
def test_a_layer_is_one_number(text: str) -> None:
    with pytest.raises(UsageError):
        parse_spec(text)


@pytest.mark.parametrize("text", ["", "logmel ", " logmel", "logmell", "#layer=3", "../up:Encoder", "logmel\n", "hf"])
def test_what_is_of_no_form_is_refused(text: str) -> None:
    with pytest.raises(EncoderError):
        parse_spec(text)


@given(st.text(alphabet="logmefc:/.py#ayr=03lst-_ ", max_size=40))
def test_whatever_is_parsed_is_read_the_same_from_what_is_stored_of_it(text: str) -> None:
    try:
        spec = parse_spec(text)
    except FeatstoreError:
        return
    assert "#layer=" not in spec.base
    assert parse_spec(spec_with_layer(spec.base, spec.layer)) == spec


# --- arguments --------------------------------------------------------------------------------------------------------

SECRETS: list[tuple[str, Any]] = [
    ("api_key", "abc"),
    ("apiKey", "abc"),
    ("API_KEY", "abc"),
    ("token", "abc"),
    ("hf_token", "abc"),
    ("accessToken", "abc"),
    ("auth_tokens", "abc"),
    ("password", 123456),
    ("db_password", "abc"),
    ("client_secret", "abc"),
    ("credentials", "abc"),
    ("secret_key", "abc"),
    ("where", "sk-proj-abcdefghij0123456789"),
    ("where", "hf_abcdefghijklmnopqrstuvwxyz"),
    ("where", "AKIAIOSFODNN7EXAMPLE"),
    ("where", "ghp_abcdefghij0123456789abcdefghij012345"),
    ("where", "https://user:pass@host/model"),
    ("where", "s3://KEY:SECRET@bucket/model"),
    ("where", "https://host/m?X-Amz-Signature=0123456789abcdef"),
    ("where", "-----BEGIN RSA PRIVATE KEY-----\nabc"),
]
HARMLESS: list[tuple[str, Any]] = [
    ("tokenizer", "facebook/wav2vec2-base"),
    ("max_tokens", 512),
    ("token_dim", 768),
    ("num_tokens", 8),
    ("token", 3),
    ("pad_token", "<pad>"),
    ("cls_token", True),
    ("use_auth_token", False),
    ("user_token", "<|user|>"),
    ("key", "audio"),
    ("key_dim", 64),
    ("keys", ["a", "b"]),
    ("password_length", 8),
    ("api_key_env", "MY_KEY"),
    ("token_path", "/etc/token"),
    ("api_key", None),
    ("api_key", ""),
    ("secretary", "abc"),
    ("monkey", "abc"),
    ("hf_name", "hf_hub"),
    ("sk", "sk-learn-contrib-estimators"),
    ("where", "https://host:8080/model"),
    ("where", "hf:facebook/wav2vec2-base"),
    ("where", "s3://bucket/a@b:c"),
    ("sha256", "ab" * 32),
]


@pytest.mark.parametrize(("name", "value"), SECRETS)
def test_what_looks_like_a_secret_is_refused_and_not_repeated(tmp_path: Path, name: str, value: Any) -> None:
    assert looks_secret(name, value)
    path = tmp_path / "mine.py"
    path.write_text(XARES_ENCODER)
    for arguments in ({name: value}, {"options": {name: value}}, {"options": [{"deep": {name: value}}]}):
        with pytest.raises(EncoderError, match="environment") as caught:
            load_encoder(str(path), arguments=arguments)
        assert str(value) not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), HARMLESS)
def test_what_only_resembles_a_secret_is_taken(name: str, value: Any) -> None:
    assert not looks_secret(name, value)


@pytest.mark.parametrize(
    "arguments", [{"mels": 0}, {"mels": 10**9}, {"mels": "64"}, {"mels": True}, {"mels": 1.5}, {"mels": [64]}, {"x": 1}]
)
def test_built_ins_take_sizes_alone(arguments: dict[str, Any]) -> None:
    with pytest.raises(EncoderError):
        load_encoder("logmel", arguments=arguments)
    assert load_encoder("logmel", arguments={"mels": 64}).facts.dim == 64
