"""The search spaces that ship: the paper's, rich ones around S, M and L, and one of StarNet's shape.

Source: arXiv 2505.22226, section 4 and its appendix, for the published space; StarNet's shape is of
arXiv 2403.19967; the spaces around it and around M and L are ours.
"""

from pathlib import Path

from hadaptive.console import say
from hadaptive.errors import UserError
from hadaptive.files import refuse_existing
from hadaptive.models.layer_spec import BlockSpec, ConvSpec, ach, conv, ghost, inverted, poly, products
from hadaptive.search.labels import label
from hadaptive.search.position import SKIP, Skip
from hadaptive.search.space import SearchSpace

RICH_K = (8, 16, 24, 32, 33, 36)
RICH_RATIOS = (2, 4, 6)
RICH_KERNELS = (3, 5, 7)
RICH_NORMS = ("dysoft", "batchnorm")


def _downs(ratios: tuple[int, ...], ks: tuple[int, ...], channels: int) -> tuple[BlockSpec, ...]:
    """Ghost and ACH candidates that halve the map: kernels 2 and 3."""
    ghosts = tuple(ghost(ratio, kernel, channels, 2) for ratio in ratios for kernel in (2, 3))
    return ghosts + tuple(ach(k, kernel, channels, 2) for k in ks for kernel in (2, 3))


def names() -> list[str]:
    """The spaces that ship."""
    return ["published", *(f"rich-{skeleton}" for skeleton in _SKELETONS), "star"]


def open_space(name: str) -> SearchSpace:
    """A space by name (published, rich-s, rich-m, rich-l, star) or from a JSON file.

    Raises:
        UserError: there is no such space or file, or the file does not hold one.
    """
    if name == "published":
        return published_space()
    if name == "star":
        return star_space()
    if name.startswith("rich-") and name.removeprefix("rich-") in _SKELETONS:
        return rich_space(name.removeprefix("rich-"))
    if not name.endswith(".json"):
        known = ", ".join(names())
        raise UserError(f"there is no search space {name!r}: choose one of {known}, or a .json file of your own")
    return SearchSpace.load(name)


def published_space() -> SearchSpace:
    """The paper's space: the skeleton of S, with its stride-2 kernels of 3 really 3 (there they became 2)."""

    def same(ratio: int, k: int, kernel: int, channels: int) -> tuple[BlockSpec | Skip, ...]:
        return (ghost(ratio, kernel, channels), ach(k, kernel, channels), SKIP)

    return SearchSpace(
        name="published",
        stem=(ConvSpec(32, 2, 2, act=False), ConvSpec(32, 3, 2, act=False)),
        stage1=((ConvSpec(48, 2, 2), ConvSpec(48, 3, 2)), (ConvSpec(32),)),
        stages=(
            (_downs((4,), (16,), 64), same(2, 16, 3, 64)),
            (_downs((4,), (16,), 96), *[same(2, 16, 5, 96)] * 5),
            (_downs((6,), (32,), 128), *[same(6, 32, 7, 128)] * 4),
        ),
    )


# Of S, M and L: stem, the widening and narrowing convolutions of stage 1, each stage's width and positions.
_SKELETONS = {
    "s": (32, 48, 32, ((64, 3), (96, 7), (128, 5))),
    "m": (32, 128, 48, ((80, 3), (128, 10), (192, 5))),
    "l": (24, 96, 48, ((96, 3), (192, 13), (256, 4), (256, 4))),
}


