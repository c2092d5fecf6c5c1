"""Tiny models of the real transformers classes, with random weights, saved as users have them: by `save_pretrained`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

CONV: dict[str, Any] = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (12, 10, 5),
    "conv_stride": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
BODY: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
"""Three blocks of width 16, and a frame of 20 ms."""

SEED = 3


def _waveform(kind: str, *, norm: str, mask: bool, normalise: bool = True, **more: Any) -> tuple[Any, Any]:
    config = getattr(transformers, f"{kind}Config")(
        **CONV, **BODY, feat_extract_norm=norm, mask_time_prob=0.0, mask_feature_prob=0.0, **more
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise, return_attention_mask=mask)
    return getattr(transformers, f"{kind}Model")(config), extractor


def _group() -> tuple[Any, Any]:
    return _waveform("Wav2Vec2", norm="group", mask=False)


def _layer() -> tuple[Any, Any]:
    return _waveform("Wav2Vec2", norm="layer", mask=True, do_stable_layer_norm=True)


def _adapter() -> tuple[Any, Any]:
    return _waveform("Wav2Vec2", norm="layer", mask=True, add_adapter=True, num_adapter_layers=2, output_hidden_size=12)


def _data2vec() -> tuple[Any, Any]:
    config = transformers.Data2VecAudioConfig(
        **{**CONV, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 7}, **BODY, mask_time_prob=0.0
    )
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    return transformers.Data2VecAudioModel(config), extractor


def _whisper() -> tuple[Any, Any]:
    """Two seconds where the published ones have thirty."""
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=3, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=20, max_source_positions=100, vocab_size=30,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperModel(config), transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2)


def _ast() -> tuple[Any, Any]:
    config = transformers.ASTConfig(**BODY, max_length=128, num_mel_bins=32)
    return transformers.ASTModel(config), transformers.ASTFeatureExtractor(max_length=128, num_mel_bins=32)


def _bert() -> tuple[Any, Any]:
    config = transformers.Wav2Vec2BertConfig(
        **BODY, feature_projection_input_dim=40, vocab_size=None, mask_time_prob=0.0, conv_depthwise_kernel_size=5
    )
    return transformers.Wav2Vec2BertModel(config), transformers.SeamlessM4TFeatureExtractor(
        num_mel_bins=20, feature_size=20
    )


def _clap(*, fusion: bool) -> tuple[Any, Any]:
    audio = {
        "hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2],
        "spec_size": 64, "num_mel_bins": 16, "window_size": 4, "num_hidden_layers": 2, "enable_fusion": fusion,
        "fusion_num_hidden_layers": 1, "aff_block_r": 2, "projection_dim": 10,
    }  # fmt: skip
    text = {**BODY, "vocab_size": 30, "max_position_embeddings": 20, "projection_dim": 10}
    config = transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=10)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, max_length_s=2, truncation="fusion" if fusion else "rand_trunc"
    )
    return transformers.ClapModel(config), extractor


def _sew() -> tuple[Any, Any]:
    config = transformers.SEWConfig(**CONV, **BODY, squeeze_factor=2, mask_time_prob=0.0)
    return transformers.SEWModel(config), transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)


WORDS = ["this", "is", "a", "sound", "of", "dog", "barking", "rain", "car", "horn"]


def _word_tokenizer() -> Any:
    """A tokenizer of whole words with the special tokens of RoBERTa, in its places."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save_with_text(folder: Path, *, seed: int = SEED) -> Path:
    """CLAP with its tokenizer, as `save` makes it otherwise."""
    _word_tokenizer().save_pretrained(save("clap", folder, seed=seed))
    return folder


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "wav2vec2-group": _group,
    "wav2vec2-layer": _layer,
    "wav2vec2-adapter": _adapter,
    "data2vec-audio": _data2vec,
    "hubert": lambda: _waveform("Hubert", norm="layer", mask=True, do_stable_layer_norm=True),
    "wavlm": lambda: _waveform("WavLM", norm="layer", mask=True, normalise=False),
    "conformer-rotary": lambda: _waveform(
        "Wav2Vec2Conformer",
        norm="layer",
        mask=True,
        position_embeddings_type="rotary",
        conv_depthwise_kernel_size=5,
    ),
    "unispeech-sat": lambda: _waveform("UniSpeechSat", norm="group", mask=False),
    "whisper": _whisper,
    "ast": _ast,
    "wav2vec2-bert": _bert,
    "clap": lambda: _clap(fusion=False),
    "clap-fusion": lambda: _clap(fusion=True),
    "sew": _sew,
}


def save(family: str, folder: Path, *, seed: int = SEED) -> Path:
    """Make the model of a family and save it with its feature extractor."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, extractor = FAMILIES[family]()
        with torch.no_grad():
            for weight in model.parameters():  # some start as zeros, which would hide what depends on them
                weight.add_(0.02 * torch.randn_like(weight))
        model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
