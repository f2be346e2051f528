"""The paper's networks, S, M and L, as data.

Source: arXiv 2505.22226, its appendix.
"""

from hadaptive.models.layer_spec import BlockSpec, ConvSpec, ach, ghost
from hadaptive.models.spec import NetSpec


def _pair(k: int, kernel: int, channels: int) -> tuple[BlockSpec, BlockSpec]:
    return ach(k, kernel, channels), ach(k, kernel, channels, norm="batchnorm")


HADAPTIVE_NET_S = NetSpec(
    name="hadaptive_net_s",
    stem=ConvSpec(32, 2, 2, act=False),
    stage1=(ConvSpec(48, 2, 2), ConvSpec(32)),
    stages=(
        (ghost(4, 2, 64, stride=2), ghost(2, 3, 64)),
        (
            ghost(4, 2, 96, stride=2),
            ach(16, 5, 96),
            ach(16, 5, 96),
            ghost(2, 5, 96),
            ach(16, 5, 96),
            ach(16, 5, 96),
        ),
        (ghost(6, 2, 128, stride=2), ach(32, 7, 128), ach(32, 7, 128)),
    ),
)

HADAPTIVE_NET_M = NetSpec(
    name="hadaptive_net_m",
    stem=ConvSpec(32, 2, 2, act=False),
    stage1=(ConvSpec(128, 2, 2), ConvSpec(48)),
    stages=(
        (ghost(4, 2, 80, stride=2), ghost(2, 3, 80)),
        (
            ghost(6, 2, 128, stride=2),
            *_pair(24, 5, 128),
            ghost(4, 5, 128),
            *_pair(24, 5, 128),
            ghost(4, 5, 128),
            *_pair(24, 5, 128),
        ),
        (ghost(6, 2, 192, stride=2), *_pair(36, 7, 192)),
    ),
)

HADAPTIVE_NET_L = NetSpec(
    name="hadaptive_net_l",
    stem=ConvSpec(24, 2, 2, act=False),
    stage1=(ConvSpec(96, 2, 2), ConvSpec(48)),
    stages=(
        (ghost(4, 2, 96, stride=2), ghost(4, 3, 96)),
        (
            ghost(4, 2, 192, stride=2),
            *_pair(32, 5, 192),
            ghost(4, 5, 192),
            *_pair(32, 5, 192),
            ghost(4, 5, 192),
            *_pair(32, 5, 192),
            ghost(4, 5, 192),
            *_pair(32, 5, 192),
        ),
        (ghost(4, 2, 256, stride=2), *_pair(36, 7, 256)),
        (ghost(4, 2, 256, stride=2), *_pair(36, 7, 256)),
    ),
)
