"""A network is data: frozen dataclasses that describe a Hadaptive-Net, with a JSON round trip.

A found architecture, a published one and one written by hand are all a :class:`NetSpec`, and every command
takes a spec file wherever it takes a model name.

    >>> spec = NetSpec.load("my_net.json")
    >>> spec.with_stem_strides(1, 1).save("my_net_32px.json")
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadaptive.errors import UserError
from hadaptive.models.documents import (
    as_fields,
    as_list,
    check_one_of,
    check_positive,
    contents,
    is_positive_number,
    without_later,
)
from hadaptive.models.layer_spec import BlockSpec, ConvSpec
from hadaptive.nn.checks import check_selection
from hadaptive.nn.layers import ACTIVATIONS

FORMAT = "hadaptive-net"
VERSION = 1


def check_block(block: BlockSpec, channels: int) -> None:
    """Raise one clear UserError unless a block can read a map of so many channels."""
    if block.kind == "ach" and block.k is not None and block.k > channels:
        raise UserError(f"an ach block selects k = {block.k} of only {channels} channels")
    if block.keeps and block.channels != channels:
        raise UserError(f"a block of kind {block.kind} keeps its {channels} channels, got {block.channels}")
    if block.ratio is not None and block.ratio * channels < 1:
        raise UserError(f"a {block.kind} block's ratio {block.ratio} leaves no channel of {channels}")
    if block.ratio is not None and (channels % block.groups or int(channels * block.ratio) % block.groups):
        raise UserError(
            f"{block.groups} groups do not divide the {channels} channels of a block and the "
            f"{int(channels * block.ratio)} it expands them to"
        )


@dataclass(frozen=True)
class NetSpec:
    """A whole network: stem, stage-1 convolutions, stages of blocks, last convolution, head.

    Attributes:
        name: for people; no effect.
        stem: the first convolution.
        stage1: the convolutions of stage 1.
        stages: the blocks of stage 2 and on; each stage ends where a feature pyramid would tap it.
        last_channels: width of the 1x1 convolution after the last stage; None for a BatchNorm in its place.
        head_channels: width of the hidden linear layer before the classifier; None for none.
        order: of ACH's selected channels, "rank" or "index".
        surrogate: of ACH's selection gradient, "softmax", "softmax_k", "simple" or "sfess".
        selection: which channels ACH selects, "sample" (the paper's), "grouped", "static" or "random", see
            :class:`hadaptive.nn.CrossHadamardExpansion`. Random ones are drawn by the number of the block.
        noise: scale of the selection's noise in training.
        temperature: of the selection, a constant; None adapts it.
        score_kernel: odd width of the convolution over channels that scores them; 0 for none.
        mix: whether ACH mixes channels by a 1x1 convolution before it multiplies them.
        activation: of all layers that have one, "hardswish" (the paper's), "relu6" or "relu".
        reparam: whether depthwise convolutions of blocks with odd kernels are trained as
            :class:`hadaptive.nn.RepDepthwise`, with a 3x3 one beside a larger one and the identity where the map
            keeps its size; deployed they are one.
        layer_scale: initial value of a learnt scale of each channel of every residual branch; None for none.
            Deployed it is part of the branch's last convolution.
    """

    name: str
    stem: ConvSpec
    stage1: tuple[ConvSpec, ...]
    stages: tuple[tuple[BlockSpec, ...], ...]
    last_channels: int | None = 960
    head_channels: int | None = 1280
    order: str = "rank"
    surrogate: str = "softmax"
    selection: str = "sample"
    noise: float = 1.0
    temperature: float | None = None
    score_kernel: int = 5
    mix: bool = True
    activation: str = "hardswish"
    reparam: bool = False
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("mix", "reparam"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.layer_scale is not None and not is_positive_number(self.layer_scale):
            raise UserError(f"layer_scale must be a positive number, or left out, got {self.layer_scale!r}")
        if not isinstance(self.name, str):
            raise UserError(f"name must be a text, got {self.name!r}")
        for name in ("last_channels", "head_channels"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})
        check_one_of("activation", self.activation, tuple(ACTIVATIONS))
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
            check_block(block, channels)
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
        data["stages"] = [[block.to_dict() for block in stage] for stage in self.stages]
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
