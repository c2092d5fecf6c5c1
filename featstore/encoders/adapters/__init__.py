"""Adapters: models of other libraries as encoders."""

from __future__ import annotations
