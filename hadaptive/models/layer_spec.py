"""The layers of a network as data: plain convolutions, and blocks of every kind."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from hadaptive.errors import UserError
from hadaptive.models.documents import check_one_of, check_positive, is_positive_number, without_later
from hadaptive.nn.ach import PAIRINGS
from hadaptive.nn.checks import JOINS
from hadaptive.nn.normalisation import NORMS

# What each kind of block is made of, beside channels, kernel and stride.
KINDS: dict[str, tuple[str, ...]] = {
    "ghost": ("ratio", "join"),
    "ach": ("k", "norm", "pairing", "join"),
    "inverted": ("ratio", "act", "groups"),
    "conv": ("act",),
    "products": ("k", "width", "norm", "act", "after"),
    "poly": ("act",),
}


@dataclass(frozen=True)
class ConvSpec:
    """A plain convolution + BatchNorm, and the network's activation if `act`. A stride-1 one keeps the map's size.

    Attributes:
        channels: channels out.
        kernel: height and width.
        stride: of the convolution.
        act: whether there is the activation.
        padding: rows of zeros around the map; None for (kernel - 1) // 2. 0 cuts a map into patches where the
            stride is the kernel.
    """

    channels: int
    kernel: int = 1
    stride: int = 1
    act: bool = True
    padding: int | None = None

    def __post_init__(self) -> None:
        check_positive(channels=self.channels, kernel=self.kernel, stride=self.stride)
        if not isinstance(self.act, bool):
            raise UserError(f"act must be true or false, got {self.act!r}")
        if self.stride == 1 and self.kernel % 2 == 0:
            raise UserError(f"a stride-1 convolution needs an odd kernel to keep its size, got {self.kernel}")
        padding = self.padding
        if padding is None:
            return
        if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < self.kernel:
            raise UserError(f"padding must be a whole number from 0 to kernel - 1, or left out, got {padding!r}")
        if self.stride == 1 and padding != (self.kernel - 1) // 2:
            raise UserError(f"a stride-1 convolution of {self.kernel} needs its own padding to keep its size")

    @property
    def rim(self) -> int:
        """Rows of zeros around the map."""
        return (self.kernel - 1) // 2 if self.padding is None else self.padding


@dataclass(frozen=True)
class BlockSpec:
    """A block of a stage.

    Attributes:
        kind: "ach" (uses `k`, `norm`, `pairing` and `join`), "ghost" (uses `ratio` and `join`) or "inverted" (uses
            `ratio`, `act` and `groups`), which expand in an adaptive bottleneck; "products", a
            :class:`hadaptive.nn.ProductBlock` (uses `k`, `width`, `norm`, `act` and `after`); "poly", a
            :class:`hadaptive.nn.PolyBlock` (uses `act`); or "conv", a dense convolution, such as one that halves
            the map (uses `act`).
        channels: channels out.
        kernel: of the depthwise convolution, of "conv" the dense one.
        stride: of the same; "products" and "poly" have stride 1.
        ratio: expansion ratio of Ghost or of the inverted bottleneck.
        k: channels ACH selects; of pairing "blocks" and of "products" how many blocks.
        norm: of the products, a name in ``hadaptive.nn.NORMS``.
        act: whether there is the network's activation: behind the inverted bottleneck's expansion, behind "conv",
            or on one factor of each product. Without, and with a ratio of 1, an inverted bottleneck is what
            is left of an ACH block without products.
        pairing: of ACH's channels, "triangle" or "blocks", which are not selected, see
            :class:`hadaptive.nn.CrossHadamardExpansion`.
        width: channels of each of the k blocks of "products".
        after: whether "products" end in a second depthwise convolution.
        groups: of the inverted bottleneck's expansion.
        join: "concat" appends ACH's products to the mixed channels, or Ghost's cheap channels to the primary ones;
            "add" adds them.
    """

    kind: str
    channels: int
    kernel: int
    stride: int = 1
    ratio: float | None = None
    k: int | None = None
    norm: str = "dysoft"
    act: bool = True
    pairing: str = "triangle"
    width: int | None = None
    after: bool = False
    groups: int = 1
    join: str = "concat"

    def __post_init__(self) -> None:
        check_one_of("kind", self.kind, tuple(KINDS))
        check_positive(channels=self.channels, kernel=self.kernel, stride=self.stride, groups=self.groups)
        check_one_of("norm", self.norm, tuple(NORMS))
        check_one_of("pairing", self.pairing, PAIRINGS)
        check_one_of("join", self.join, JOINS)
        for name in ("act", "after"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("ratio", "k", "width"):
            self._check_number(name)
        for name in ("norm", "act", "pairing", "after", "groups", "join"):
            owners = [kind for kind, own in KINDS.items() if name in own]
            if self.kind not in owners and getattr(self, name) != getattr(BlockSpec, name):
                raise UserError(
                    f"{name} is for {' and '.join(owners)} blocks; one of kind {self.kind} cannot have "
                    f"{getattr(self, name)!r}"
                )
        if self.k is not None and self.k < 2:
            raise UserError(f"a block of kind {self.kind} needs k >= 2, got {self.k}")
        if self.keeps and self.stride > 1:
            raise UserError(f"a block of kind {self.kind} has stride 1, got {self.stride}")
        if self.kind == "poly" and self.channels % 2:
            raise UserError(f"a block of kind poly needs an even number of channels, got {self.channels}")
        if self.stride == 1 and self.kernel % 2 == 0:
            raise UserError(f"a stride-1 block needs an odd kernel to keep its size, got {self.kernel}")

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if name not in KINDS[self.kind]:
            if value is not None:
                raise UserError(f"a block of kind {self.kind} has no {name}, got {value!r}")
        elif name == "ratio":
            if not is_positive_number(value):
                raise UserError(f"a block of kind {self.kind} needs a positive ratio, got {value!r}")
        else:
            check_positive(**{name: value})

    @property
    def keeps(self) -> bool:
        """Whether its kind can only keep the map's shape."""
        return self.kind in ("products", "poly")

    @property
    def rim(self) -> int:
        """Rows of zeros around the map that the convolution over it sees."""
        return (self.kernel - 1) // 2

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; what does not apply to the kind is left out."""
        own = {"kind", "channels", "kernel", "stride", *KINDS[self.kind]}
        data = {name: value for name, value in dataclasses.asdict(self).items() if name in own}
        return without_later(BlockSpec, data)


def ghost(ratio: float, kernel: int, channels: int, stride: int = 1, join: str = "concat") -> BlockSpec:
    """method.md's ``G<ratio>/<kernel>/<stride>-><channels>``; with join="add" RepGhost's."""
    return BlockSpec("ghost", channels, kernel, stride, ratio=float(ratio), join=join)


def inverted(
    ratio: float, kernel: int, channels: int, stride: int = 1, act: bool = True, groups: int = 1
) -> BlockSpec:
    """An inverted bottleneck, as in MobileNetV2; without an activation behind its expansion if not `act`."""
    return BlockSpec("inverted", channels, kernel, stride, ratio=float(ratio), act=act, groups=groups)


def ach(
    k: int, kernel: int, channels: int, stride: int = 1, norm: str = "dysoft", pairing: str = "triangle"
) -> BlockSpec:
    """``A<k>/<kernel>``, with norm="batchnorm" the paper's ``A<k>/<kernel>b``."""
    return BlockSpec("ach", channels, kernel, stride, k=k, norm=norm, pairing=pairing)


def conv(channels: int, kernel: int = 3, stride: int = 2, act: bool = False) -> BlockSpec:
    """A dense convolution + BatchNorm, by default one that halves the map, as in StarNet."""
    return BlockSpec("conv", channels, kernel, stride, act=act)


def products(
    k: int,
    width: int,
    kernel: int,
    channels: int,
    *,
    act: bool = True,
    norm: str = "identity",
    after: bool = False,
) -> BlockSpec:
    """All pairs of k blocks of `width` channels multiplied; k = 2 is the star operation of StarNet."""
    return BlockSpec("products", channels, kernel, k=k, width=width, norm=norm, act=act, after=after)


def poly(kernel: int, channels: int, *, act: bool = True) -> BlockSpec:
    """One product of two depthwise convolutions between two 1x1 ones."""
    return BlockSpec("poly", channels, kernel, act=act)
