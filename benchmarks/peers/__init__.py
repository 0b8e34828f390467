"""Ryzanstein side by side with other engines: same machine, weights and prompts. `python -m benchmarks.peers NAME`.

This package and `runners` import nothing here: a runner is started with the peer's own Python, which has none of our
dependencies.
"""
