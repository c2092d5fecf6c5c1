"""Text towers of transformers models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.fingerprint import builtin_code_sha256, state_sha256, tokenizer_sha256

__all__ = ["ClapText"]


class ClapText:
    """The text tower of CLAP: tokenizer, ``ClapTextModel``, and the projection to the space shared with audio.

    Parameters
    ----------
    tower, projection : Module
    tokenizer
        Tokenizer of the model. Texts are padded with a mask, and truncated to the positions that the model has.
    """

    def __init__(self, tower: Any, projection: Any, *, tokenizer: Any) -> None:
        self._towers = nn.ModuleList([tower, projection])
        self._tokenizer = tokenizer
        config = tower.config
        # positions start after the index of the padding token, as in RoBERTa
        positions = int(config.max_position_embeddings) - int(config.pad_token_id or 0) - 1
        self._most_tokens = min(positions, int(tokenizer.model_max_length))
        self.identity = cache(self._identity)

    def __call__(self, texts: list[str], *, device: torch.device) -> Tensor:
        """Return the projected vectors of texts, not scaled to unit length, (texts, dim)."""
        tower, projection = self._towers.to(device)
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._most_tokens, return_tensors="pt"
        ).to(device)
        pooled = tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        vectors: Tensor = projection(pooled)
        return vectors

    def _identity(self) -> Mapping[str, Any]:
        """Return what determines the vectors: weights, tokenizer and code."""
        return {
            "state_sha256": state_sha256(self._towers),
            "tokenizer_sha256": tokenizer_sha256(self._tokenizer),
            "source_sha256": builtin_code_sha256(ClapText),
        }
