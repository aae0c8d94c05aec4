"""Benchmarks: ``make bench-NAME`` runs ``tests/bench/NAME.py``, which prints a table and writes ``build/bench/NAME.json``."""
