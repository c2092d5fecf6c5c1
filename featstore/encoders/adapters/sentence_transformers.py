"""Loads a sentence-transformers model that takes audio. Only this module imports sentence_transformers.

It is an optional library: ``pip install featstore[st]``. Weights are read from safetensors, or from a pickle that
contains only tensors. Code that comes with a model runs only with ``--trust-remote-code``.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.adapters.windows import WHOLE_WINDOW_MS, in_row_order, rows_by_length, shortest_window
from featstore.encoders.contract import LoadedModel
from featstore.encoders.fingerprint import encoder_identity, tokenizer_sha256
from featstore.encoders.user_code import code_without_loading
from featstore.errors import EncoderError
from featstore.files import expanded
from featstore.formatting import one_line
from featstore.records import sha256_of

__all__ = ["SentenceTransformerEncoder", "load_sentence_transformer"]

_NOT_DECISIVE = {"_commit_hash", "_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def load_sentence_transformer(where: str, *, trust_remote_code: bool) -> LoadedModel:
    """Load the model in a folder, or by hub name.

    Raises
    ------
    EncoderError
        sentence-transformers is missing, or the model does not exist or does not take audio.
    """
    library = _library()
    source = _source(where)
    try:
        with _quietly(), torch.random.fork_rng(devices=[]):
            model = library.SentenceTransformer(
                source,
                device="cpu",
                trust_remote_code=trust_remote_code,
                local_files_only=Path(source).is_dir() or not _hub_answers(source),
            )
    except Exception as error:
        raise EncoderError(
            f"st:{where} cannot be loaded: give the folder of a model that was saved by save_pretrained, or run where "
            f"the hub can be reached ({one_line(error, typed=True)})"
        ) from error
    if not model.supports("audio"):
        raise EncoderError(f"st:{where} does not take audio: it takes {', '.join(map(str, model.modalities))}")
    module = SentenceTransformerEncoder(model.eval(), where=where)
    identity = {**encoder_identity(module, arguments={}), "config_sha256": sha256_of(_settings(model))}
    foreign = {type(each).__module__ for each in model.modules()} & _user_modules()
    if foreign:  # code that comes with the model
        code = {each.sha256 for name in foreign for each in code_without_loading(sys.modules[name])}
        identity["model_code_sha256"] = sha256_of(sorted(code))
    return LoadedModel(
        module=module,
        name=_short_name(source),
        named_by="place",
        identity=identity,
        text_identity=lambda: _text_identity(model),
    )


class SentenceTransformerEncoder(nn.Module):
    """A sentence-transformers model: one vector for each window, and, if the model takes them, for each text.

    ``encode`` gets windows of one length at a time, so that its feature extractor pads nothing. Windows that are too
    short for the model, of less than 0.1, 0.5 or 1 s, are padded to that with silence.

    Parameters
    ----------
    model
        ``sentence_transformers.SentenceTransformer``
    where : str
        Spec without its scheme, for messages.
    """

    def __init__(self, model: Any, *, where: str) -> None:
        super().__init__()
        self.model = model
        processor = model.processor
        extractor = getattr(processor, "feature_extractor", processor)
        rate = getattr(extractor, "sampling_rate", None)
        if not isinstance(rate, int) or rate < 1:
            raise EncoderError(f"st:{where} does not state its sample rate: its processor has no sampling_rate")
        self.sampling_rate = rate
        self.hop_size_in_ms = WHOLE_WINDOW_MS
        self.output_dim = int(model.get_embedding_dimension())
        self.encode_text = self._text_vectors if model.supports("text") else None
        self._least = 1
        self._least = shortest_window(self, rate_hz=rate)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """float32 (batch, samples) -> (batch, 1, output_dim), (batch, output_dim), ones int64 (batch,)."""
        found: dict[int, Tensor] = {}
        for rows, waves in rows_by_length(audio, lengths, least=self._least):
            clips = [{"array": wave, "sampling_rate": self.sampling_rate} for wave in waves.cpu().numpy()]
            made = self.model.encode(clips, batch_size=len(clips), convert_to_tensor=True, show_progress_bar=False)
            found |= dict(zip(rows, made.float(), strict=True))
        vectors = in_row_order(found)
        return vectors[:, None], vectors, torch.ones(len(audio), dtype=torch.int64, device=vectors.device)

    def _text_vectors(self, texts: list[str]) -> Tensor:
        """Return the vectors of texts, (texts, output_dim)."""
        vectors: Tensor = self.model.encode(
            texts, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
        )
        return vectors


def _library() -> Any:
    try:
        return importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise EncoderError(
            f"st: encoders need {error.name or error}, which is not installed: pip install 'featstore[st]'"
        ) from None


def _source(where: str) -> str:
    """Return a folder's path, or a hub name."""
    folder = expanded(where)
    if where and folder.is_dir():
        if not any((folder / name).is_file() for name in ("modules.json", "config.json")):
            raise EncoderError(f"{where} is not a model folder: there is no modules.json, which save_pretrained writes")
        return str(folder.resolve())
    if not where or where.startswith((".", "/", "~")) or where.count("/") > 1 or folder.exists():
        raise EncoderError(f"there is no model folder {where!r}: --encoder st:PATH is a folder made by save_pretrained")
    return where


