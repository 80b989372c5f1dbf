"""HallusionBench: yes/no questions about figures, originals and altered ones, right only together."""
