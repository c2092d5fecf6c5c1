"""Loads a transformers audio model, from a folder or by its hub name. Only this encoder module imports transformers.

transformers is an optional library: ``pip install featstore[hf]``. Weights are read from safetensors, or from a pickle
that contains only tensors (``torch.load(weights_only=True)``). Code that comes with a model runs only with
``--trust-remote-code``.
"""

from __future__ import annotations

import importlib
import logging
import pickle
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featstore.encoders.adapters.clap import ClapEncoder
from featstore.encoders.adapters.feature_extractor import OtherEncoder
from featstore.encoders.adapters.kaldi_features import WINDOW_SAMPLES, FilterBanks
from featstore.encoders.adapters.spectrogram_transformer import PatchEncoder
from featstore.encoders.adapters.text_towers import ClapText
from featstore.encoders.adapters.wav2vec2_bert import FbankEncoder
from featstore.encoders.adapters.waveform import WaveformEncoder
from featstore.encoders.adapters.whisper import WhisperEncoder
from featstore.encoders.contract import LoadedModel
from featstore.encoders.fingerprint import encoder_identity, source_sha256
from featstore.encoders.user_code import code_without_loading
from featstore.errors import EncoderError
from featstore.files import expanded
from featstore.records import sha256_of

__all__ = ["load_hf"]

_WAVEFORM = {
    "data2vec-audio",
    "hubert",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-conformer",
    "wavlm",
}
_UNUSED_WEIGHTS = re.compile(r"(^|\.)(masked_spec_embed|position_ids)$")
_EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")
_NOT_DECISIVE = {
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
}


def load_hf(where: str, *, trust_remote_code: bool) -> LoadedModel:
    """Load the model in a folder, or by hub name.

    Raises
    ------
    EncoderError
        transformers is missing, or the model does not exist or is not an audio model; the message has the fix.
    """
    transformers = _transformers()
    source = _source(where)
    with _quietly(transformers), torch.random.fork_rng(devices=[]):
        is_here = Path(source).is_dir() or _is_here_alone(where)
        _check_config(transformers, source, where, trusts=trust_remote_code, is_here=is_here)
        _check_takes_audio(source, where)
        with _told(where, "feature extractor"):
            extractor = transformers.AutoFeatureExtractor.from_pretrained(
                source, trust_remote_code=trust_remote_code, local_files_only=is_here
            )
        with _told(where, "model"):
            model, report = transformers.AutoModel.from_pretrained(
                source,
                trust_remote_code=trust_remote_code,
                local_files_only=is_here,
                weights_only=True,
                ignore_mismatched_sizes=True,  # `_check_weights` reports them by name
                dtype=torch.float32,
                output_loading_info=True,
            )
        text = None
        if model.config.model_type == "clap":
            text = _clap_text(transformers, model.eval(), report, source, trusts=trust_remote_code, is_here=is_here)
        module = _encoder(model.eval(), extractor, where, text=text)
        _check_weights(model, module, report, where)
    identity = _identity(module, model, extractor)
    earlier = None
    if type(model).__module__.split(".")[0] != "transformers":  # code that comes with the model
        earlier = {**identity, "model_source_sha256": source_sha256(type(model))}
        code = code_without_loading(sys.modules[type(model).__module__])
        identity["model_code_sha256"] = sha256_of(sorted(each.sha256 for each in code))
    return LoadedModel(
        module=module.eval(),
        name=_short_name(source),
        named_by="place",
        identity=identity,
        earlier=earlier,
        text_identity=dict if text is None else text.identity,
    )


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise EncoderError(
            f"hf: encoders need {error.name}, which is not installed: pip install 'featstore[hf]'"
        ) from None


def _source(where: str) -> str:
    """Return a folder's path, or a hub name."""
    folder = expanded(where)
    if where and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise EncoderError(f"{where} is no model folder: there is no config.json, which save_pretrained writes")
        return str(folder.resolve())
    beside_others = len(folder.parts) > 1 and folder.parent.is_dir()
    if not where or where.startswith((".", "/", "~")) or where.count("/") > 1 or folder.exists() or beside_others:
        raise EncoderError(f"there is no model folder {where!r}: --encoder hf:PATH is a folder made by save_pretrained")
    return where


