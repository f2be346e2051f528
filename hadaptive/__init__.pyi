from hadaptive import data, models, nn, ops, search, train

__all__ = ["__version__", "data", "models", "nn", "ops", "search", "train"]

__version__: str
