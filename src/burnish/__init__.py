"""Post-training of language models, with the evidence that it worked. See README.md."""

__version__ = "0.1.0"
