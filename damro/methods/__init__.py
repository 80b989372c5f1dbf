"""Decoding methods, one file each: which second prompt, and which rule makes scores of two logits."""
