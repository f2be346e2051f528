from hadaptive.measure.setting import Setting
from hadaptive.search.config import SearchConfig, StudyConfig
from hadaptive.search.front import Judged, front_of
from hadaptive.search.latency import measure_networks, measure_table
from hadaptive.search.launch import resume_search, search
from hadaptive.search.outcome import most_confident, random_within
from hadaptive.search.position import Skip
from hadaptive.search.shared import SharedSupernet
from hadaptive.search.space import SearchSpace
from hadaptive.search.spaces import open_space, published_space, rich_space, star_space
from hadaptive.search.studies import resume, study
from hadaptive.search.supernet import Sample, Supernet
from hadaptive.search.table import LatencyTable

__all__ = [
    "Judged",
    "LatencyTable",
    "Sample",
    "SearchConfig",
    "SearchSpace",
    "Setting",
    "SharedSupernet",
    "Skip",
    "StudyConfig",
    "Supernet",
    "front_of",
    "measure_networks",
    "measure_table",
    "most_confident",
    "open_space",
    "published_space",
    "random_within",
    "resume",
    "resume_search",
    "rich_space",
    "search",
    "star_space",
    "study",
]
