"""What timm knows our networks by: their names, their weights, and how to feed them."""

from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from hadaptive.errors import UserError
from hadaptive.models.network import HadaptiveNet
from hadaptive.models.published import HADAPTIVE_NET_L, HADAPTIVE_NET_M, HADAPTIVE_NET_S
from hadaptive.models.shipped import FOUND, pretrained_cfgs, shipped_spec
from hadaptive.models.spec import NetSpec, as_spec


def _cfg(**overrides: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "min_input_size": (3, 64, 64),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "classifier",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2505.22226",
        "paper_name": "Expressive yet Efficient Feature Expansion with Adaptive Cross-Hadamard Products",
        **overrides,
    }


default_cfgs = generate_default_cfgs(
    {
        "hadaptive_net.untrained": _cfg(pool_size=None),
        "hadaptive_net_s.untrained": _cfg(),
        "hadaptive_net_m.untrained": _cfg(),
        "hadaptive_net_l.untrained": _cfg(pool_size=(3, 3)),
        **{name: _cfg(**known) for name, known in pretrained_cfgs().items()},
        **{f"{name}.untrained": _cfg() for name in FOUND},
    }
)


Spec = NetSpec | dict[str, Any] | str | Path


def _create_hadaptive_net(
    variant: str, own: NetSpec, pretrained: bool = False, spec: Spec | None = None, **kwargs: Any
) -> HadaptiveNet:
    """A network of the variant's own spec, or of another: so were networks of specs saved by older versions."""
    spec = own if spec is None else as_spec(spec)
    indices = tuple(range(len(spec.stages) + bool(spec.stage1)))
    return build_model_with_cfg(
        HadaptiveNet,
        variant,
        pretrained,
        feature_cfg={"out_indices": indices, "flatten_sequential": True},
        spec=spec,
        **kwargs,
    )


@register_model
def hadaptive_net(pretrained: bool = False, spec: Spec | None = None, **kwargs: Any) -> HadaptiveNet:
    """A Hadaptive-Net of any spec: a :class:`NetSpec`, its plain data, or the path of a JSON file that holds it.

    Raises:
        UserError: there is no spec, or it is not one.
    """
    if spec is None:
        raise UserError(
            "hadaptive_net is built of a spec: pass spec=, a NetSpec, a dict or the path of a .json file"
        )
    if isinstance(kwargs.get("pretrained_cfg"), str | None):  # else it says what weights were trained on
        channels = kwargs.get("in_chans", 3)
        mean, std = (
            value if channels == 3 else (sum(value) / 3,) * channels  # as timm has it for other channels
            for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        known = {"input_size": (channels, 224, 224), "min_input_size": None, "mean": mean, "std": std}
        kwargs["pretrained_cfg_overlay"] = known | (kwargs.get("pretrained_cfg_overlay") or {})
    return _create_hadaptive_net("hadaptive_net", HADAPTIVE_NET_S, pretrained, spec, **kwargs)


@register_model
def hadaptive_net_s(pretrained: bool = False, **kwargs: Any) -> HadaptiveNet:
    """Hadaptive-Net S: 3.25 M parameters at 1000 classes, 131 M MACs at 224x224 and 100 classes."""
    return _create_hadaptive_net("hadaptive_net_s", HADAPTIVE_NET_S, pretrained, **kwargs)


@register_model
def hadaptive_net_m(pretrained: bool = False, **kwargs: Any) -> HadaptiveNet:
    """Hadaptive-Net M: 4.25 M parameters at 1000 classes, 339 M MACs at 224x224 and 100 classes."""
    return _create_hadaptive_net("hadaptive_net_m", HADAPTIVE_NET_M, pretrained, **kwargs)


@register_model
def hadaptive_net_l(pretrained: bool = False, **kwargs: Any) -> HadaptiveNet:
    """Hadaptive-Net L: 7.26 M parameters at 1000 classes, 669 M MACs at 224x224 and 100 classes."""
    return _create_hadaptive_net("hadaptive_net_l", HADAPTIVE_NET_L, pretrained, **kwargs)


@register_model
def hadaptive_net2_xs(pretrained: bool = False, **kwargs: Any) -> HadaptiveNet:
    """The smallest that a search of the space `star` found on Fashion-MNIST: see docs/networks.md."""
    return _create_hadaptive_net("hadaptive_net2_xs", shipped_spec("hadaptive_net2_xs"), pretrained, **kwargs)


@register_model
def hadaptive_net2_s(pretrained: bool = False, **kwargs: Any) -> HadaptiveNet:
    """Between the two others of that search."""
    return _create_hadaptive_net("hadaptive_net2_s", shipped_spec("hadaptive_net2_s"), pretrained, **kwargs)


@register_model
def hadaptive_net2_m(pretrained: bool = False, **kwargs: Any) -> HadaptiveNet:
    """The most accurate that this search found."""
    return _create_hadaptive_net("hadaptive_net2_m", shipped_spec("hadaptive_net2_m"), pretrained, **kwargs)
