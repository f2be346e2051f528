"""Tables of how fast the operators and the networks made of them are in PyTorch."""

from benchmarks.rows import Rows, last, markdown_table, ratio


def operators_table(rows: Rows) -> str:
    """The ACH module's training step, as ratios to the fused one; the expansion alone, as a multiple of a copy."""
    lines = []
    groups: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        if row["what"] != "sweep":
            shape = tuple(row[key] for key in ("channels", "k", "side", "batch", "dtype", "layout"))
            groups.setdefault(shape, []).append(row)
    for (channels, k, side, batch, dtype, layout), group in groups.items():
        found = last(group, ("what", "variant"))
        fused = found["module step", "fused"]
        compiled = [ratio(row, fused) for (what, name), row in found.items() if name.endswith(", compiled")]
        alone = {name: row for (what, name), row in found.items() if what == "expansion alone"}
        both = [
            sum(float(alone[f"{way}, {who}"]["median_ms"]) for way in ("forward", "backward"))
            for who in ("fused", "copy")
        ]
        bottleneck = found["module step", "inverted bottleneck's expansion"]
        textbook = found["module step", "textbook"]
        lines.append(
            [
                f"{channels}, {k}, {side}x{side}, {batch}, {dtype}, {layout}",
                f"{float(fused['median_ms']):.2f}",
                f"{ratio(textbook, fused):.1f}",
                f"{min(compiled):.1f}" if compiled else "",
                f"{ratio(bottleneck, fused):.1f}",
                f"{ratio(found['module step', 'Conv1x1 + BatchNorm alone'], fused):.2f}",
                f"{float(textbook['saved_mib']) / float(fused['saved_mib']):.1f}",
                f"{both[0] / both[1]:.1f}",
            ]
        )
    header = ["C, k, H x W, batch", "fused, ms", "textbook / fused", "best compiled / fused"]
    header += ["inverted bottleneck / fused", "Conv + BN / fused", "saved: textbook / fused", "expansion / copy"]
    return markdown_table(header, lines)


def networks_table(rows: Rows) -> str:
    """Whole networks: medians, quartiles and ratios to the first network measured."""
    lines = []
    first: dict[tuple[str, ...], dict[str, str]] = {}
    for (what, layout, model), row in last(rows, ("what", "layout", "model")).items():
        base = first.setdefault((what, layout), row)
        spread = f"{float(row['lower_quartile_ms']):.1f} to {float(row['upper_quartile_ms']):.1f}"
        case = f"{what}, batch {row['batch']}, {layout}"
        lines.append([case, model, f"{float(row['median_ms']):.1f}", spread, f"{ratio(row, base):.2f}"])
    return markdown_table(["what", "model", "ms", "quartiles", "ratio"], lines)


def _spread(row: dict[str, str]) -> str:
    return f"{float(row['lower_quartile_ms']):.2f} to {float(row['upper_quartile_ms']):.2f}"


def compiled_table(rows: Rows) -> str:
    """Networks eager and compiled: ratios to the first that was compiled, at each size of image."""
    lines = []
    base: dict[str, dict[str, str]] = {}
    found = last(rows, ("image_size", "variant"))
    for (size, variant), row in found.items():
        if variant.endswith(", compiled"):
            base.setdefault(size, row)
    for (size, variant), row in found.items():
        times = [f"{float(row['median_ms']):.2f}", _spread(row), f"{ratio(row, base[size]):.2f}"]
        lines.append([f"{variant}, {size}x{size}", *times])
    return markdown_table(["network, images", "ms", "quartiles", "ratio"], lines)


def _by_variant(rows: Rows, place: tuple[str, ...]) -> dict[tuple[str, ...], dict[str, dict[str, str]]]:
    """The last row of every variant at each place."""
    found: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for (variant, *where), row in last(rows, ("variant", *place)).items():
        found.setdefault(tuple(where), {})[variant] = row
    return found


def _times(variants: dict[str, dict[str, str]], *names: str) -> list[str]:
    """Milliseconds of each, and the first's as a multiple of the last's."""
    present = [variants[name] for name in names if name in variants]
    if len(present) < len(names):
        return ["", "", ""]
    return [*(f"{float(row['median_ms']):.2f}" for row in present), f"{ratio(present[0], present[-1]):.1f}"]


def depthwise_table(rows: Rows) -> str:
    """Both gradients of each depthwise convolution, PyTorch's and ours, and which of them the rule takes."""
    place = ("channels", "side", "kernel", "stride", "padding", "dilation", "batch", "layout")
    lines = []
    for where, variants in _by_variant(rows, place).items():
        channels, side, kernel, stride, padding, dilation, batch, layout = where
        case = f"{channels}, {side}x{side}, {batch}; {kernel} by {stride}, {layout}"
        if padding != "x".join(str(int(k) // 2) for k in kernel.split("x")) or dilation != "1":
            case += f", padding {padding}, dilation {dilation}"
        times = _times(variants, "gradient of both, PyTorch", "gradient of both, ours")
        lines.append([case, *times, next(iter(variants.values()))["rule"]])
    return markdown_table(["C, H x W, batch; kernel", "PyTorch, ms", "ours, ms", "PyTorch / ours", "taken"], lines)


def norms_table(rows: Rows) -> str:
    """A step of each BatchNorm with its activation, then of the whole network."""
    lines = []
    for (channels, side, act, batch, layout), variants in _by_variant(
        rows, ("channels", "side", "act", "batch", "layout")
    ).items():
        if channels:
            case, names = f"{channels}, {side}x{side}, {batch}; {act}, {layout}", ("step, PyTorch", "step, ours")
        else:
            case, names = f"{act}, {side}x{side}, {batch}; {layout}", ("norms and append by PyTorch", "as it is")
        lines.append([case, *_times(variants, *names), next(iter(variants.values()))["rule"]])
    return markdown_table(["C, H x W, batch; then", "PyTorch, ms", "ours, ms", "PyTorch / ours", "taken"], lines)


def products_table(rows: Rows) -> str:
    """Products without DySoft: their step, and that of the expansion they are part of, by both backends."""
    lines = []
    for (channels, k, side, batch, layout), variants in _by_variant(
        rows, ("channels", "k", "side", "batch", "layout")
    ).items():
        case = f"{channels}, {k}, {side}x{side}, {batch}, {layout}"
        steps = (_times(variants, f"{what}, reference", f"{what}, fused") for what in ("step", "expansion's step"))
        lines.append([case, *(cell for times in steps for cell in times)])
    header = ["C, k, H x W, batch", "products: PyTorch, ms", "fused, ms", "ratio"]
    return markdown_table([*header, "expansion: PyTorch, ms", "fused, ms", "ratio"], lines)


def kernels_table(rows: Rows) -> str:
    """What the schedules that are chosen by default take of an H100, in bfloat16."""
    place = ("target", "channels", "k", "side", "batch", "layout", "dtype", "kernel")
    lines = []
    for row in last(rows, place).values():
        if (row["target"], row["dtype"], row["default"]) == ("sm_90", "bfloat16", "True"):
            case = "{channels}, {k}, {side}x{side}, {batch}, {layout}: {kernel}".format(**row)
            figures = ("registers", "spilled_bytes", "shuffles_in_loops", "stores_x_bytes", "programs")
            lines.append([case, *(row[name] for name in figures), f"{float(row['occupancy']):.0%}"])
    header = ["C, k, H x W, batch: kernel", "registers", "spilled bytes", "shuffles in loops"]
    return markdown_table([*header, "stores x bytes", "programs", "occupancy"], lines)
