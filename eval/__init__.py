"""Benchmarks and scorers. Always ``from eval.pope import ...``, never ``import eval``."""
