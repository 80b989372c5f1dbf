"""Benchmarks and scorers. Always ``from damro.eval.pope import ...``, never ``import eval``."""
