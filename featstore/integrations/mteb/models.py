"""The models that `CachedEncoder` takes: encoders of featstore, and mteb models."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore import __version__
from featstore.errors import EncoderContractError, EncoderError, UnusableClip, UsageError, missing_extra
from featstore.extract.audio import prepare
from featstore.extract.job import DeviceEncoder, EncodeJob, EncoderCard, OutputCard, new_batcher
from featstore.extract.options import ExtractOptions, ExtractSettings
from featstore.extract.single_file import encode_clips
from featstore.extract.windows import Padding, plan_of
from featstore.formatting import one_line
from featstore.integrations.mteb.calls import Call, Clip, group_name
from featstore.integrations.mteb.identity import identity_of, precision_of
from featstore.integrations.mteb.recipe_cache import Encoded, Encoding, versions
from featstore.records import Recipe, canonical_json
from featstore.store import FORMAT_VERSION, read_encoder_groups, recipe_groups

if TYPE_CHECKING:
    from mteb.models import ModelMeta

    from featstore.encoders.canary import CanaryReading
    from featstore.encoders.encoder import Encoder

__all__ = ["FeatstoreModel", "MtebModel", "open_model"]

_SETTINGS = {
    *("device", "precision", "frame_dtype", "padding", "batch_seconds", "max_clip_seconds", "max_window_seconds"),
    *("compiled", "allow_drift"),
}
_MTEB_GROUP_SECONDS = 16.0
_GPU_GROUP_BATCHES = 16
_SIGNALS_RATE_HZ = 16_000


def open_model(encoder: Any, settings: ExtractSettings) -> FeatstoreModel | MtebModel:
    """Load what was given as the encoder of a `CachedEncoder`."""
    try:
        import mteb
        from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper
        from mteb.models.model_implementations import MODEL_REGISTRY
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise missing_extra("CachedEncoder", error, "mteb") from error
    from torch import nn

    from featstore.encoders import load_encoder
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.load import load_object

    if unknown := sorted(settings.keys() - _SETTINGS):
        raise UsageError(f"CachedEncoder has no setting {unknown[0]!r}: it has {', '.join(sorted(_SETTINGS))}")
    options = ExtractOptions(**settings)
    name = os.fspath(encoder) if isinstance(encoder, str | os.PathLike) else None
    try:
        if name in MODEL_REGISTRY:
            encoder = mteb.get_model(name)
        elif isinstance(encoder, ModelMeta):
            encoder = encoder.load_model()
    except Exception as error:
        what = name or encoder.name
        raise EncoderError(f"mteb cannot load {what}: {one_line(error, typed=True)}") from error
    if isinstance(encoder, SentenceTransformer):
        encoder = SentenceTransformerEncoderWrapper(encoder)
    if hasattr(encoder, "mteb_model_meta"):
        if missing := [each for each in ("encode", "similarity", "similarity_pairwise") if not hasattr(encoder, each)]:
            raise EncoderError(f"{type(encoder).__name__} has no embeddings: an mteb encoder must have {missing[0]}")
        if unused := sorted(settings.keys() - {"allow_drift"}):
            raise UsageError(f"{encoder.mteb_model_meta.name} is an mteb model, to which {unused[0]} does not apply")
        return MtebModel(encoder, options)
    if isinstance(encoder, Encoder):
        return FeatstoreModel(encoder, options)
    if name is not None:
        return FeatstoreModel(load_encoder(name), options)
    if isinstance(encoder, nn.Module) or callable(encoder):
        return FeatstoreModel(load_object(encoder, arguments={}, layers=(), pools=()), options)
    raise EncoderError(f"an encoder must be a spec, a module, a class or an mteb model: got {type(encoder).__name__}")


class FeatstoreModel:
    """An encoder of featstore. It has one recipe, and no text."""

    def __init__(self, encoder: Encoder, options: ExtractOptions) -> None:
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction
        from mteb.similarity_functions import cos_sim, pairwise_cos_sim

        from featstore.encoders.devices import pick_device

        if len(encoder.outputs) != 1:
            raise UsageError(f"{encoder.name} has {len(encoder.outputs)} outputs: load it with one layer and one pool")
        if options.padding == "xares":
            raise UsageError("padding 'xares' depends on the batch: use 'exact' or seconds")
        self.options = options
        self.similarity: Callable[[Any, Any], Any] = cos_sim
        self.similarity_pairwise: Callable[[Any, Any], Any] = pairwise_cos_sim
        self._encoder = encoder
        self._device_encoder = DeviceEncoder(encoder, device=pick_device(options.device))
        self.card = self._device_encoder.describe(options)
        recipe = self.card.outputs[0].recipe
        about = {
            "name": f"featstore/{recipe.encoder}",
            "revision": recipe.fingerprint,
            "modalities": ["audio"],
            "embed_dim": recipe.dim,
            "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": False,
            "n_parameters": sum(each.numel() for each in encoder.module.parameters()),
        }
        self.meta: ModelMeta = ModelMeta.create_empty(about)

    def settings_of(self, call: Call) -> str:
        """Return what the recipe has of a call: nothing."""
        if "precision" in call.kwargs:
            raise UsageError(f"{self.meta.name} takes no encode_kwargs['precision']: its embeddings are float32")
        return ""

    def encoding(self, call: Call, store_url: str) -> Encoding:  # noqa: ARG002 - as of `MtebModel`
        """Return the model itself, which has one recipe."""
        return self

    def pass_on(self, call: Call) -> NDArray[np.float32]:
        """Refuse inputs that are not audio. Raises UsageError."""
        needed = ", ".join(sorted(call.modalities)) or "no known modality"
        raise UsageError(
            f"{self.meta.name} encodes audio only, and task {call.task_metadata.name} has inputs of {needed}: run "
            "tasks of audio alone"
        )

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """See `Encoding.canary`."""
        return self._device_encoder.canary(options)

    def group_seconds(self, job: EncodeJob) -> float:
        """See `Encoding.group_seconds`: a GPU gets enough windows to fill batches of equal lengths."""
        run = self._device_encoder.start(job)
        return self._device_encoder.batch_seconds(run, job) * (_GPU_GROUP_BATCHES if run.batches_ahead else 1)

    def encode(
        self,
        clips: Sequence[Clip],
        call: Call,  # noqa: ARG002 - audio is all that is encoded
        job: EncodeJob,
    ) -> list[Encoded | UnusableClip]:
        """See `Encoding.encode`: resampled, cut into windows, padded and batched as by extraction."""
        rate_hz = self._encoder.facts.sample_rate_hz
        prepared = [self._prepared(clip, rate_hz) for clip in clips]
        run = self._device_encoder.start(job)
        encoded = iter(
            encode_clips(
                [samples for samples in prepared if not isinstance(samples, UnusableClip)],
                run=run,
                plan=plan_of(self._encoder, job.outputs[0].recipe, crop_seconds=None),
                batcher=new_batcher(
                    Padding.parse(self.options.padding),
                    budget_samples=round(self._device_encoder.batch_seconds(run, job) * rate_hz),
                    shards_ahead=0,
                ),
            )
        )
        found: list[Encoded | UnusableClip] = []
        for samples in prepared:
            if isinstance(samples, UnusableClip):
                found.append(samples)
                continue
            clip = next(encoded)
            found.append(
                Encoded(
                    starts=tuple(window.start / rate_hz for window in clip.windows),
                    seconds=tuple((window.stop - window.start) / rate_hz for window in clip.windows),
                    utterance=clip.utterance,
                )
            )
        return found

    def _prepared(self, clip: Clip, rate_hz: int) -> NDArray[np.float32] | UnusableClip:
        try:
            return prepare(
                clip.samples,
                rate_hz=clip.rate_hz,
                sample_rate_hz=rate_hz,
                max_seconds=self.options.max_clip_seconds,
            )
        except UnusableClip as reason:
            return reason


class MtebModel:
    """An mteb model.

    Its vectors may depend on the task and the type of prompt unless its metadata says ``use_instructions=False``, and
    on arguments of ``encode``: they are part of the recipe.
    """

    def __init__(self, model: Any, options: ExtractOptions) -> None:
        self.options = options
        self._model = model
        self.meta: ModelMeta = model.mteb_model_meta
        self.similarity: Callable[[Any, Any], Any] = model.similarity
        self.similarity_pairwise: Callable[[Any, Any], Any] = model.similarity_pairwise
        self._identity = identity_of(model, self.meta)

    def settings_of(self, call: Call) -> str:
        """Return what the recipe has of a call, as JSON."""
        settings: dict[str, Any] = {
            name: repr(value) for name, value in call.kwargs.items() if name not in ("batch_size", "show_progress_bar")
        }
        if self.meta.use_instructions is not False:
            prompt = None if call.prompt_type is None else str(call.prompt_type.value)
            settings["instruction"] = [call.task_metadata.name, call.hf_subset, prompt]
        return canonical_json(settings)

    def encoding(self, call: Call, store_url: str) -> Encoding:
        """Return the model under the recipe of a call."""
        settings = self.settings_of(call)
        identity = self._identity if settings == "{}" else {**self._identity, "encode": settings}
        recipe = Recipe(
            encoder=group_name(str(self.meta.name).rpartition("/")[2]),
            encoder_identity=identity,
            sample_rate_hz=_SIGNALS_RATE_HZ,
            dim=1,
            hop_seconds=1.0,
            padding="exact",
            precision=precision_of(self._model),
            frame_dtype="float16",
            resampler="mteb",
            format_version=FORMAT_VERSION,
            named_by="place",
        )
        return _MtebEncoding(self._model, recipe, call, store_url=store_url, options=self.options)

    def pass_on(self, call: Call) -> Any:
        """Encode inputs that are not audio alone, without the store."""
        return self._model.encode(
            call.inputs,
            task_metadata=call.task_metadata,
            hf_split=call.hf_split,
            hf_subset=call.hf_subset,
            prompt_type=call.prompt_type,
            **call.kwargs,
        )


class _MtebEncoding:
    """An mteb model under the recipe of a call. The dimension is that of the store, or else of the canary."""

    def __init__(self, model: Any, recipe: Recipe, call: Call, *, store_url: str, options: ExtractOptions) -> None:
        self.options = options
        self._model = model
        self._name = str(model.mteb_model_meta.name)
        self._first_call = call
        self._failure: EncoderError | None = None
        self._precision = recipe.precision
        stored = (group.recipe for group in read_encoder_groups(store_url, recipe_groups(store_url)))
        dim = next((each.dim for each in stored if replace(each, dim=1).fingerprint == recipe.fingerprint), None)
        recipe = replace(recipe, dim=self._dim() if dim is None else dim)
        self.card = EncoderCard(
            name=recipe.encoder,
            outputs=(OutputCard(recipe=recipe, earlier=None, spec=f"mteb:{self._name}"),),
            featstore=__version__,
        )

    def canary(self, options: ExtractOptions) -> CanaryReading:  # noqa: ARG002 - none applies
        return self._reading

    def group_seconds(self, job: EncodeJob) -> float:  # noqa: ARG002 - the same for each job
        return _MTEB_GROUP_SECONDS

    def encode(self, clips: Sequence[Clip], call: Call, job: EncodeJob) -> list[Encoded | UnusableClip]:
        vectors = self._vectors(call.rows.select([clip.row for clip in clips]), call)
        dim = job.outputs[0].recipe.dim
        if vectors.shape[1] != dim:
            raise EncoderContractError(f"{self._name} must return (n, {dim}) as before: got {vectors.shape}")
        return [
            Encoded(starts=(0.0,), seconds=(clip.seconds,), utterance=vector[None])
            for clip, vector in zip(clips, vectors, strict=True)
        ]

    def _vectors(self, rows: Any, call: Call) -> NDArray[np.float32]:
        """Encode rows of a `datasets.Dataset`, each as a batch of its own: float32 (rows, dim)."""
        import torch
        from torch.utils.data import DataLoader

        inputs = DataLoader(rows, batch_size=1, collate_fn=call.inputs.collate_fn)
        try:
            found = self._model.encode(
                inputs,
                task_metadata=call.task_metadata,
                hf_split=call.hf_split,
                hf_subset=call.hf_subset,
                prompt_type=call.prompt_type,
                **{**call.kwargs, "batch_size": 1, "show_progress_bar": False},
            )
        except Exception as error:
            raise EncoderError(f"{self._name} failed: {one_line(error, typed=True)}") from error
        vectors = np.asarray(found.float().cpu() if isinstance(found, torch.Tensor) else found, np.float32)
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise EncoderContractError(f"{self._name} must return ({len(rows)}, dim) vectors: got {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise EncoderContractError(f"{self._name} must return finite numbers: got NaN or infinity")
        return vectors

    @cached_property
    def _reading(self) -> CanaryReading:
        from datasets import Dataset

        from featstore.encoders.canary import decimals, read_canary_of

        def encode(wave: NDArray[np.float32]) -> tuple[dict[str, Any], ...] | None:
            rows = Dataset.from_dict({"audio": [{"array": wave, "sampling_rate": _SIGNALS_RATE_HZ}]})
            try:
                return ({"utterance": decimals(self._vectors(rows, self._first_call)[0]), "frames": None},)
            except EncoderError as error:
                self._failure = error
                return None

        return read_canary_of(
            encode,
            n_outputs=1,
            sample_rate_hz=_SIGNALS_RATE_HZ,
            precision=self._precision,
            made_by={"device": "", "versions": versions()},
        )

    def _dim(self) -> int:
        for signal in self._reading.outputs[0].values():
            if signal is not None:
                return len(signal["utterance"])
        stated = self._model.mteb_model_meta.embed_dim
        if isinstance(stated, int):
            return stated
        raise EncoderError(f"the reference signals cannot be encoded: {self._failure}")