def rich_space(skeleton: str) -> SearchSpace:
    """Our space over the widths of one published network, which is a point of it.

    Every stride-1 position holds Ghost and the inverted bottleneck with ratio 2, 4 or 6, ACH with k of 8 to 36 and
    DySoft or BatchNorm, each with a depthwise kernel of 3, 5 or 7, and skip; those that halve the map have kernels
    2 and 3. A stage has room for a block or two more than the network has.

    Args:
        skeleton: "s", "m" or "l".

    Raises:
        UserError: there is no such skeleton.
    """
    if skeleton not in _SKELETONS:
        raise UserError(f"the skeleton must be one of {', '.join(_SKELETONS)}; got {skeleton!r}")
    stem, wide, narrow, widths = _SKELETONS[skeleton]
    stages, channels = [], narrow
    for width, count in widths:
        same: list[BlockSpec | Skip] = [
            kind(ratio, kernel, width)
            for kind in (ghost, inverted)
            for ratio in RICH_RATIOS
            for kernel in RICH_KERNELS
        ]
        same += [
            ach(k, kernel, width, norm=norm) for k in RICH_K for kernel in RICH_KERNELS for norm in RICH_NORMS
        ]
        down = _downs(RICH_RATIOS, tuple(k for k in RICH_K if k <= channels), width)
        down += tuple(inverted(ratio, kernel, width, 2) for ratio in RICH_RATIOS for kernel in (2, 3))
        if skeleton == "l" and width == channels:
            # The last halving meets odd maps at the published size, of which a kernel of 3 would leave more.
            down = tuple(block for block in down if block.kernel == 2)
        stages.append((down, *[(*same, SKIP)] * (count - 1)))
        channels = width
    return SearchSpace(
        name=f"rich-{skeleton}",
        stem=(ConvSpec(stem, 2, 2, act=False), ConvSpec(stem, 3, 2, act=False)),
        stage1=((ConvSpec(wide, 2, 2), ConvSpec(wide, 3, 2)), (ConvSpec(narrow),)),
        stages=tuple(stages),
    )


STAR_DEPTHS = (2, 3, 5, 3)
STAR_WIDTHS = (16, 20, 24, 32)  # of the first stage; each doubles the one before
STAR_HEAD = 256


def star_space() -> SearchSpace:
    """Our space over StarNet's shape, for evolution: the first stage is 16, 20, 24 or 32 channels wide.

    A stem, then in each of four stages a dense convolution that halves the map and up to 2, 3, 5 and 3 blocks: 12
    or 16 channels of which all pairs are multiplied, three or four whole blocks of channels, the star operation,
    one product of two depthwise convolutions, the inverted bottleneck, also in groups, Ghost, static ACH, or none;
    with depthwise kernels of 3, 5 or 7, and one depthwise convolution or two where there are bare products. The
    activation is ReLU6 or Hardswish, and the head has a hidden layer or none.
    """

    def blocks(width: int) -> tuple[BlockSpec | Skip, ...]:
        half, quarter = width // 2, width // 4
        sizes = ((12, 1), (16, 1), (3, half), (4, quarter), (2, 2 * width), (2, 3 * width))
        own: list[BlockSpec] = []
        for kernel in RICH_KERNELS:
            own += [products(k, w, kernel, width, after=after) for k, w in sizes for after in (False, True)]
            own += [poly(kernel, width), inverted(2, kernel, width), inverted(4, kernel, width)]
            own += [
                inverted(4, kernel, width, groups=2),
                ghost(4, kernel, width),
                ghost(4, kernel, width, join="add"),
            ]
            own += [ach(16, kernel, width)]
        return (*own, SKIP)

    widest = STAR_WIDTHS[-1]
    stages = []
    for number, depth in enumerate(STAR_DEPTHS):
        width = widest * 2**number
        stages.append(((conv(width),), *[blocks(width)] * depth))
    return SearchSpace(
        name="star",
        stem=(ConvSpec(32, 3, 2),),
        stage1=(),
        stages=tuple(stages),
        last_channels=None,
        head_channels=None,
        selection="static",
        activation="relu6",
        alternatives={"activation": ("relu6", "hardswish"), "head_channels": (None, STAR_HEAD)},
        widths=tuple(width / widest for width in STAR_WIDTHS),
    )


def spaces_command(name: str | None, save: Path | None) -> None:
    """Print the spaces that ship, or one position by position; write it to `save`.

    Raises:
        UserError: there is no such space, `save` exists, or there is nothing to save.
    """
    if name is None:
        if save is not None:
            raise UserError(f"which space is to be saved to {save}? choose one of {', '.join(names())}")
        for known in names():
            space = open_space(known)
            say(f"{known:10} {len(space.positions):3} positions, {space.size:.3g} choices")
        return
    space = open_space(name)
    if save is not None:
        refuse_existing(save, "--save")
        space.save(save)
        say(f"{space.name} written to {save}")
        return
    for number, position in enumerate(space.positions, start=1):
        channels = next(c.channels for c in position if isinstance(c, ConvSpec | BlockSpec))
        say(f"{number:3} to {channels:3} channels: {', '.join(label(candidate) for candidate in position)}")
    if len(space.widths) > 1:
        say(f"all of it {', '.join(f'{width:g}' for width in space.widths)} times as wide")
    for name, values in space.alternatives.items():
        say(f"{name} {' or '.join('none' if value is None else str(value) for value in values)}")
