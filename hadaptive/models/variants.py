"""Networks with something else in place of their ACH blocks' parts: ablations as data.

Each variant makes one NetSpec of another; what it does not name stays. Those that replace the expansion keep its
width, C + P channels, unless they say otherwise.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable
from typing import Any

from hadaptive.errors import UserError
from hadaptive.models.layer_spec import BlockSpec
from hadaptive.models.spec import NetSpec
from hadaptive.nn import NORMS
from hadaptive.nn.ach import block_size
from hadaptive.ops import num_pairs

Change = Callable[[NetSpec], NetSpec]


def _of_the_network(**values: object) -> Change:
    """What changes fields of a network, of which some ACH block takes notice."""

    def apply(spec: NetSpec) -> NetSpec:
        blocks = [block for stage in spec.stages for block in stage if block.kind == "ach"]
        if "mix" not in values:
            blocks = [block for block in blocks if block.pairing == "triangle"]
        if not blocks:
            names = " and ".join(values)
            raise UserError(f"{names} would change nothing of {spec.name}: it has no ACH block that takes notice")
        return dataclasses.replace(spec, **values)  # pyright: ignore[reportArgumentType]

    return apply


def _each(change: Callable[[BlockSpec, int, int], BlockSpec]) -> Change:
    """What changes every ACH block: of itself, its channels in, and the width of its expansion."""

    def apply(spec: NetSpec) -> NetSpec:
        channels, stages = spec.stage1_channels, []
        for stage in spec.stages:
            blocks = []
            for block in stage:
                if block.kind == "ach" and block.k is not None:
                    size = block_size(channels, block.k, block.pairing)
                    pairs = num_pairs(size * block.k, size)
                    width = max(channels, pairs) if block.join == "add" else channels + pairs
                    blocks.append(change(block, channels, width))
                else:
                    blocks.append(block)
                channels = block.channels
            stages.append(tuple(blocks))
        return dataclasses.replace(spec, stages=tuple(stages))

    return apply


def _ratio(width: int, channels: int) -> float:
    """The ratio of which layers make exactly this width: they cut off, and a quotient may be a hair too small."""
    ratio = width / channels
    return ratio if int(channels * ratio) == width else math.nextafter(ratio, math.inf)


def _as(kind: str, act: bool = True, widen: bool = True) -> Change:
    def change(block: BlockSpec, channels: int, width: int) -> BlockSpec:
        ratio = _ratio(width, channels) if widen else 1.0
        return BlockSpec(kind, block.channels, block.kernel, block.stride, ratio=ratio, act=act)

    return _each(change)


def _same_macs(spec: NetSpec) -> NetSpec:
    """Inverted bottlenecks that cost no more than the mix, the depthwise convolution and the projection do."""

    def change(block: BlockSpec, channels: int, width: int) -> BlockSpec:
        behind, before = block.kernel**2 + block.channels, channels * block.stride**2
        own = channels * before * spec.mix + width * behind
        ratio = _ratio(own // (before + behind), channels)
        return BlockSpec("inverted", block.channels, block.kernel, block.stride, ratio=ratio)

    return _each(change)(spec)


def _mixed(change: Change, name: str) -> Change:
    """A control that keeps the mix, which there must be."""

    def apply(spec: NetSpec) -> NetSpec:
        if not spec.mix:
            raise UserError(
                f"{spec.name} has no mix, and {name} would give it one: there is no such variant of it"
            )
        return change(spec)

    return apply


def _norm(name: str) -> Change:
    return _each(lambda block, *_: dataclasses.replace(block, norm=name))


def _k(factor: float) -> Change:
    def change(block: BlockSpec, channels: int, width: int) -> BlockSpec:
        assert block.k is not None
        most = channels // 2 if block.pairing == "blocks" else channels
        return dataclasses.replace(block, k=min(most, max(2, round(block.k * factor))))

    return _each(change)


def _blocks(count: int) -> Change:
    return _each(lambda block, *_: dataclasses.replace(block, k=count, pairing="blocks"))


GROUPS: dict[str, dict[str, tuple[Change, str]]] = {
    "components": {
        "no-mix": (_of_the_network(mix=False), "without the 1x1 convolution before the products"),
        "no-score": (
            _of_the_network(score_kernel=0),
            "pooled channels are the scores, without a convolution that the temperature could follow",
        ),
    },
    "selection": {
        "static": (_of_the_network(selection="static"), "the first k channels, always"),
        "random": (_of_the_network(selection="random"), "k channels drawn once"),
        "grouped": (_of_the_network(selection="grouped"), "one channel of each of k groups per sample"),
        "grouped-quiet": (_of_the_network(selection="grouped", noise=0.0), "the same without noise"),
        "index": (_of_the_network(order="index"), "selected channels in the order of their numbers"),
        "quiet": (_of_the_network(noise=0.0), "no noise in the selection"),
        "quiet-index": (_of_the_network(noise=0.0, order="index"), "no noise, and the order of the numbers"),
        "softmax_k": (_of_the_network(surrogate="softmax_k"), "selection's gradient scaled by k"),
        "sfess": (_of_the_network(surrogate="sfess"), "score-function gradient of exact k-subsets"),
        "simple": (_of_the_network(surrogate="simple"), "exact k-subset sampling and marginals"),
    },
    "pairing": {
        "blocks3": (_blocks(3), "three whole blocks of C / 3 channels, of another width"),
        "blocks4": (_blocks(4), "four whole blocks of C / 4 channels, of another width"),
    },
    "levers": {
        "add": (
            _each(lambda block, *_: dataclasses.replace(block, join="add")),
            "products added to channels",
        ),
        "reparam": (
            lambda spec: dataclasses.replace(spec, reparam=True),
            "depthwise convolutions trained with a 3x3 one and the identity beside them",
        ),
        "scale": (
            lambda spec: dataclasses.replace(spec, layer_scale=1.0),
            "residual branches with a learnt scale of each channel, 1 at first",
        ),
    },
    "controls": {
        "none": (
            _mixed(_as("inverted", act=False, widen=False), "none"),
            "no products: the mixed channels alone, C wide",
        ),
        "act": (_mixed(_as("inverted", widen=False), "act"), "no products, and an activation, C wide"),
        "linear": (_mixed(_as("inverted", act=False), "linear"), "linear maps of the input in place of products"),
        "inverted": (_as("inverted"), "the whole width by one convolution, with an activation"),
        "inverted-macs": (_same_macs, "the same, as narrow as costs no more multiply-accumulates"),
        "ghost": (_as("ghost"), "the whole width by Ghost"),
    },
    "norm": {f"norm-{name}": (_norm(name), f"{name} of the products") for name in NORMS if name != "dysoft"},
    "k": {
        "k-half": (_k(0.5), "half as many channels selected"),
        "k-more": (_k(1.5), "half as many again"),
    },
}
VARIANTS = {name: variant for group in GROUPS.values() for name, variant in group.items()}


def _is_ours(name: str) -> bool:
    return name.startswith("hadaptive_net") or name.endswith(".json")


PLUGS: dict[str, dict[str, Any]] = {"plug": {"selection": "sample"}, "plug-static": {"selection": "static"}}


def plug_of(name: str) -> tuple[str, dict[str, Any]] | None:
    """The network that a name such as starnet_s1:plug means with ACH in its last two expansions, and how."""
    base, colon, wanted = name.rpartition(":")
    return (base, PLUGS[wanted]) if colon and not _is_ours(base) and wanted in PLUGS else None


def variant_of(name: str) -> tuple[str, str] | None:
    """The network and the variant of it that a name means, such as hadaptive_net_s:static; None for other names.

    Raises:
        UserError: there is no such variant.
    """
    base, colon, wanted = name.rpartition(":")
    if not colon or not _is_ours(base):
        return None
    if wanted not in VARIANTS:
        close = difflib.get_close_matches(wanted, VARIANTS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(VARIANTS)}"
        raise UserError(f"there is no variant {wanted!r} of a network: {hint}")
    return base, wanted


def changed(spec: NetSpec, wanted: str) -> NetSpec:
    """One of VARIANTS of a network."""
    return dataclasses.replace(VARIANTS[wanted][0](spec), name=f"{spec.name}:{wanted}")
