"""A network that another process knows only when it imports this module."""

from typing import Any

from timm.models import register_model
from tiny import TINY
from torch import nn

from hadaptive.models import HadaptiveNet


@register_model
def registered_tiny(pretrained: bool = False, num_classes: int = 1000, in_chans: int = 3, **_: Any) -> nn.Module:
    """The tiny network."""
    return HadaptiveNet(TINY, num_classes, in_chans)
