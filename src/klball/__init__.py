"""Robust post-training of language models, and robust comparison of language models.

The public names stand in `__init__.pyi`, once: editors and type checkers read them there, and here each is
imported on first use, so that `klball --help` need not wait for PyTorch.
"""

from lazy_loader import attach_stub

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
