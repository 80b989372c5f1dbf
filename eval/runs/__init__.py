"""Runs: a model over a benchmark, a record a sample, nothing lost and nothing doubled."""