def _is_here_alone(name: str) -> bool:
    """Return whether a hub name must be loaded from the download cache, because the hub cannot be reached.

    The hub is asked once. transformers would try silently for half a minute, for each file that a model may lack.
    """
    hub = importlib.import_module("huggingface_hub")
    unknown = importlib.import_module("huggingface_hub.errors").RepositoryNotFoundError
    with _told(name, "configuration"):
        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json"))
        except Exception as error:
            if isinstance(hub.try_to_load_from_cache(name, "config.json"), str):
                return True
            if isinstance(error, unknown):
                raise EncoderError(
                    f"the hub has no model {name}, or one that is not for everybody: see that the name is right, or "
                    "let `hf auth login` say who you are"
                ) from error
            raise
    return False


def _check_config(transformers: Any, source: str, where: str, *, trusts: bool, is_here: bool) -> None:
    """Check a configuration before any code that it names runs."""
    with _told(where, "configuration"):
        raw, _ = transformers.PretrainedConfig.get_config_dict(source, local_files_only=is_here)
    if (kernel := _kernel_in(raw)) is not None and not trusts:
        raise EncoderError(
            f"hf:{where} asks for the kernel {kernel!r} of the hub, which is code and would be run: take it out of "
            "config.json, or add --trust-remote-code"
        )
    kind = raw.get("model_type")
    if kind in transformers.CONFIG_MAPPING or trusts:
        return
    if "auto_map" in raw:
        raise EncoderError(
            f"hf:{where} brings code of its own, which would be run: read it, then add --trust-remote-code"
        )
    raise EncoderError(f"hf:{where} is of type {kind!r}, which transformers {transformers.__version__} does not know")


def _kernel_in(config: object) -> str | None:
    """Return the repository of an attention kernel that a configuration names, at any depth, or None."""
    if not isinstance(config, Mapping):
        return None
    for name, value in config.items():
        if "attn_implementation" in str(name):
            found = [each for each in (value.values() if isinstance(value, Mapping) else [value]) if "/" in str(each)]
            if found:
                return str(found[0])
        elif (inner := _kernel_in(value)) is not None:
            return inner
    return None


def _check_takes_audio(source: str, where: str) -> None:
    """Raise EncoderError for a folder without feature extractor settings: a text model, or an incomplete one."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in _EXTRACTOR_FILES):
        raise EncoderError(
            f"hf:{where} has no feature extractor ({_EXTRACTOR_FILES[0]}), which every model of audio brings: it is "
            "one of something else, or was not saved whole"
        )


def _clap_text(
    transformers: Any, model: Any, report: Mapping[str, Any], source: str, *, trusts: bool, is_here: bool
) -> ClapText | None:
    """Return the text tower of CLAP; None if the files lack its weights or its tokenizer."""
    absent = [*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if any(name.startswith("text_") and not _UNUSED_WEIGHTS.search(name) for name in absent):
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, trust_remote_code=trusts, local_files_only=is_here
        )
    except Exception:  # noqa: BLE001 - of any missing or unreadable file; the model of audio is usable without it
        return None
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):  # made without files
        return None
    return ClapText(model.text_model, model.text_projection, tokenizer=tokenizer)


def _encoder(model: Any, extractor: Any, where: str, *, text: ClapText | None) -> nn.Module:
    """Return the module that feeds audio to this family of models."""
    kind = model.config.model_type
    makes = type(extractor).__name__
    if not hasattr(extractor, "sampling_rate"):
        raise EncoderError(f"hf:{where} is no audio model: its feature extractor is a {makes}")
    if kind in _WAVEFORM and makes == "Wav2Vec2FeatureExtractor":
        return WaveformEncoder(model, extractor=extractor)
    if kind == "whisper" and makes == "WhisperFeatureExtractor" and not extractor.dither:
        return WhisperEncoder(model.get_encoder(), extractor=extractor)
    if kind == "audio-spectrogram-transformer" and makes == "ASTFeatureExtractor":
        return PatchEncoder(model, extractor=extractor, banks=_filter_banks(extractor, "hann"))
    if kind == "wav2vec2-bert" and makes == "SeamlessM4TFeatureExtractor":
        return FbankEncoder(model, extractor=extractor, banks=_filter_banks(extractor, "povey"))
    if kind == "clap" and makes == "ClapFeatureExtractor":
        return ClapEncoder(model.audio_model, model.audio_projection, extractor=extractor, text=text)
    half = model.get_encoder() if model.config.is_encoder_decoder else model
    with _told(where, "model"):
        return OtherEncoder(half, extractor=extractor)


def _filter_banks(extractor: Any, window: str) -> FilterBanks:
    """Build Kaldi's filter banks with the settings of a feature extractor and a window of that name."""
    audio_utils = importlib.import_module("transformers.audio_utils")
    filters = audio_utils.mel_filter_bank(
        num_frequency_bins=257,
        num_mel_filters=extractor.num_mel_bins,
        min_frequency=20,
        max_frequency=extractor.sampling_rate // 2,
        sampling_rate=extractor.sampling_rate,
        norm=None,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    )
    shape = audio_utils.window_function(WINDOW_SAMPLES, window, periodic=False)
    return FilterBanks(filters=torch.from_numpy(filters).double(), window=torch.from_numpy(shape).double())


