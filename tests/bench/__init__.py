"""Benchmarks: ``make bench-NAME`` runs ``tests/bench/NAME.py``: a table, and ``build/bench/NAME.json``."""
