"""Adapters: encoders from models of other libraries."""

from __future__ import annotations