def _hub_answers(name: str) -> bool:
    """Return whether the hub can be reached. It is asked once; the library would retry for minutes, for each file."""
    hub = importlib.import_module("huggingface_hub")
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "modules.json"))
    except Exception as error:  # noqa: BLE001 - of any HTTP library
        return getattr(error, "response", None) is not None
    return True


def _settings(model: Any) -> dict[str, Any]:
    """Return what determines the vectors besides weights and code, without paths and hub names."""
    modules = [
        {
            "class": type(module).__qualname__,
            "settings": _plain(module.get_config_dict()) if hasattr(module, "get_config_dict") else None,
            "model": _config(getattr(module, "model", None)),
            "processor": _processor(getattr(module, "processor", None)),
        }
        for module in model
    ]
    return {
        "modules": modules,
        "truncate_dim": model.truncate_dim,
        "prompts": dict(model.prompts),
        "default_prompt_name": model.default_prompt_name,
    }


def _text_identity(model: Any) -> dict[str, Any]:
    """Return what determines the vectors of texts besides the identity of the encoder: the tokenizer."""
    tokenizer = getattr(model.processor, "tokenizer", None)
    return {} if tokenizer is None else {"tokenizer_sha256": tokenizer_sha256(tokenizer)}


def _config(model: Any) -> object:
    config = getattr(model, "config", None)
    return None if config is None else {"class": type(model).__qualname__, **_mapping(config.to_diff_dict())}


def _processor(processor: Any) -> object:
    extractor = getattr(processor, "feature_extractor", processor)
    if not hasattr(extractor, "to_dict"):
        return None
    return {"class": type(extractor).__qualname__, **_mapping(extractor.to_dict())}


def _mapping(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): _plain(each) for name, each in value.items() if name not in _NOT_DECISIVE}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _user_modules() -> set[str]:
    """Return the names of loaded modules of code that came with a model, which transformers imports as a package."""
    return {name for name in sys.modules if name.startswith("transformers_modules.")}


def _short_name(source: str) -> str:
    """Return the name of its feature sets: the last part of the path or hub name, in characters of group names."""
    cached = re.search(r"/models--(?:[^/]+--)?([^/]+)/snapshots/[^/]+$", source)
    last = cached[1] if cached else source.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", last).lstrip("._+=-") or "st"


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence progress bars and messages of the library and of transformers while a model is loaded."""
    log = importlib.import_module("transformers.utils.logging")
    loggers = [logging.getLogger(name) for name in ("sentence_transformers", "huggingface_hub")]
    shown, level, levels = log.is_progress_bar_enabled(), log.get_verbosity(), [each.level for each in loggers]
    log.disable_progress_bar()
    log.set_verbosity_error()
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, before in zip(loggers, levels, strict=True):
            each.setLevel(before)
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
