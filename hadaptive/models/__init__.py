import hadaptive.models.hadaptive_net  # noqa: F401 (registers the networks with timm)
from hadaptive.models.factory import check_image_size, create_model, meant, spec_of
from hadaptive.models.layer_spec import BlockSpec, ConvSpec
from hadaptive.models.network import HadaptiveNet
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
