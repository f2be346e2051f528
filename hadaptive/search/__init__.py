from hadaptive.search.space import SearchSpace, Skip, published_space, rich_space

__all__ = ["SearchSpace", "Skip", "published_space", "rich_space"]
