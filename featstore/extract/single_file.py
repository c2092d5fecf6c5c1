"""Encodes without shards: an audio file or a text by a store's recipe, or decoded clips in memory.

Clips are resampled, cut into windows, padded and encoded as the clips of a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from featstore.encoders import BUILT_IN, load_encoder, parse_spec
from featstore.errors import EncoderError, UnusableClip, UsageError
from featstore.extract.audio import RESAMPLER, decode
from featstore.extract.batching import Batch, Batcher, PendingWindow, stack
from featstore.extract.encoder_changes import differing_fields, match_stored_names
from featstore.extract.job import new_batcher
from featstore.extract.windows import Padding, Window, plan_of

if TYPE_CHECKING:
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.pooling import Output, Pool
    from featstore.encoders.runner import EncoderRun
    from featstore.records import Recipe

__all__ = [
    "EncodedClip",
    "EncodedFile",
    "differences_from",
    "encode_clips",
    "encode_file",
    "encode_text",
    "load_encoder_of",
]

MAX_SECONDS = 3600.0
_BATCH_SECONDS = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFile:
    """Utterance vectors of a file's windows, float32 (windows, dim), and the duration of the file in seconds."""

    utterance: NDArray[np.float32]
    seconds: float


def load_encoder_of(recipe: Recipe, *, stored_spec: str, spec: str | None) -> Encoder:
    """Load the encoder that made a feature set.

    A store may be untrusted, so by itself it loads only built-in encoders. Other encoders must be named by the user: a
    file or module runs code, and ``hf:`` or ``dasheng:`` read files or access a server. Code in transformers models is
    never run.

    Parameters
    ----------
    stored_spec : str
        Spec of the encoder when the store was made.
    spec : str, optional
        Spec given by the user.

    Raises
    ------
    UsageError
        The user has to name the encoder, or its spec is invalid.
    EncoderError
        It cannot be loaded, or it differs from the encoder of the recipe.
    """
    if recipe.imported_from is not None:
        words = f" ({recipe.imported_from})" if recipe.imported_from else ""
        raise UsageError(
            f"{recipe.group_name} was imported{words}: there is no encoder for a file or a text; name a stored clip by "
            "its key"
        )
    if spec is None:
        _check_loads_by_itself(recipe, stored_spec)
    named = parse_spec(stored_spec if spec is None else spec)
    arguments, layer = _stored_arguments(recipe)
    encoder = load_encoder(
        named.base,
        arguments=arguments,
        layers=(layer if named.layer is None else named.layer,),
        pools=(cast("Pool", recipe.pool),),
    )
    if differences := differences_from(encoder, recipe, encoder.outputs[0]):
        raise EncoderError(
            f"{named.base!r} is not the encoder of {recipe.group_name} "
            f"({', '.join(differences)} differ): its vectors are not comparable; "
            "name the right encoder with --spec, or extract again"
        )
    return encoder


def differences_from(encoder: Encoder, recipe: Recipe, output: Output) -> tuple[str, ...]:
    """Fields in which an output of an encoder, under the options of a stored recipe, differs from that recipe.

    The result is empty if the recipe is that of the output, by the current rules or by those of an earlier featstore.
    """
    current, before = (
        encoder.recipe(
            padding=recipe.padding,
            precision=recipe.precision,
            frame_dtype=recipe.frame_dtype,
            resampler=RESAMPLER,
            format_version=recipe.format_version,
            max_window_seconds=recipe.max_window_seconds,
            output=output,
            identity=identity,
        )
        for identity in (encoder.identity, encoder.earlier)
    )
    earlier = [None if encoder.earlier is None else before]
    [matched] = match_stored_names([current], name=current.encoder, groups=[recipe.group_name], earlier=earlier)
    if matched.group_name == recipe.group_name:
        return ()
    return tuple(differing_fields(recipe, current)) or ("fingerprint",)


def _check_loads_by_itself(recipe: Recipe, stored_spec: str) -> None:
    # before anything is parsed: the hints about a text that is no spec look at the files that it may name
    if stored_spec.partition("#layer=")[0] not in BUILT_IN:
        raise UsageError(
            f"{recipe.group_name} was made by {stored_spec!r}, which is not loaded automatically from a store: if you "
            f"trust it, name it with `--spec {quote(stored_spec)}`, or its current path; a stored key needs no encoder"
        )


