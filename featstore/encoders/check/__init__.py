"""`featstore check`: measures properties of an encoder that would harm its embeddings, before anything is stored."""

from __future__ import annotations

from featstore.encoders.check.bench import Check, Verdict
from featstore.encoders.check.declarations import broken_contract
from featstore.encoders.check.run import Budget, EncoderReport, check_encoder
from featstore.encoders.check.speed import times

__all__ = ["Budget", "Check", "EncoderReport", "Verdict", "broken_contract", "check_encoder", "times"]
