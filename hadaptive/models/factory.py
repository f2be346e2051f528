"""One way to say which network is meant: a timm model name, or a NetSpec file."""

import difflib
from typing import Any

import timm
import torch
from torch import nn

from hadaptive.errors import UserError, first_line
from hadaptive.models.network import HadaptiveNet
from hadaptive.models.spec import NetSpec, as_spec
from hadaptive.models.variants import changed, plug_of, variant_of
from hadaptive.nn import plug


def create_model(
    model: str | NetSpec,
    *,
    num_classes: int,
    in_chans: int = 3,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    stem_strides: tuple[int, ...] | None = None,
    image_size: int | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a network, untrained or with timm's weights.

    Args:
        model: a timm model name (ours or any other), a path to a NetSpec file (.json), either of a Hadaptive-Net
            followed by ":" and one of :data:`hadaptive.models.variants.VARIANTS`, another followed by ":plug" or
            ":plug-static" for ACH in place of its last two expansions, or a NetSpec.
        num_classes: outputs.
        in_chans: image channels.
        drop_rate: dropout before the classifier; None leaves the model's own default.
        drop_path_rate: stochastic depth; None leaves the model's own default.
        stem_strides: Hadaptive-Nets only, see :meth:`NetSpec.with_stem_strides`.
        image_size: of a network that is built for one size, such as a vision transformer; others take any.
        pretrained: with the weights that timm has under this name, from this package, the network or a cache, or
            from "hf-hub:NAME" or "local-dir:FOLDER". The classifier is new where num_classes is not the weights'.

    Raises:
        UserError: no such model, file or weights, or an argument the model does not take.
    """
    if num_classes < 0 or in_chans < 1:
        raise UserError(
            f"num_classes must be at least 0 and in_chans at least 1, got {num_classes} and {in_chans}"
        )
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    for name, value in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if value is not None:
            options[name] = value
    if pretrained:
        return _pretrained(model, options, stem_strides, image_size)
    if isinstance(model, NetSpec) or model.endswith(".json") or variant_of(model) is not None:
        spec = meant(model)
        try:
            return timm.create_model("hadaptive_net", spec=spec, stem_strides=stem_strides, **options)
        except ValueError as error:  # what a layer says of a number in the spec
            raise UserError(f"{spec.name} cannot be built: {error}") from None
    plugged = plug_of(model)
    if plugged is not None:
        base, how = plugged
        network = create_model(
            base,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            stem_strides=stem_strides,
            image_size=image_size,
        )
        try:
            config = timm.get_pretrained_cfg(base, allow_unregistered=True)
            fixed = config is not None and config.fixed_input_size
            size = (in_chans, image_size, image_size) if fixed and image_size is not None else None
            plug(network, 2, input_size=size, **how)
        except ValueError as error:
            raise UserError(f"{model} cannot be built: {error}") from None
        return network
    _check_name(model)
    if stem_strides is not None:
        if not model.startswith("hadaptive_net"):
            raise UserError(f"stem_strides applies to Hadaptive-Nets only, not to {model}")
        options["stem_strides"] = tuple(stem_strides)
    try:
        config = timm.get_pretrained_cfg(model, allow_unregistered=True)
        if image_size is not None and config is not None and config.fixed_input_size:
            options["img_size"] = image_size
        return timm.create_model(model, **options)
    except (
        TypeError,
        RuntimeError,
        ValueError,
        AssertionError,
    ) as error:  # timm's answers to unknown options and tags, and to sizes that do not fit
        raise UserError(f"{model} cannot be built with these options: {error}") from None


def _check_name(model: str) -> None:
    if not timm.is_model(model.split(".")[0]):
        close = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"there is no model {model!r}, neither in timm nor as a .json spec file{hint}")


SOURCES = ("hf-hub:", "local-dir:")  # of weights, in front of timm's names


def _pretrained(
    model: str | NetSpec, options: dict[str, Any], stem_strides: tuple[int, ...] | None, image_size: int | None
) -> nn.Module:
    """timm's network with its weights."""
    name = model.name if isinstance(model, NetSpec) else model
    if stem_strides is not None:
        raise UserError("pretrained weights have learned with their own strides: leave stem_strides out")
    if isinstance(model, NetSpec) or not model.startswith(SOURCES):
        if isinstance(model, NetSpec) or model.endswith(".json") or variant_of(model) or plug_of(model):
            raise UserError(
                f"{name} has no pretrained weights: leave pretrained out, or name one of timm's models"
            )
        _check_name(model)
        try:
            config = timm.get_pretrained_cfg(model, allow_unregistered=True)
        except RuntimeError:  # there is no such tag
            config = None
        if config is None or not config.has_weights:
            tags = timm.list_models(f"{model.split('.')[0]}*", pretrained=True)
            hint = f"; there are {', '.join(tags[:5])}" if tags else ""
            raise UserError(f"timm has no weights called {model}{hint}")
        if image_size is not None and config.fixed_input_size:
            options = {**options, "img_size": image_size}
    try:
        network = timm.create_model(name, pretrained=True, **options)
        resize: Any = getattr(network, "set_input_size", None)
        if name.startswith(SOURCES) and resize is not None and image_size:
            resize(img_size=image_size)  # that it is built for one size is known once it is there
        return network
    except Exception as error:  # of the network, the Hub, a file, and timm's own answers
        raise UserError(
            f"the weights of {name} cannot be had: {first_line(error)}; where there is no network, pass a file "
            "with --init, or a folder as local-dir:FOLDER"
        ) from None


def meant(model: str | NetSpec) -> NetSpec:
    """The spec that a NetSpec, its file, or a variant of a Hadaptive-Net means.

    Raises:
        UserError: it is none of them.
    """
    found = variant_of(model) if isinstance(model, str) else None
    if found is None:
        return as_spec(model)
    base, wanted = found
    spec = as_spec(base) if base.endswith(".json") else spec_of(create_model(base, num_classes=1))
    if spec is None:
        raise UserError(f"{base} has no spec that could be varied")
    return changed(spec, wanted)


def check_image_size(network: nn.Module, size: tuple[int, int, int], name: str, hint: str = "") -> None:
    """Run one blank image of `size` (C, H, W) through a network, which is in eval mode afterwards.

    Args:
        network: on the CPU.
        size: of an image.
        name: what to call the network.
        hint: what else may help, such as " or stem_strides 1 1".

    Raises:
        UserError: the images are too small for it.
    """
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *size))
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"{name} cannot take {size[1]}x{size[2]} images ({first_line(error)}): try a larger image_size{hint}"
        ) from None


def spec_of(model: nn.Module) -> NetSpec | None:
    """The spec that describes `model` wholly: None for another network, and for a class derived from ours."""
    return model.spec if type(model) is HadaptiveNet else None
