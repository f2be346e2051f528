"""What a network is made of and what it costs: parameters, multiply-accumulates, element-wise products."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hadaptive import ops
from hadaptive.console import console, say
from hadaptive.errors import UserError, first_line
from hadaptive.files import json_text, refuse_existing
from hadaptive.models import create_model, spec_of
from hadaptive.nn import (
    AdaptiveBottleneck,
    AdaptiveCrossHadamard,
    ChannelScore,
    FixedSelection,
    GhostExpansion,
    GroupedSelection,
    InvertedExpansion,
    PolyBlock,
    ProductBlock,
    StaticSelection,
    expansions,
)
from hadaptive.nn.reparam import reparameterized
from hadaptive.runs import RunFolder


class _ProductCounter(TorchDispatchMode):
    """Counts multiplications of two feature maps of one shape, which FLOP counters leave out.

    Scaling by a per-channel factor (a gate, a norm's weight, squeeze-and-excite) is not such a product, nor is
    what a norm of products makes of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.paused = False

    def pause(self, *_: Any) -> None:
        self.paused = True

    def resume(self, *_: Any) -> None:
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.paused and func in (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor):
            a, b = args[:2]
            if (
                isinstance(a, Tensor)
                and isinstance(b, Tensor)
                and a.dim() >= 3
                and a.shape == b.shape == out.shape
            ):
                self.total += out.numel()
        return out


@dataclass(frozen=True)
class LayerInfo:
    """One row of the table: a module, its output shape for one image, its parameters and costs."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    products: int


@dataclass(frozen=True)
class NetworkInfo:
    """The whole network's figures for one image.

    Attributes:
        layers: a row per block.
        parameters: learnt numbers.
        buffers: numbers kept but not learnt (BatchNorm statistics, temperatures).
        macs: multiply-accumulates of convolutions and linear layers; ACH's score convolution, a 1-D one over
            the channels, is left out, as in the paper.
        products: element-wise products of two feature maps.
        input_size: (channels, height, width) they hold for.
    """

    layers: list[LayerInfo]
    parameters: int
    buffers: int
    macs: int
    products: int
    input_size: tuple[int, int, int]


def _measured_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """A readable cut through the module tree: children, and the blocks inside Sequential ones."""
    result = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential) and any(True for m in child for _ in m.children()):
            result += [(f"{name}.{inner}", module) for inner, module in _measured_modules(child)]
        else:
            result.append((name, child))
    return result


def _describe(module: nn.Module) -> str:
    if isinstance(module, AdaptiveBottleneck):
        kernel = module.depthwise[0].kernel_size[0]  # pyright: ignore[reportIndexIssue]
        if isinstance(module.expansion, AdaptiveCrossHadamard):
            expansion = module.expansion.cross_hadamard
            own = {FixedSelection: " fixed", StaticSelection: " static", GroupedSelection: " grouped"}
            how = own.get(type(expansion.select), "")
            if expansion.block > 1:
                how = f" in blocks of {expansion.block}"
            if isinstance(module.expansion.mix, nn.Identity):
                how += " without mix"
            if isinstance(expansion.score, ChannelScore) and isinstance(expansion.score.conv, nn.Identity):
                how += " by pooled channels"
            how += " added" if module.expansion.added else ""
            return f"ACH k={expansion.k}{how}, {type(expansion.norm).__name__}, depthwise {kernel}x{kernel}"
        if isinstance(module.expansion, GhostExpansion):
            how = " added" if module.expansion.added else ""
            return f"Ghost{how} to {module.expansion.out_channels}, depthwise {kernel}x{kernel}"
        if isinstance(module.expansion, InvertedExpansion):
            groups = module.expansion.convolution[0].groups  # pyright: ignore[reportIndexIssue]
            how = f" in {groups} groups" if groups > 1 else ""  # pyright: ignore[reportOperatorIssue]
            return f"Conv1x1 to {module.expansion.out_channels}{how}, depthwise {kernel}x{kernel}"
    if isinstance(module, PolyBlock):
        kernel = module.wide[0].kernel_size[0]  # pyright: ignore[reportIndexIssue]
        return f"product of depthwise {kernel}x{kernel} and 3x3"
    if isinstance(module, ProductBlock):
        products, kernel = module.products, module.depthwise[0].kernel_size[0]  # pyright: ignore[reportIndexIssue]
        norm = "" if isinstance(module.norm, nn.Identity) else f", {type(module.norm).__name__}"
        after = "" if isinstance(module.after, nn.Identity) else ", and another"
        return f"products of {products.k} blocks of {products.width}{norm}, depthwise {kernel}x{kernel}{after}"
    if isinstance(module, nn.Conv2d):
        return f"Conv {module.kernel_size[0]}x{module.kernel_size[1]}"
    if isinstance(module, nn.Sequential) and len(module):
        conv, *others = module
        if isinstance(conv, nn.Conv2d):
            kernel = f"{conv.kernel_size[0]}x{conv.kernel_size[1]}/{conv.stride[0]}"
            return " + ".join([f"Conv {kernel}", *(type(m).__name__ for m in others)])
    return type(module).__name__


@torch.no_grad()
def inspect_network(model: nn.Module, input_size: tuple[int, int, int]) -> NetworkInfo:
    """Count one image's worth of everything, on the plain-PyTorch path and in eval mode.

    Branches that are one convolution when deployed are counted as that, but for the parameters, which are learnt.

    Raises:
        UserError: the network cannot take images of this size.
    """
    was_training = model.training
    model.eval()
    deployed = reparameterized(model)
    device = next(model.parameters()).device
    image = torch.zeros(1, *input_size, device=device)
    rows: list[LayerInfo] = []
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        start: list[int] = []

        def before(*_: Any) -> None:
            start[:] = [flops.get_total_flops(), counter.total]

        def after(_: nn.Module, __: Any, out: Any) -> None:
            shape = tuple(out.shape[1:]) if isinstance(out, Tensor) else ()
            count = sum(p.numel() for p in model.get_submodule(name).parameters())
            macs, products = flops.get_total_flops() - start[0], counter.total - start[1]
            rows.append(LayerInfo(name, _describe(module), shape, count, macs // 2, products))

        handles.extend([module.register_forward_pre_hook(before), module.register_forward_hook(after)])

    for name, module in _measured_modules(deployed):
        watch(name, module)
    counter = _ProductCounter()
    blocks = [module for module in deployed.modules() if isinstance(module, ProductBlock)]
    for owner in (*expansions(deployed).values(), *blocks):
        handles.append(owner.norm.register_forward_pre_hook(counter.pause))
        handles.append(owner.norm.register_forward_hook(counter.resume))
    flops = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: _convolution_flops})
    try:
        with ops.backend("reference"), flops, counter:
            deployed(image)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the network cannot take images of {input_size}: {first_line(error)}") from None
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return NetworkInfo(
        layers=[row for row in rows if row.parameters or row.macs or row.products],
        parameters=sum(p.numel() for p in model.parameters()),
        buffers=sum(b.numel() for b in model.buffers()),
        macs=flops.get_total_flops() // 2,
        products=counter.total,
        input_size=input_size,
    )


def _convolution_flops(
    x_shape: Any, w_shape: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *args: Any,
    out_shape: Any = None, **kwargs: Any,
) -> int:  # fmt: skip
    if len(x_shape) == 3:
        return 0  # 1-D: a score over channels, not a layer over positions
    per_output = 1
    for size in w_shape[1:]:
        per_output *= size
    positions = 1
    for size in (out_shape[0], *out_shape[2:]):
        positions *= size
    return 2 * positions * w_shape[0] * per_output


def info_command(
    model: str,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    stem_strides: tuple[int, ...] | None = None,
    as_json: bool = False,
    save_spec: Path | None = None,
) -> None:
    """Build the network that is meant (timm name, spec file or run folder) and print its figures.

    Raises:
        UserError: no such model, or it cannot take such images.
    """
    if Path(model).is_dir():
        card = RunFolder.open(model).read_card()
        source = card.spec or card.model
        image_size = image_size or card.preprocessing.image_size
        num_classes = len(card.classes) if num_classes is None else num_classes
        in_chans = in_chans or card.preprocessing.in_chans
    else:
        source = model
    network = create_model(
        source,
        num_classes=1000 if num_classes is None else num_classes,
        in_chans=in_chans or 3,
        stem_strides=stem_strides,
        image_size=image_size or 224,
    )
    if save_spec is not None:
        spec = spec_of(network)
        if spec is None:
            raise UserError(f"{model} is not a Hadaptive-Net and has no spec to save")
        refuse_existing(save_spec, "--save-spec")
        spec.save(save_spec)
    size = image_size or 224
    info = inspect_network(network, (in_chans or 3, size, size))
    if as_json:
        say(json_text(dataclasses.asdict(info)))
    else:
        print_info(info, model)


def print_info(info: NetworkInfo, title: str) -> None:
    """Print the table and the totals."""
    from rich.table import Table

    out = console()
    table = Table(title=title, title_justify="left")
    for column in ("layer", "what"):
        table.add_column(column)
    for column in ("output", "parameters", "MACs", "products"):
        table.add_column(column, justify="right")
    for row in info.layers:
        table.add_row(
            row.name,
            row.kind,
            "x".join(map(str, row.output)),
            f"{row.parameters:,}",
            f"{row.macs:,}",
            f"{row.products:,}" if row.products else "",
        )
    out.print(table)
    size = "x".join(map(str, info.input_size))
    out.print(
        f"{info.parameters:,} parameters, {info.buffers:,} buffer entries; for one {size} image "
        f"{info.macs / 1e6:,.1f} M MACs and {info.products / 1e6:,.2f} M element-wise products",
    )
