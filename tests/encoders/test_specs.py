"""Specs of encoders have one parser, and constructor arguments that are stored hold no secret."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.encoders import load_encoder, parse_spec
from featstore.encoders.spec_hints import hint_for
from featstore.encoders.specs import looks_secret, parse_layers, spec_with_layer
from featstore.errors import EncoderError, FeatstoreError, UsageError
from handmade import XARES_ENCODER, Run


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
        ("./my.py:Mine.make", "file", "./my.py", "Mine.make", None),
        ("pack.age:Mine.make#layer=1", "module", "pack.age", "Mine.make", 1),
    ],
)
def test_a_spec_is_taken_apart(text: str, scheme: str, name: str, class_name: str, layer: int | None) -> None:
    spec = parse_spec(text)
    assert (spec.scheme, spec.name, spec.class_name, spec.layer) == (scheme, name, class_name, layer)


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


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_layers", "layers"),
    [
        ("3,6,last", (3, 6, None)),
        ("0-3,6,last", (0, 1, 2, 3, 6, None)),
        (" 2 , 4-4 ", (2, 4)),
        ("all", ("all",)),
        ("last,all", (None, "all")),
        ([3, None, "5-6"], (3, None, 5, 6)),
        (["all", "last"], ("all", None)),
        ([np.int64(3)], (3,)),
    ],
)
def test_layers_are_numbers_ranges_last_and_all(given_layers: Any, layers: tuple[object, ...]) -> None:
    assert parse_layers(given_layers) == layers


@pytest.mark.parametrize(
    "wrong",
    [
        *("", ",", "x", "1,", "1-", "-1", "3-1", "1--2", "1-2-3", "0-99999", "٣", "1,1", "0-3,2", "all,1", "last,last"),
        *("all,all", [1, 1], [True], [1.0], [None, "last"], ["all", 0], ["1,2"]),
    ],
)
def test_what_is_no_selection_of_layers_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError) as caught:
        parse_layers(wrong)
    assert "\n" not in str(caught.value)


# --- hints ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what users name by mistake, without a scheme."""
    files = {
        "w2v/config.json": '{"model_type": "wav2vec2"}',
        "plain/config.json": "{}",
        "broken/config.json": "{",
        "st/modules.json": "[]",
        "empty/notes.txt": "",
        "heard_idt/__init__.py": "raise SystemExit\ndef load_model(w=''): ...\ndef get_scene_embeddings(a, m): ...\n",
        "heard_idt/deep/__init__.py": "raise SystemExit",
        "heard_idt/deep/api.py": "from ..x import load_model\nfrom ..y import scenes as get_scene_embeddings\n",
        "module_idt.py": "raise SystemExit\nclass Small: ...\nclass MyEncoder: ...\n",
        "my.encoder.py": "",
        "notes.txt": "",
        "model.onnx": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("logmels", "mean logmel?"),
        ("LogMel", "mean logmel?"),
        ("mfccs", "mean mfcc?"),
        ("w2v", "hf:w2v"),
        ("./w2v", "hf:./w2v"),
        ("w2v#layer=3", "hf:w2v"),
        ("facebook/wav2vec2-base", "hf:facebook/wav2vec2-base"),
        ("st", "st:st"),
        ("model.onnx", "onnx:model.onnx"),
        ("gone.pt", "torchscript:gone.pt; there is no file gone.pt"),
        ("a/b.PTH", "torchscript:a/b.PTH"),
        ("a/b.ts", "torchscript:a/b.ts"),
        ("a/b.pt2", "torchscript:a/b.pt2"),
        ("heard_idt", "hear:heard_idt"),
        ("heard_idt.deep.api", "hear:heard_idt.deep.api"),
        ("module_idt", "module_idt:MyEncoder"),
        ("./module_idt", "./module_idt.py"),
        ("my.encoder", "package.module"),
        ("./my.encoder", "./my.encoder.py"),
        ("plain", "model_type"),
        ("broken", "config.json"),
        ("empty", "config.json"),
        ("notes.txt", "Python file"),
        ("huggingface:facebook/wav2vec2-base", "hf:facebook/wav2vec2-base"),
        ("HF:a/b-c", "hf:a/b-c"),
        ("dasheg:0.6b", "dasheng:0.6b"),
    ],
)
def test_what_is_no_spec_is_answered_with_what_it_may_mean(text: str, hint: str, here: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        parse_spec(text)
    message = str(caught.value)
    assert hint in message
    assert "\n" not in message


def test_a_hint_imports_nothing(here: Path) -> None:
    before = set(sys.modules)
    for text in ("heard_idt", "heard_idt.deep.api", "module_idt", "no_such_idt", "no.such.idt", "os.path", "json"):
        with pytest.raises(EncoderError):
            parse_spec(text)
    assert not [name for name in set(sys.modules) - before if "idt" in name]


@given(st.text(max_size=60))
def test_a_hint_never_fails(text: str) -> None:
    hint_for(text, built_in=("logmel", "mfcc"))


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


@pytest.mark.parametrize("spec", ["~nosuch/x.onnx", "./~nosuch", "hf:~nosuch/x", "st:~nosuch/x", "onnx:~nosuch/x.onnx"])
def test_the_home_of_an_unknown_user_is_a_path_that_does_not_exist(spec: str, run: Run) -> None:
    found = run("check", spec)
    assert found.code == 1
    assert found.err.startswith("featstore: ")
    assert found.err.count("\n") == 1
