"""``hf:`` specs: what is loaded, what it is called, what is never run, and the errors when nothing can be loaded."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import save

from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.errors import EncoderError, FeatstoreError, UsageError

SETTINGS: dict[str, Any] = {
    "padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": "soxr-HQ", "format_version": 1
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in ("wav2vec2-group", "whisper", "clap"):
        save(family, root / family)
    return root


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(saved / "wav2vec2-group", tmp_path / "wav2vec2-group")


def why(spec: str | Path, kind: type[FeatstoreError] = EncoderError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load_encoder(f"hf:{spec}", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def fingerprint(encoder: Encoder, output: int = 0, **changes: Any) -> str:
    return encoder.recipe(**{**SETTINGS, **changes}, output=encoder.outputs[output]).fingerprint


def test_the_name_is_the_last_part_of_the_path_in_characters_that_a_store_takes(model: Path) -> None:
    assert load_encoder(f"hf:{model}").name == "wav2vec2-group"
    assert load_encoder(f"hf:{model}/").name == "wav2vec2-group"
    assert load_encoder(f"hf:{model.rename(model.parent / '.my model@2')}").name == "my-model-2"


def test_of_whisper_only_the_encoder_half_is_kept(saved: Path) -> None:
    names = load_encoder(f"hf:{saved / 'whisper'}").module.state_dict()
    assert names
    assert not [name for name in names if "decoder" in name]


def test_loading_leaves_the_global_generator_and_the_bars_of_transformers_alone(model: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_encoder(f"hf:{model}")
    assert torch.equal(torch.rand(3), expected)
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_the_layer_of_a_spec_is_the_layer_of_the_option(model: Path) -> None:
    by_spec = load_encoder(f"hf:{model}#layer=2")
    by_option = load_encoder(f"hf:{model}", layers=[None, 2])
    assert by_spec.recipe(**SETTINGS).group_name == by_option.recipe(**SETTINGS, output=by_option.outputs[1]).group_name
    assert by_spec.recipe(**SETTINGS).encoder == "wav2vec2-group.layer2"
    assert by_option.spec_of(by_option.outputs[1]) == f"hf:{model}#layer=2"


def test_last_is_what_no_layer_is(model: Path) -> None:
    plain = load_encoder(f"hf:{model}").recipe(**SETTINGS)
    assert load_encoder(f"hf:{model}#layer=last").recipe(**SETTINGS) == plain
    assert load_encoder(f"hf:{model}", layers=[None]).recipe(**SETTINGS) == plain
    assert load_encoder(f"hf:{model}#layer=3").recipe(**SETTINGS) != plain  # the last block, before what follows it


# what the fingerprint changes with, and what not


def test_the_fingerprint_is_the_same_wherever_the_model_lies(model: Path, tmp_path: Path) -> None:
    before = load_encoder(f"hf:{model}")
    moved = load_encoder(f"hf:{shutil.copytree(model, tmp_path / 'elsewhere' / model.name)}")
    assert fingerprint(before) == fingerprint(moved)
    assert str(tmp_path) not in json.dumps(before.recipe(**SETTINGS).as_json())


def test_a_model_under_another_name_is_the_same_encoder_by_another_name(model: Path, tmp_path: Path) -> None:
    before = load_encoder(f"hf:{model}").recipe(**SETTINGS)
    renamed = load_encoder(f"hf:{model.rename(tmp_path / 'elsewhere')}").recipe(**SETTINGS)
    assert replace(renamed, encoder=before.encoder) == before
    assert (renamed.encoder, renamed.fingerprint) == ("elsewhere", before.fingerprint)


def test_one_bit_of_one_weight_changes_it(model: Path) -> None:
    before = fingerprint(load_encoder(f"hf:{model}"))
    weights = load_file(model / "model.safetensors")
    name = sorted(weights)[3]
    flat = weights[name].view(-1)
    flat[0] = torch.nextafter(flat[0], flat[0] + 1)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(load_encoder(f"hf:{model}")) != before


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"layer_norm_eps": 1e-3}),
        ("config.json", {"hidden_act": "relu"}),
        ("preprocessor_config.json", {"do_normalize": False}),
        ("preprocessor_config.json", {"return_attention_mask": True}),
    ],
)
def test_what_a_configuration_decides_changes_it(file: str, change: dict[str, Any], model: Path) -> None:
    before = fingerprint(load_encoder(f"hf:{model}"))
    edit(model / file, **change)
    assert fingerprint(load_encoder(f"hf:{model}")) != before


def test_what_a_configuration_only_tells_does_not_change_it(model: Path) -> None:
    before = fingerprint(load_encoder(f"hf:{model}"))
    edit(model / "config.json", _name_or_path="somebody/else", architectures=["Wav2Vec2ForCTC"])
    edit(model / "config.json", transformers_version="4.99.0", dtype="float32")
    edit(model / "preprocessor_config.json", processor_class="Wav2Vec2Processor")
    assert fingerprint(load_encoder(f"hf:{model}")) == before


def test_layer_pool_and_longest_window_change_it(model: Path) -> None:
    encoder = load_encoder(f"hf:{model}", layers=[None, 1, 2], pools=["mean", "max", "std"])
    prints = {fingerprint(encoder, output) for output in range(9)}
    prints |= {fingerprint(encoder, max_window_seconds=seconds) for seconds in (5.0, 6.0)}
    assert len(prints) == 11


def test_a_limit_above_the_encoders_own_changes_nothing(saved: Path) -> None:
    encoder = load_encoder(f"hf:{saved / 'whisper'}")
    assert encoder.longest_window_seconds(None) == encoder.longest_window_seconds(9.0) == 2.0
    assert fingerprint(encoder, max_window_seconds=9.0) == fingerprint(encoder)
    assert fingerprint(encoder, max_window_seconds=1.0) != fingerprint(encoder)


# weights: tensors, and nothing that runs


def as_bin(model: Path, content: Any = None) -> Path:
    weights = model / "model.safetensors"
    torch.save(load_file(weights) if content is None else content, model / "pytorch_model.bin")
    weights.unlink()
    return model


def test_a_pickle_of_tensors_alone_is_read(model: Path) -> None:
    before = fingerprint(load_encoder(f"hf:{model}"))
    assert fingerprint(load_encoder(f"hf:{as_bin(model)}")) == before


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_that_holds_code_is_refused_and_not_run(model: Path, tmp_path: Path) -> None:
    message = why(as_bin(model, {"weight": Bomb(tmp_path / "ran")}))
    assert "pickle" in message
    assert "safetensors" in message
    assert not (tmp_path / "ran").exists()
    (tmp_path / "proof.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    pickle.loads((tmp_path / "proof.pkl").read_bytes())
    assert (tmp_path / "ran").exists()  # it would have run


def test_weights_that_are_missing_are_reported_and_not_made_up(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "encoder.layers.1.attention.k_proj.weight" in why(model)


def test_weights_of_other_shapes_than_the_configuration_says_are_reported(model: Path) -> None:
    edit(model / "config.json", intermediate_size=32)
    message = why(model)
    assert "config.json" in message
    assert "feed_forward" in message


@pytest.mark.parametrize("content", [None, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"])
def test_a_folder_whose_weights_were_not_downloaded_is_not_told_to_be_a_folder(
    content: bytes | None, model: Path
) -> None:
    (model / "model.safetensors").unlink()
    if content is not None:
        (model / "model.safetensors").write_bytes(content)
    message = why(model)
    assert "hub" not in message


REMOTE_CODE = """
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

