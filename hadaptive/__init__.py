"""Efficient vision networks made of adaptive cross-Hadamard products. Importing registers them with timm."""

from hadaptive import models as _models  # noqa: F401  (registers the networks with timm)

__version__ = "0.1.0"
