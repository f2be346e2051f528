from hadaptive.models.factory import create_model, spec_of
from hadaptive.models.hadaptive_net import HadaptiveNet
from hadaptive.models.spec import BlockSpec, ConvSpec, NetSpec

__all__ = ["BlockSpec", "ConvSpec", "HadaptiveNet", "NetSpec", "create_model", "spec_of"]
