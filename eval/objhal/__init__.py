"""Object HalBench: detailed descriptions, whose objects a language model extracts and COCO's annotations check."""
