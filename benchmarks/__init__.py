"""Benchmarks: ratio tables, each from one run on one machine. ``python -m benchmarks --help``.

Every figure is the absolute and its ratio to a peer or a floor that was measured beside it. None of this is a test:
the tests of featstore do not look at a clock.
"""
