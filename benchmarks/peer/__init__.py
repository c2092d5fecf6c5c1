"""X-ARES 0.1.3 itself, beside featstore: on the same features for time, on the same shards for scores.

``python -m benchmarks.peer`` makes its environment; `benchmarks.tracks` and `benchmarks.parity` use it.
"""
