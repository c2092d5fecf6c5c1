"""`CachedEncoder`, the mteb model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.extract.options import ExtractSettings
from featstore.integrations.mteb.calls import Call
from featstore.integrations.mteb.models import open_model
from featstore.integrations.mteb.recipe_cache import RecipeCache

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import PromptType
    from torch import Tensor
    from torch.utils.data import DataLoader

__all__ = ["CachedEncoder"]


class CachedEncoder:
    """An mteb model whose audio embeddings are kept in a store, by the content of the clip and the recipe.

    A clip that the store has is not encoded again, whatever task, split or process it was encoded for. Embeddings are
    committed every `commit_seconds`; after a kill, the next run encodes only what was not committed.

    Parameters
    ----------
    encoder : str, os.PathLike, nn.Module, callable, Encoder, or an mteb model
        A spec, module, class or function as for `featstore.extract`, or the result of `featstore.load_encoder`: its
        windows are padded and batched by featstore's rules, and the vector of a clip is the mean of its windows,
        weighted by their durations. Or an mteb model: its name in mteb, the result of ``mteb.get_model``, or any object
        with mteb's encoder interface: it is called with one clip per batch. Inputs that are not audio alone, such as
        the texts of zero-shot tasks, are passed on to an mteb model, and their embeddings are not kept.
    store : str or os.PathLike
        Folder or URL; it is created if it does not exist. The feature sets are ``ENCODER/mteb-TASK/SPLIT``.
    commit_seconds : float
        Time between commits; a kill loses at most the clips that were encoded since the last one.
    **settings
        Fields of `featstore.extract.ExtractOptions`: ``device``, ``precision``, ``padding``, ``max_window_seconds``,
        ``allow_drift``... An mteb model takes only ``allow_drift``.

    Raises
    ------
    UsageError
        mteb is not installed, or a setting does not apply.
    EncoderError
        The encoder cannot be loaded.

    Examples
    --------
    >>> import mteb
    >>> from featstore.integrations.mteb import CachedEncoder
    >>> model = CachedEncoder("logmel", store="embeddings.zarr")
    >>> results = mteb.evaluate(model, mteb.get_tasks(tasks=["GTZANGenre"]))  # doctest: +SKIP
    """

    def __init__(
        self,
        encoder: Any,
        *,
        store: str | os.PathLike[str],
        commit_seconds: float = 60.0,
        **settings: Unpack[ExtractSettings],
    ) -> None:
        if not commit_seconds >= 0:
            raise UsageError(f"commit_seconds must be 0 or more: got {commit_seconds!r}")
        self._model = open_model(encoder, settings)
        self._store_url = os.fspath(store)
        self._commit_seconds = commit_seconds
        self._caches: dict[str, RecipeCache] = {}

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Metadata of the mteb model; for an encoder of featstore, the revision is the fingerprint of its recipe."""
        return self._model.meta

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32] | Tensor:
        """Return the embeddings of all inputs, in order: float32 (inputs, dim).

        Raises
        ------
        UnusableClip
            Clips are empty or are not audio; all others are in the store.
        EncoderChanged
            The encoder returns other numbers than when the store was made; nothing was encoded.
        EncoderError, EncoderContractError
            The encoder fails, or its output is invalid; what was encoded before is in the store.
        UsageError
            An encoder of featstore got inputs that are not audio.
        StoreError
            The store cannot be read or written.
        """
        call = Call(
            inputs=inputs,
            task_metadata=task_metadata,
            hf_split=hf_split,
            hf_subset=hf_subset,
            prompt_type=prompt_type,
            kwargs=kwargs,
        )
        if call.modalities != {"audio"}:
            return self._model.pass_on(call)
        settings = self._model.settings_of(call)
        if settings not in self._caches:
            self._caches[settings] = RecipeCache(
                self._model.encoding(call, self._store_url),
                store_url=self._store_url,
                commit_seconds=self._commit_seconds,
            )
        return self._caches[settings].embed(call)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities of all pairs, (n, m): of the mteb model, or cosines for an encoder of featstore."""
        return self._model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Similarities of corresponding rows, (n,): of the mteb model, or cosines for an encoder of featstore."""
        return self._model.similarity_pairwise(embeddings1, embeddings2)