def _stored_arguments(recipe: Recipe) -> tuple[Mapping[str, Any], int | None]:
    """Constructor arguments and layer of the encoder. Validated because the store may contain anything."""
    identity = recipe.encoder_identity
    arguments, layer = identity.get("arguments") or {}, identity.get("layer")
    if not isinstance(arguments, Mapping) or isinstance(layer, bool) or not isinstance(layer, int | None):
        raise EncoderError(f"{recipe.group_name} is damaged: arguments must be an object and the layer a number")
    return recipe.arguments, layer


def encode_file(
    path: Path, *, encoder: Encoder, recipe: Recipe, crop_seconds: float | None, device: str = "auto"
) -> EncodedFile:
    """Encode an audio file as a clip of a shard: the same windows, padding, precision and pooling.

    Under ``padding="xares"`` a clip's vector depends on its batch; here the file is a batch by itself.

    Raises
    ------
    UnusableClip
        The file cannot be read or decoded, or is longer than one hour.
    EncoderError
        The encoder fails on the file.
    """
    from featstore.encoders.devices import pick_device
    from featstore.encoders.runner import EncoderRun

    rate = recipe.sample_rate_hz
    try:
        samples = decode(path.read_bytes(), sample_rate_hz=rate, max_seconds=MAX_SECONDS)
    except OSError as error:
        raise UnusableClip(f"{path} cannot be read: {error.strerror}") from error
    except UnusableClip as error:
        raise UnusableClip(f"{path} cannot be used: {error}") from error
    plan = plan_of(encoder, recipe, crop_seconds=crop_seconds)
    run = EncoderRun(encoder, recipe, device=pick_device(device), keep_frames=False)
    batcher = new_batcher(Padding.parse(recipe.padding), budget_samples=round(_BATCH_SECONDS * rate), shards_ahead=0)
    [encoded] = encode_clips([samples], run=run, plan=plan, batcher=batcher)
    return EncodedFile(utterance=encoded.utterance, seconds=len(samples) / rate)


def encode_text(text: str, *, encoder: Encoder, recipe: Recipe, device: str = "auto") -> NDArray[np.float32]:
    """Encode a text by the encoder's text tower in the precision of a recipe, float32 (dim,).

    Raises
    ------
    EncoderError
        The encoder has no text tower, or fails on the text.
    """
    from featstore.encoders.devices import pick_device
    from featstore.encoders.runner import EncoderRun

    run = EncoderRun(encoder, recipe, device=pick_device(device), keep_frames=False)
    with run.at_work():
        return run.encode_texts([text]).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedClip:
    """Windows of a clip, and their utterance vectors, float32 (windows, dim)."""

    windows: tuple[Window, ...]
    utterance: NDArray[np.float32]


def encode_clips(
    clips: Sequence[NDArray[np.float32]],
    *,
    run: EncoderRun,
    plan: Callable[[int], tuple[Window, ...]],
    batcher: Batcher,
) -> list[EncodedClip]:
    """Encode clips at the encoder's sample rate, in batches of their windows; only the first output is returned.

    Parameters
    ----------
    plan : callable
        Returns the windows of a clip by its number of samples.

    Raises
    ------
    EncoderError
        The encoder fails on a batch.
    """
    planned = [plan(len(samples)) for samples in clips]
    vectors: list[dict[int, NDArray[np.float32]]] = [{} for _ in clips]
    pending = (
        PendingWindow(number, index, samples[window.start : window.stop], window.padded)
        for number, (samples, windows) in enumerate(zip(clips, planned, strict=True))
        for index, window in enumerate(windows)
    )
    with run.at_work():
        for batch in _batches(pending, batcher):
            encoded = run(*stack(batch, blank=run.blank))[0].utterance
            for window, vector in zip(batch, encoded, strict=True):
                vectors[window.shard][window.index] = vector
    return [
        EncodedClip(windows=windows, utterance=np.stack([of_clip[index] for index in range(len(windows))]))
        for windows, of_clip in zip(planned, vectors, strict=True)
    ]


def _batches(windows: Iterable[PendingWindow], batcher: Batcher) -> Iterable[Batch]:
    for window in windows:
        yield from batcher.add(window)
    yield from batcher.flush()
