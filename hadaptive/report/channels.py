"""What a report says of the products: which channels are multiplied, how much hangs on them, how they went."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hadaptive.files import read_csv
from hadaptive.nn.pair_stats import PairReport, record_pairs
from hadaptive.nn.product_stats import ProductRecorder, ProductReport
from hadaptive.report import charts
from hadaptive.report.page import Block, Figures, Note, Section, Table
from hadaptive.runs import RunFolder

PAIRS = 8  # of each layer
ABOUT = (
    "The effect of a product is how far it moves the lead of the likeliest class over the next, to first order "
    "(its values times their gradients), as a share of all products of its layer. The last column says how much "
    "of the effect of all channels that a layer gives is of its products."
)


def short(layer: str) -> str:
    """A layer by the block that it is in."""
    for end in (".expansion.cross_hadamard", ".expansion.expansion", ".cross_hadamard", ".products"):
        layer = layer.removesuffix(end)
    return layer


def channel_sections(network: nn.Module, batches: Sequence[Tensor], run: RunFolder) -> list[Section]:
    """The sections about channel pairs, and about selections and products; empty where there are none.

    Args:
        network: in eval mode, on the CPU.
        batches: of images to watch it on.
        run: for what was recorded in training.
    """
    telemetry = Section("Selections and products")
    reports = record_pairs(network, batches)
    if (selection := read_csv(run.selection)) and (chart := _telemetry(selection)):
        telemetry.blocks.append(Figures(chart))
    with torch.no_grad(), ProductRecorder(network, training=False) as recorder:
        for images in batches if recorder.layers else ():
            network(images)
    if products := recorder.reports():
        telemetry.blocks.append(_products(products))
    if not reports:
        return [Section("Channel pairs"), telemetry]
    images = reports[0].samples
    blocks: list[Block] = [Note(f"On {images:,} images. {ABOUT}"), _layers(reports), _pairs(reports)]
    blocks.append(Figures([_heat(report) for report in reports]))
    return [Section("Channel pairs", blocks), telemetry]


def _layers(reports: Sequence[PairReport]) -> Table:
    rows = []
    for report in reports:
        used, met = int((report.frequency > 0).sum()), int((report.pairs > 0).sum())
        always = int((report.frequency == 1).sum())
        rows.append(
            (
                short(report.layer),
                f"{len(report.frequency):,}",
                f"{used:,}",
                "all of them" if report.fixed else f"{always:,}",
                f"{met:,}",
                f"{report.half():,}",
                "" if math.isnan(report.share) else f"{report.share:.1%}",
            )
        )
    columns = ("layer", "channels", "ever selected", "in every image", "pairs met", "pairs with half the effect",
               "effect of products")  # fmt: skip
    return Table("Layers with products", columns, rows, frozenset(range(1, 7)))


def _pairs(reports: Sequence[PairReport]) -> Table:
    rows = []
    for report in reports:
        total = float(report.effect.sum())
        for place, (i, j) in enumerate(report.strongest(PAIRS)):
            weight = float(report.weight[i, j])
            rows.append(
                (
                    short(report.layer) if place == 0 else "",
                    f"{i} with {j}",
                    f"{float(report.pairs[i, j]):.0%}",
                    f"{float(report.effect[i, j]) / total:.1%}" if total else "",
                    "" if math.isnan(weight) else f"{weight:.3f}",
                )
            )
    columns = ("layer", "channels", "of the images", "of the effect", "weight of the norm")
    return Table(f"The {PAIRS} strongest pairs of each layer", columns, rows, frozenset((1, 2, 3, 4)))


def _heat(report: PairReport) -> Any:
    """Effect over the channels that were ever selected; others are left out where that leaves out much."""
    both = report.effect + report.effect.T
    met = (report.pairs + report.pairs.T) > 0
    shares = torch.where(met, 100 * both / report.effect.sum().clamp(min=1e-300), torch.nan)
    used = (report.frequency > 0).nonzero().flatten()
    if report.fixed:
        shares = shares[used][:, used]
    return charts.heat(short(report.layer), "% of the effect", shares.tolist())


def _telemetry(rows: list[dict[str, str]]) -> list[Any]:
    """Over the epochs of the training, a line for each layer."""
    pictures = []
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for key, title in (
        ("agreement", "Noisy selection agrees with the noiseless one"),
        ("entropy", "Entropy of the selections, 1 spreads"),
        ("temperature", "Temperature"),
        ("alpha", "Alpha of DySoft"),
    ):
        series = {}
        for layer in layers:
            own = [row for row in rows if row["layer"] == layer and row.get(key)]
            points = [(int(row["epoch"]) + 1, float(row[key])) for row in own]
            points = [(x, y) for x, y in points if math.isfinite(y)]
            if points:
                series[short(layer)] = tuple(zip(*points, strict=True))
        if series:
            pictures.append(charts.lines(title, "epoch", key, series))
    return pictures


def _products(reports: Sequence[ProductReport]) -> Table:
    rows = [
        (
            short(report.layer),
            f"{report.scale:.3g}",
            "" if math.isnan(report.kurtosis) else f"{report.kurtosis:.3g}",
            "" if math.isnan(report.largest) else f"{report.largest:.3g}",
            f"{report.normed_scale:.3g}",
            f"{report.normed_largest:.3g}",
            "yes" if report.finite else "no",
        )
        for report in reports
    ]
    columns = ("layer", "size", "excess kurtosis", "largest, in sizes", "size behind the norm",
               "largest behind the norm", "all finite")  # fmt: skip
    caption = "Products before and behind their norm (size: root mean square)"
    return Table(caption, columns, rows, frozenset(range(1, 6)))
