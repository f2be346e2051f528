"""Efficient vision networks made of adaptive cross-Hadamard products. Importing registers them with timm."""

from hadaptive.lazy import lazy_names
from hadaptive.registration import register

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)

register()
