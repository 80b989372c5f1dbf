"""Benchmarks whose answers a language model judges: what it is asked, and its replies, which are recorded."""