def _check_weights(model: nn.Module, module: nn.Module, report: Mapping[str, Any], where: str) -> None:
    """Raise EncoderError for weights that the files lack, which transformers initialises at random."""
    used = {id(weight) for weight in (*module.parameters(), *module.buffers())}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def matter(names: Iterable[str]) -> list[str]:
        return sorted(
            name
            for name in names
            if not _UNUSED_WEIGHTS.search(name) and (name not in named or id(named[name]) in used)
        )

    other = matter(name for name, *_ in report["mismatched_keys"])
    if other:
        raise EncoderError(
            f"hf:{where} has {len(other)} weights of other shapes than its config.json says, {other[0]} among them: "
            "the two are of different models"
        )
    missing = matter(report["missing_keys"])
    if missing:
        raise EncoderError(
            f"hf:{where} lacks {len(missing)} weights of {type(model).__name__}, {missing[0]} among them: it holds "
            "another kind of model, or was not downloaded whole"
        )


def _identity(module: nn.Module, model: Any, extractor: Any) -> dict[str, Any]:
    """Return the identity of the encoder, without paths and hub names."""
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in _NOT_DECISIVE}
    settings = {name: value for name, value in extractor.to_dict().items() if _is_plain(value)}
    settings.pop("processor_class", None)
    identity = encoder_identity(module, arguments={})
    decides = {
        "model": type(model).__name__,
        "config_sha256": sha256_of(_plain(config)),
        "feature_extractor_sha256": sha256_of({"class": type(extractor).__name__, **settings}),
    }
    return {**identity, **decides}


def _plain(value: object) -> object:
    """Convert a configuration to JSON; its keys can be numbers."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items() if name not in _NOT_DECISIVE}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if _is_plain(value) else str(value)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _short_name(source: str) -> str:
    """Return the name of its feature sets: the last part of the path or hub name, in characters of group names.

    A folder of the hub's cache is named after a commit; its model name is in a parent folder.
    """
    cached = re.search(r"/models--(?:[^/]+--)?([^/]+)/snapshots/[^/]+$", source)
    last = cached[1] if cached else source.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", last).lstrip("._+=-") or "hf"


@contextmanager
def _told(where: str, what: str) -> Iterator[None]:
    """Report any error of transformers in one line."""
    try:
        yield
    except EncoderError:
        raise
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"the weights of hf:{where} are a pickle that holds more than tensors, which is never run: convert them to "
            "safetensors where you trust them"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())
        shortened = reason if len(reason) <= 200 else f"{reason[:197]}..."
        advice = (
            "see that the folder is whole, as save_pretrained or a finished download leaves it"
            if expanded(where).is_dir()
            else "give the folder of a model that was downloaded before, as in hf:/path/to/model, or run where the hub "
            "can be reached"
        )
        raise EncoderError(
            f"the {what} of hf:{where} cannot be loaded: {advice} ({type(error).__name__}: {shortened})"
        ) from error


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """Silence progress bars, warnings about unused heads, and retries of the hub."""
    log, hub = transformers.utils.logging, logging.getLogger("huggingface_hub")
    shown, level, hub_level = log.is_progress_bar_enabled(), log.get_verbosity(), hub.level
    log.disable_progress_bar()
    log.set_verbosity_error()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(hub_level)
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