(Path(__file__).parent / "ran").touch()


class TheirConfig(PretrainedConfig):
    model_type = "their-model-of-a-test"


class TheirModel(PreTrainedModel):
    config_class = TheirConfig

    def __init__(self, config):
        super().__init__(config)
        self.lift = torch.nn.Linear(320, 6)
        self.post_init()

    def forward(self, input_values, output_hidden_states=False):
        steps = input_values[:, : input_values.shape[1] // 320 * 320].unflatten(1, (-1, 320))
        return BaseModelOutput(last_hidden_state=self.lift(steps))
"""


def test_code_that_comes_with_a_model_is_run_only_when_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "theirs.py").write_text(REMOTE_CODE)
    auto_map = {"AutoConfig": "theirs.TheirConfig", "AutoModel": "theirs.TheirModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "their-model-of-a-test", "auto_map": auto_map}))
    weights = {"lift.weight": torch.ones(6, 320), "lift.bias": torch.zeros(6)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)

    assert "--trust-remote-code" in why(folder)
    assert not list(tmp_path.rglob("ran"))
    encoder = load_encoder(f"hf:{folder}", trust_remote_code=True)
    assert (encoder.facts.dim, encoder.facts.hop_seconds, encoder.facts.layers) == (6, 0.02, None)
    folder = folder.rename(tmp_path / "under-another-name")
    assert fingerprint(load_encoder(f"hf:{folder}", trust_remote_code=True)) == fingerprint(encoder)
    (folder / "theirs.py").write_text(REMOTE_CODE.replace("self.lift(steps)", "self.lift(2 * steps)"))
    assert fingerprint(load_encoder(f"hf:{folder}", trust_remote_code=True)) != fingerprint(encoder)


@pytest.mark.parametrize("where", [None, "audio_config"])
def test_a_kernel_of_the_hub_is_code_too(model: Path, where: str | None) -> None:
    config = json.loads((model / "config.json").read_text())
    asks = {"attn_implementation": "some-body/kernel"}
    (model / "config.json").write_text(json.dumps({**config, **(asks if where is None else {where: asks})}))
    assert "some-body/kernel" in why(model)
    (model / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager"}))
    assert load_encoder(f"hf:{model}").facts.dim


# what cannot be loaded


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("spec", ["/no/such/folder", "./nowhere", "a/b/c", ""])
def test_a_folder_that_is_not_there_is_reported(spec: str) -> None:
    assert "no model folder" in why(spec)


def test_a_file_is_no_folder(model: Path) -> None:
    assert "folder" in why(model / "config.json")


def test_a_folder_without_a_model_is_reported(tmp_path: Path) -> None:
    assert "no config.json" in why(tmp_path)


def test_a_model_without_a_feature_extractor_is_reported(model: Path) -> None:
    (model / "preprocessor_config.json").unlink()
    assert "feature extractor" in why(model)


def test_a_model_of_text_is_reported(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    assert "preprocessor_config.json" in why(tmp_path / "bert")


def test_a_type_that_transformers_does_not_know_is_reported(model: Path) -> None:
    edit(model / "config.json", model_type="wav2vec9")
    assert "'wav2vec9'" in why(model)


@pytest.mark.parametrize(
    ("options", "kind", "part"),
    [
        ({"layers": [4]}, EncoderError, "layers 0 to 3 and last: got 4"),
        ({"pools": ["median"]}, UsageError, "mean, max, std: got 'median'"),
        ({"pools": ["max", "max"]}, UsageError, "twice"),
        ({"layers": [1, 1]}, UsageError, "twice"),
        ({"arguments": {"x": 1}}, EncoderError, "no --encoder-arg"),
    ],
)
def test_an_output_that_is_not_there_is_reported(options: Any, kind: Any, part: str, model: Path) -> None:
    assert part in why(model, kind, **options)


@pytest.mark.parametrize("layer", ["first", "-1", "1.5", ""])
def test_a_layer_that_is_no_number_is_reported(layer: str, model: Path) -> None:
    assert "#layer=" in why(f"{model}#layer={layer}", UsageError)


def test_a_layer_is_said_once(model: Path) -> None:
    assert "once" in why(f"{model}#layer=1", UsageError, layers=[2])


def test_an_encoder_of_one_vector_has_no_layers_and_nothing_to_pool(saved: Path) -> None:
    assert "no layers" in why(saved / "clap", layers=[1])
    assert "--pool" in why(saved / "clap", pools=["mean", "std"])


def test_a_name_beside_a_folder_that_is_there_is_a_path(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent.parent)
    assert "no model folder" in why(f"{model.parent.name}/wav2vec2")


def test_without_transformers_one_line_names_the_remedy(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'featstore[hf]'" in why(model)


def test_a_hub_name_without_a_network_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = why("facebook/wav2vec2-base")
    assert "hf:facebook/wav2vec2-base" in message


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def point_to(address: str) -> None:
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )

    return point_to


def test_a_hub_that_cannot_be_reached_is_reported_at_once(hub: Callable[[str], None]) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        hub(f"http://127.0.0.1:{unheard.getsockname()[1]}")
        began = time.monotonic()
        assert "(ConnectError" in why("facebook/wav2vec2-base")
    assert time.monotonic() - began < 10.0


def test_a_name_that_the_hub_does_not_know_is_reported_as_such(hub: Callable[[str], None], tmp_path: Path) -> None:
    class Unknown(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, *said: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Unknown) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        try:
            assert "facebook/wav2vec3" in why("facebook/wav2vec3")
        finally:
            server.shutdown()


def test_a_model_that_was_downloaded_before_needs_no_hub(
    model: Path, hub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own layout of its cache: files of a commit, and which commit is main."""
    cache = tmp_path / "cache"
    commit = "0" * 40
    snapshot = cache / "models--somebody--wav2vec2-group/snapshots" / commit
    shutil.copytree(model, snapshot)
    (cache / "models--somebody--wav2vec2-group/refs").mkdir()
    (cache / "models--somebody--wav2vec2-group/refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        hub(f"http://127.0.0.1:{unheard.getsockname()[1]}")
        began = time.monotonic()
        by_name = load_encoder("hf:somebody/wav2vec2-group")
    assert time.monotonic() - began < 10.0  # transformers by itself tries for a minute
    assert fingerprint(by_name) == fingerprint(load_encoder(f"hf:{model}"))
    assert fingerprint(by_name) == fingerprint(load_encoder(f"hf:{snapshot}"))
