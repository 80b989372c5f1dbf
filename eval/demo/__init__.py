"""The whole job on the embedded models."""
