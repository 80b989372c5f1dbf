"""MMVP: pairs of images that CLIP takes for the same, a question about each, right only together."""
