"""The networks for ``torch.hub.load(FOLDER, "hadaptive_net_s", source="local")``; FOLDER is this one.

``pretrained=True`` gives those that come with weights theirs, and ``pretrained_cfg="digits"`` others of them.
"""

from hadaptive.models.hadaptive_net import (
    hadaptive_net,
    hadaptive_net2_m,
    hadaptive_net2_s,
    hadaptive_net2_xs,
    hadaptive_net_l,
    hadaptive_net_m,
    hadaptive_net_s,
)

dependencies = ["numpy", "safetensors", "timm", "torch"]

__all__ = [
    "hadaptive_net",
    "hadaptive_net2_m",
    "hadaptive_net2_s",
    "hadaptive_net2_xs",
    "hadaptive_net_l",
    "hadaptive_net_m",
    "hadaptive_net_s",
]
