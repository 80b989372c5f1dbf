"""damro as a model of VLMEvalKit, which has no place for models of others: a wrapper registers it, then runs.

::

    python -m damro.integrations.vlmeval --pretrained llava-hf/llava-1.5-7b-hf --method damro --data POPE --model damro

`options` reads the command line, `model` is the class, `__main__` puts them together.
"""

PACKAGE = "ms-vlmeval"
"""Its name on PyPI."""
WORKS_WITH = "0.0.20"
"""The version of ms-vlmeval that the tests run."""
