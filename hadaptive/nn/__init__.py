from hadaptive.nn.ach import (
    AdaptiveCrossHadamard,
    CrossHadamardExpansion,
    expansions,
    k_for_width,
)
from hadaptive.nn.bottleneck import AdaptiveBottleneck
from hadaptive.nn.fixed_selection import FixedSelection, StaticSelection
from hadaptive.nn.ghost import GhostExpansion
from hadaptive.nn.grouped_selection import GroupedSelection
from hadaptive.nn.inverted import InvertedExpansion
from hadaptive.nn.layers import ACTIVATIONS, Layers
from hadaptive.nn.mlp import CrossHadamardMlp
from hadaptive.nn.normalisation import (
    NORMS,
    BatchNorm,
    ChannelRMSNorm,
    DyAlge,
    DySig,
    DySoft,
    DyT,
    create_norm,
)
from hadaptive.nn.plugging import Plugged, plug
from hadaptive.nn.poly_block import PolyBlock
from hadaptive.nn.product_block import ProductBlock
from hadaptive.nn.product_stats import ProductRecorder, ProductReport
from hadaptive.nn.reparam import RepDepthwise
from hadaptive.nn.score_function import learns_by_score_function, score_function_term
from hadaptive.nn.selection import (
    ChannelScore,
    ChannelSelection,
    gumbel_noise,
    gumbel_top_k,
    simple_top_k,
    top_k_channels,
)
from hadaptive.nn.selection_stats import SelectionRecorder, SelectionReport
from hadaptive.nn.temperature import adapt_temperatures, update_temperatures

__all__ = [
    "ACTIVATIONS",
    "NORMS",
    "AdaptiveBottleneck",
    "AdaptiveCrossHadamard",
    "BatchNorm",
    "ChannelRMSNorm",
    "ChannelScore",
    "ChannelSelection",
    "CrossHadamardExpansion",
    "CrossHadamardMlp",
    "DyAlge",
    "DySig",
    "DySoft",
    "DyT",
    "FixedSelection",
    "GhostExpansion",
    "GroupedSelection",
    "InvertedExpansion",
    "Layers",
    "Plugged",
    "PolyBlock",
    "ProductBlock",
    "ProductRecorder",
    "ProductReport",
    "RepDepthwise",
    "SelectionRecorder",
    "SelectionReport",
    "StaticSelection",
    "adapt_temperatures",
    "create_norm",
    "expansions",
    "gumbel_noise",
    "gumbel_top_k",
    "k_for_width",
    "learns_by_score_function",
    "plug",
    "score_function_term",
    "simple_top_k",
    "top_k_channels",
    "update_temperatures",
]
