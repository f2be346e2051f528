from hadaptive.search.space import SearchSpace, Skip, published_space, rich_space
from hadaptive.search.supernet import Sample, Supernet

__all__ = ["Sample", "SearchSpace", "Skip", "Supernet", "published_space", "rich_space"]
