"""Transcripts, alphabets, tokenizers and language models. The only module of the probe that imports transformers."""

from __future__ import annotations

import hashlib
import importlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.errors import UsageError, missing_extra
from featstore.formatting import one_line
from featstore.records import sha256_of

__all__ = [
    "Alphabet",
    "LanguageModel",
    "Tokenizer",
    "load_language_model",
    "load_tokenizer",
    "normalised",
    "words",
]


BLANK = 0


def normalised(text: str) -> str:
    """Normalise a transcript for training and scoring.

    Applies NFKC and lower case, keeps letters, their marks, digits and apostrophes inside words, and replaces other
    characters by single spaces.

    >>> normalised("“Don’t”, she said -- 'TWICE'!")
    "don't she said twice"
    """
    folded = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    kept = "".join(each if each == "'" or unicodedata.category(each)[0] in "LMN" else " " for each in folded)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def words(text: str) -> list[str]:
    """Split the normalised text into words.

    >>> words("A dog, barking.")
    ['a', 'dog', 'barking']
    """
    return normalised(text).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Alphabet:
    """Symbols of a CTC head: 0 is the blank, n is the n-th character."""

    characters: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Alphabet:
        """Alphabet of the characters of some texts, in code point order."""
        return cls(characters=tuple(sorted(set().union(*map(set, texts)))))

    def __len__(self) -> int:
        """Number of symbols, the blank included."""
        return len(self.characters) + 1

    def encode(self, text: str) -> NDArray[np.int64]:
        """Encode a text as symbols, int64 (n,); characters outside the alphabet are skipped."""
        number = {character: at for at, character in enumerate(self.characters, start=1)}
        return np.array([number[each] for each in text if each in number], dtype=np.int64)

    def collapse(self, best: NDArray[np.int64]) -> str:
        """Collapse greedy CTC output: merge runs of a symbol, then remove blanks (Graves et al. 2006).

        >>> Alphabet(characters=(" ", "a", "b")).collapse(np.array([2, 2, 0, 2, 3, 3, 0, 1, 1]))
        'aab'
        """
        begins = np.diff(best, prepend=-1) != 0
        spelt = "".join(self.characters[number - 1] for number in best[begins & (best != BLANK)])
        return " ".join(spelt.split())


SEPARATORS = ("<|vision_end|>",)
"""Separator tokens of some models, such as Qwen's as in X-ARES. Other models use their `bos` token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A transformers tokenizer.

    Attributes
    ----------
    name : str
        Name or folder as given.
    sha256 : str
        Hash of its vocabulary and special tokens, 16 hexadecimal digits.
    """

    name: str
    sha256: str
    raw: Any

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the tokenizer's special tokens."""
        return [list(map(int, ids)) for ids in self.raw(list(texts))["input_ids"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A causal language model with frozen weights, and its tokenizer.

    Attributes
    ----------
    separator, end, pad : int
        Tokens between audio and text, after the text, and for padding.
    width, inner_width : int
        Widths of the embeddings and of the model's feed-forward layers.
    max_positions : int or None
        Maximum length of audio plus text.
    sha256 : str
        Hash of its weights, 16 hexadecimal digits.
    """

    name: str
    sha256: str
    model: Any
    tokenizer: Tokenizer
    separator: int
    end: int
    pad: int
    width: int
    inner_width: int
    max_positions: int | None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return list(map(int, self.tokenizer.raw(text, add_special_tokens=False)["input_ids"]))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of some tokens, without special tokens."""
        return str(self.tokenizer.raw.decode(list(tokens), skip_special_tokens=True))

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens, (..., width)."""
        found: Tensor = self.model.get_input_embeddings()(tokens)
        return found

    def generate(
        self, embeddings: Tensor, mask: Tensor, *, max_new_tokens: int, repetition_penalty: float
    ) -> list[list[int]]:
        """Generate greedily from embeddings (batch, length, width); return the tokens of each row before its end token.

        Rows are padded on the left. The generation settings in the model's folder (temperature, penalties) are ignored.
        """
        transformers = _transformers("a language model")
        config = transformers.GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=self.pad, eos_token_id=self.end
        )
        # As a configuration setting, the penalty would exempt tokens by the padding of the row.
        penalty = transformers.RepetitionPenaltyLogitsProcessor(penalty=repetition_penalty)
        generated = self.model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            generation_config=config,
            logits_processor=transformers.LogitsProcessorList([penalty]),
        )
        rows = [list(map(int, row)) for row in generated]
        return [row[: row.index(self.end)] if self.end in row else row for row in rows]


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer from a folder or by its hub name.

    Raises
    ------
    UsageError
        transformers is missing, or the tokenizer cannot be loaded; the message gives the fix.
    """
    transformers = _transformers("a transformers tokenizer")
    try:
        raw = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _cannot_load("tokenizer", name, error, key="tokenizer") from None
    vocabulary = sha256_of({"vocabulary": raw.get_vocab(), "special": list(map(str, raw.all_special_tokens))})
    return Tokenizer(name=name, sha256=vocabulary[:16], raw=raw)


def load_language_model(name: str, *, device: torch.device) -> LanguageModel:
    """Load a causal language model and its tokenizer from a folder or by its hub name, and freeze it.

    float32 on a CPU, bfloat16 on anything else.

    Raises
    ------
    UsageError
        transformers is missing, or there is no such model with safetensors weights.
    """
    transformers = _transformers("a language model")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        raw = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        with _without_progress_bars(transformers):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, dtype=dtype
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _cannot_load("language model", name, error, key="language_model") from None
    model.requires_grad_(requires_grad=False)
    model = model.eval().to(device)
    end = raw.eos_token_id
    if end is None:
        raise UsageError(f"language model {name!r} has no end-of-text token: set another one as [probe] language_model")
    vocabulary = raw.get_vocab()
    known = [vocabulary[token] for token in SEPARATORS if token in vocabulary]
    separator = known[0] if known else raw.bos_token_id if raw.bos_token_id is not None else end
    config = model.config.get_text_config()
    width = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    return LanguageModel(
        name=name,
        sha256=_weights_sha256(model),
        model=model,
        tokenizer=Tokenizer(name=name, sha256=sha256_of(vocabulary)[:16], raw=raw),
        separator=int(separator),
        end=int(end),
        pad=int(raw.pad_token_id if raw.pad_token_id is not None else end),
        width=width,
        inner_width=int(inner),
        max_positions=getattr(config, "max_position_embeddings", None),
    )


def _weights_sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _transformers(what: str) -> Any:
    # A tokenizer that has started threads warns at every fork; texts are few, so threads are not needed.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise missing_extra(what, error, "hf") from None


@contextmanager
def _without_progress_bars(transformers: Any) -> Iterator[None]:
    """Disable the progress bar of weight loading, which takes seconds."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _cannot_load(what: str, name: str, error: Exception, *, key: str) -> UsageError:
    return UsageError(
        f"{what} {name!r} cannot be loaded: set [probe] {key} to the folder of a downloaded one (with its weights in "
        f"safetensors files), or give access to the hub ({one_line(error, most=160, typed=True)})"
    )
