"""`featstore check`: what an encoder does that its embeddings would suffer from, measured before anything is stored."""

from __future__ import annotations

from featstore.encoders.checking.contract import broken_contract
from featstore.encoders.checking.records import Check, Verdict
from featstore.encoders.checking.run import Budget, check_encoder
from featstore.encoders.checking.speed import times

__all__ = ["Budget", "Check", "Verdict", "broken_contract", "check_encoder", "times"]
