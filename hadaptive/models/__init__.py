from hadaptive.models.factory import check_image_size, create_model, meant, spec_of
from hadaptive.models.hadaptive_net import HadaptiveNet
from hadaptive.models.layer_spec import BlockSpec, ConvSpec
from hadaptive.models.spec import NetSpec

__all__ = [
    "BlockSpec",
    "ConvSpec",
    "HadaptiveNet",
    "NetSpec",
    "check_image_size",
    "create_model",
    "meant",
    "spec_of",
]
