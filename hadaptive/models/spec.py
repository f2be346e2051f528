"""A network is data: frozen dataclasses that describe a Hadaptive-Net, with a JSON round trip.

A found architecture, a published one and one written by hand are all a :class:`NetSpec`, and every command
takes a spec file wherever it takes a model name.

    >>> spec = NetSpec.load("my_net.json")
    >>> spec.with_stem_strides(1, 1).save("my_net_32px.json")
"""

import dataclasses
import hashlib
import json
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadaptive.errors import UserError
from hadaptive.nn.ach import PAIRINGS
from hadaptive.nn.checks import check_choice, check_selection
from hadaptive.nn.normalisation import NORMS

FORMAT = "hadaptive-net"
VERSION = 1
KINDS = ("ghost", "ach", "inverted")
LATER = {  # fields that older files do not have, by class
    "NetSpec": ("selection", "noise", "temperature", "score_kernel", "mix"),
    "BlockSpec": ("act", "pairing"),
    "ConvSpec": ("padding",),
}


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a positive whole number, got {value!r}")


def _is_positive_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def as_list(what: str, data: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise UserError(f"{what} must be a list, got {reprlib.repr(data)}")
    return data


def as_fields(cls: type, what: str, data: Any) -> dict[str, Any]:
    """`data`, if it is a dict that has every field `cls` needs and no other."""
    if not isinstance(data, dict):
        raise UserError(f"{what} must be an object with named fields, got {reprlib.repr(data)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in data:
        if name not in fields:
            raise UserError(f"{what} has an unknown field {reprlib.repr(name)}; it has {', '.join(fields)}")
    for name, field in fields.items():
        if name not in data and field.default is dataclasses.MISSING:
            raise UserError(f"{what} lacks the field {name!r}")
    return data


def contents(cls: type, what: str, data: Any, format: str, version: int) -> dict[str, Any]:
    """The fields of `cls` in a document that names its format and version, as a new dict."""
    if not isinstance(data, dict) or data.get("format") != format:
        raise UserError(f'not a {what}: the field "format" must be "{format}"')
    found = data.get("version")
    if isinstance(found, bool) or found != version:
        raise UserError(f"this {what} has version {found!r}, only {version} is known")
    rest = {key: value for key, value in data.items() if key not in ("format", "version")}
    return dict(as_fields(cls, f"the {what}", rest))


@dataclass(frozen=True)
class ConvSpec:
    """A plain convolution + BatchNorm, and Hardswish if `act`. A stride-1 one keeps the map's size.

    Attributes:
        channels: channels out.
        kernel: height and width.
        stride: of the convolution.
        act: whether there is the Hardswish.
        padding: rows of zeros around the map; None for (kernel - 1) // 2. 0 cuts a map into patches where the
            stride is the kernel.
    """

    channels: int
    kernel: int = 1
    stride: int = 1
    act: bool = True
    padding: int | None = None

    def __post_init__(self) -> None:
        _check_positive(channels=self.channels, kernel=self.kernel, stride=self.stride)
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
    """An adaptive bottleneck.

    Attributes:
        kind: "ghost" or "inverted" (both use `ratio`), or "ach" (uses `k` and `norm`).
        channels: channels out.
        kernel: of the depthwise convolution.
        stride: of the depthwise convolution.
        ratio: expansion ratio of Ghost or of the inverted bottleneck.
        k: channels ACH selects; of pairing "blocks" how many blocks.
        norm: of ACH's products, a name in ``hadaptive.nn.NORMS``.
        act: whether the inverted bottleneck's expansion ends in Hardswish. Without, and with a ratio of 1, it is
            what is left of an ACH block without products.
        pairing: of ACH's channels, "triangle" or "blocks", which are not selected, see
            :class:`hadaptive.nn.CrossHadamardExpansion`.
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

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        _check_positive(channels=self.channels, kernel=self.kernel, stride=self.stride)
        check_choice("norm", self.norm, tuple(NORMS))
        if self.kind != "ach" and (not _is_positive_number(self.ratio) or self.k is not None):
            raise UserError(
                f"a block of kind {self.kind} needs a positive ratio and no k, got {self.ratio!r} and {self.k!r}"
            )
        if self.kind != "ach" and self.norm != "dysoft":
            raise UserError(f"norm is for ach blocks; one of kind {self.kind} cannot have {self.norm!r}")
        check_choice("pairing", self.pairing, PAIRINGS)
        if self.kind != "ach" and self.pairing != "triangle":
            raise UserError(f"pairing is for ach blocks; one of kind {self.kind} cannot have {self.pairing!r}")
        if self.kind == "ach":
            _check_positive(k=self.k)
            if self.k is None or self.k < 2 or self.ratio is not None:
                raise UserError(f"an ach block needs k >= 2 and no ratio, got {self.k!r} and {self.ratio!r}")
        if not isinstance(self.act, bool) or (not self.act and self.kind != "inverted"):
            raise UserError(
                f"act is true, or false for an inverted block; got {self.act!r} for one of kind {self.kind}"
            )
        if self.stride == 1 and self.kernel % 2 == 0:
            raise UserError(f"a stride-1 block needs an odd kernel to keep its size, got {self.kernel}")

    @property
    def rim(self) -> int:
        """Rows of zeros around the map that the depthwise convolution sees."""
        return (self.kernel - 1) // 2


@dataclass(frozen=True)
class NetSpec:
    """A whole network: stem, two stage-1 convolutions, stages of bottlenecks, last convolution, head.

    Attributes:
        name: for people; no effect.
        stem: the first convolution.
        stage1: the convolutions of stage 1.
        stages: the bottlenecks of stage 2 and on; each stage ends where a feature pyramid would tap it.
        last_channels: width of the 1x1 convolution after the last stage.
        head_channels: width of the hidden linear layer before the classifier.
        order: of ACH's selected channels, "rank" or "index".
        surrogate: of ACH's selection gradient, "softmax", "softmax_k", "simple" or "sfess".
        selection: which channels ACH selects, "sample" (the paper's), "grouped", "static" or "random", see
            :class:`hadaptive.nn.CrossHadamardExpansion`. Random ones are drawn by the number of the block.
        noise: scale of the selection's noise in training.
        temperature: of the selection, a constant; None adapts it.
        score_kernel: odd width of the convolution over channels that scores them; 0 for none.
        mix: whether ACH mixes channels by a 1x1 convolution before it multiplies them.
    """

    name: str
    stem: ConvSpec
    stage1: tuple[ConvSpec, ...]
    stages: tuple[tuple[BlockSpec, ...], ...]
    last_channels: int = 960
    head_channels: int = 1280
    order: str = "rank"
    surrogate: str = "softmax"
    selection: str = "sample"
    noise: float = 1.0
    temperature: float | None = None
    score_kernel: int = 5
    mix: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.mix, bool):
            raise UserError(f"mix must be true or false, got {self.mix!r}")
        if not isinstance(self.name, str):
            raise UserError(f"name must be a text, got {self.name!r}")
        _check_positive(last_channels=self.last_channels, head_channels=self.head_channels)
        try:
            check_selection(
                self.selection, self.order, self.surrogate, self.noise, self.temperature, self.score_kernel
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        if not self.stages or not all(self.stages):
            raise UserError("a network needs at least one stage, and each stage at least one block")
        channels = self.stage1_channels
        for block in (block for stage in self.stages for block in stage):
            if block.k is not None and block.k > channels:
                raise UserError(f"an ach block selects k = {block.k} of only {channels} channels")
            if block.ratio is not None and block.ratio * channels < 1:
                raise UserError(f"a {block.kind} block's ratio {block.ratio} leaves no channel of {channels}")
            channels = block.channels

    @property
    def stage1_channels(self) -> int:
        """Channels that enter the first bottleneck."""
        return self.stage1[-1].channels if self.stage1 else self.stem.channels

    @property
    def convs(self) -> tuple[ConvSpec, ...]:
        """Stem and stage-1 convolutions, in order."""
        return (self.stem, *self.stage1)

    @property
    def reduction(self) -> int:
        """How many input pixels one pixel of the last map stands for, along a side."""
        result = 1
        for conv in self.convs:
            result *= conv.stride
        for block in (block for stage in self.stages for block in stage):
            result *= block.stride
        return result

    def with_stem_strides(self, *strides: int) -> "NetSpec":
        """The same network with other strides in its first convolutions, for small images.

        A stride of 1 also turns a 2x2 kernel into a 3x3 one, because an even kernel cannot keep a map's size.
        ``(1, 1)`` suits 32x32 images (the stages then see the maps a 128x128 image would give them), ``(1, 2)``
        64x64 ones.

        Raises:
            UserError: a stride is not 1 or 2, or there are more strides than strided convolutions.
        """
        strided = [i for i, conv in enumerate(self.convs) if conv.stride > 1 or conv.kernel > 1]
        if len(strides) > len(strided) or any(s not in (1, 2) for s in strides):
            raise UserError(f"stem_strides must be up to {len(strided)} values of 1 or 2, got {strides}")
        convs = list(self.convs)
        for i, stride in zip(strided, strides, strict=False):
            kernel = convs[i].kernel if stride > 1 or convs[i].kernel % 2 else convs[i].kernel + 1
            convs[i] = dataclasses.replace(
                convs[i], stride=stride, kernel=kernel, padding=None if stride == 1 else convs[i].padding
            )
        return dataclasses.replace(self, stem=convs[0], stage1=tuple(convs[1:]))

    @property
    def fingerprint(self) -> str:
        """What tells this network from others: a hash of all but its name."""
        content = {key: value for key, value in self.to_dict().items() if key != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; defaults that do not apply to a block's kind are left out."""
        data = dataclasses.asdict(self)
        for conv in (data["stem"], *data["stage1"]):
            without_later(ConvSpec, conv)
        for stage in data["stages"]:
            for block in stage:
                for key in ("ratio", "norm") if block["kind"] == "ach" else ("k", "norm"):
                    if block[key] is None or (key == "norm" and block["kind"] != "ach"):
                        del block[key]
                without_later(BlockSpec, block)
        return {"format": FORMAT, "version": VERSION, **without_later(NetSpec, data)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "NetSpec":
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: not a network spec, a newer version of one, or a field that is missing or unknown.
        """
        rest = contents(cls, "network spec", data, FORMAT, VERSION)
        rest["stem"] = ConvSpec(**as_fields(ConvSpec, "the stem", rest["stem"]))
        rest["stage1"] = tuple(
            ConvSpec(**as_fields(ConvSpec, "a stage-1 convolution", conv))
            for conv in as_list("stage1", rest["stage1"])
        )
        rest["stages"] = tuple(
            tuple(BlockSpec(**as_fields(BlockSpec, "a block", block)) for block in as_list("a stage", stage))
            for stage in as_list("stages", rest["stages"])
        )
        return cls(**rest)

    def save(self, path: str | Path) -> None:
        """Write the spec as JSON."""
        from hadaptive.files import write_json  # a network that is only built needs no files

        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "NetSpec":
        """Read a spec from JSON.

        Raises:
            UserError: the file is not JSON or not a network spec.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None


def without_later(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    """`data` without those of LATER that are as in files from before: fingerprints stay what they were."""
    for field in dataclasses.fields(cls):
        if field.name in LATER[cls.__name__] and data.get(field.name) == field.default:
            data.pop(field.name, None)
    return data


def as_spec(spec: NetSpec | dict[str, Any] | str | Path) -> NetSpec:
    """The spec that is meant: itself, its plain data, or the path of a JSON file that holds it.

    Raises:
        UserError: it is none of them.
    """
    if isinstance(spec, NetSpec):
        return spec
    if isinstance(spec, dict):
        return NetSpec.from_dict(spec)
    if not isinstance(spec, str | Path):
        kind = type(spec).__name__
        raise UserError(f"a spec is a NetSpec, a dict or the path of a .json file, not of type {kind}")
    if not Path(spec).is_file():
        raise UserError(f"there is no network spec file {spec}")
    return NetSpec.load(spec)


def ghost(ratio: float, kernel: int, channels: int, stride: int = 1) -> BlockSpec:
    """method.md's ``G<ratio>/<kernel>/<stride>-><channels>``."""
    return BlockSpec("ghost", channels, kernel, stride, ratio=float(ratio))


def inverted(ratio: float, kernel: int, channels: int, stride: int = 1, act: bool = True) -> BlockSpec:
    """An inverted bottleneck, as in MobileNetV2; without an activation behind its expansion if not `act`."""
    return BlockSpec("inverted", channels, kernel, stride, ratio=float(ratio), act=act)


def ach(
    k: int, kernel: int, channels: int, stride: int = 1, norm: str = "dysoft", pairing: str = "triangle"
) -> BlockSpec:
    """``A<k>/<kernel>``, with norm="batchnorm" the paper's ``A<k>/<kernel>b``."""
    return BlockSpec("ach", channels, kernel, stride, k=k, norm=norm, pairing=pairing)
