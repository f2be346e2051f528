"""Tables of a Markdown file, written from result rows, so that no figure is ever typed.

A table stands between two comments that name its kind and the file its figures come from::

    <!-- table accuracy benchmarks/results/accuracy-fmnist-small.csv -->
    <!-- end of table -->

Several files, with commas between them, make one table.
"""

import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.operator_tables import (
    compiled_table,
    depthwise_table,
    kernels_table,
    networks_table,
    norms_table,
    operators_table,
    products_table,
)
from benchmarks.rows import Rows, groups, last, markdown_table, ratio
from benchmarks.trial_tables import cache_table, costs_table, short, stability_table, trial_table
from hadaptive.errors import UserError
from hadaptive.files import read_csv, write_atomically
from hadaptive.metrics import mean_interval, with_interval

BLOCK = re.compile(r"<!-- table (?P<kind>\S+) (?P<source>\S+) -->\n.*?<!-- end of table -->", re.DOTALL)


def accuracy_table(rows: Rows) -> str:
    """Mean test accuracy per model with its 95% Student interval over the seeds, best first."""
    models = dict.fromkeys(row["model"] for row in rows)
    groups = {name: [row for row in rows if row["model"] == name] for name in models}
    scores = {name: [100 * float(row["test_accuracy"]) for row in group] for name, group in groups.items()}
    lines = []
    for name in sorted(groups, key=lambda n: -mean_interval(scores[n])[0]):
        mean, half = mean_interval(scores[name])
        first = groups[name][0]
        trained = first["epochs"] != "0"
        lines.append(
            [
                short(name),
                f"{int(first['parameters']):,}",
                f"{int(first['train_images']):,}" + (f" x {first['epochs']}" if trained else ""),
                with_interval(mean, half),
                " ".join(f"{score:.2f}" for score in scores[name]),
            ]
        )
    header = ["model", "parameters", "images x epochs", "test accuracy, %", "each seed"]
    return markdown_table(header, lines)


RIVALS = ("mobilenetv4_conv_small", "mobilenetv4_conv_medium")


Latencies = dict[tuple[str, str], dict[str, str]]


def _latencies(rows: Rows) -> Latencies:
    """The rows of each setting's last session, by setting and network."""
    places = ("runtime", "isa", "threads", "batch", "image_size")
    sessions = {tuple(row[key] for key in places): row["session"] for row in rows}
    latest = [row for row in rows if row["session"] == sessions[tuple(row[key] for key in places)]]
    found = {}
    for (runtime, isa, threads, batch, size, model), row in last(latest, (*places, "model")).items():
        where = f"{runtime}{'' if isa == 'native' else f' ({isa})'}, {threads} thread{'s' * (threads != '1')}"
        found[f"{where}, batch {batch}, {size}x{size}", model] = row
    return found


def _against_rivals(found: Latencies, case: str, model: str) -> list[str]:
    """A network's ratio to each rival; empty where that was not measured."""
    rivals = [found.get((case, rival)) for rival in RIVALS]
    return ["" if rival is None else f"{ratio(found[case, model], rival):.2f}" for rival in rivals]


def latency_table(rows: Rows) -> str:
    """Whole networks in deployment runtimes: medians, quartiles, and ratios to two rivals of the last session."""
    found = _latencies(rows)
    lines = []
    for (case, model), row in found.items():
        spread = f"{float(row['lower_quartile_ms']):.2f} to {float(row['upper_quartile_ms']):.2f}"
        stored = f"{int(row['bytes']) / 2**20:.1f}" if row["bytes"] else ""
        figures = [f"{float(row['median_ms']):.2f}", spread, *_against_rivals(found, case, model)]
        lines.append([case, _short(model), *figures, f"{int(row['macs']) / 1e6:.0f}", stored])
    header = ["runtime", "model", "ms", "quartiles", *(f"/ {rival}" for rival in RIVALS), "MMACs", "MiB"]
    return markdown_table(header, lines)


def latency_summary(rows: Rows) -> str:
    """The same with a line for each network and a column for each setting: median (ratio to each rival)."""
    found = _latencies(rows)
    cases = list(dict.fromkeys(case for case, _ in found))
    lines = []
    for model in dict.fromkeys(model for _, model in found):
        cells = []
        for case in cases:
            if (case, model) not in found:
                cells.append("")
                continue
            ratios = ", ".join(filter(None, _against_rivals(found, case, model)))
            median = f"{float(found[case, model]['median_ms']):.2f}"
            cells.append(f"{median} ({ratios})" if ratios else median)
        lines.append([_short(model), *cells])
    return markdown_table(["ms (ratio to each rival)", *cases], lines)


def _short(model: str) -> str:
    """A network's name without the folder of its file."""
    return model.rpartition("/")[2].replace(".json", "")


def parity_table(rows: Rows) -> str:
    """Exported files against PyTorch: agreement of classes and largest error, over the sources."""
    lines = []
    for (form, selections), group in groups(rows, ("format", "selections")).items():
        worst = max(group.values(), key=lambda row: float(row["relative_error"]))
        agreement = min(float(row["top1"]) for row in group.values())
        images = min(int(row["images"]) for row in group.values())
        names = ", ".join(_short(source) for source in group)
        lines.append(
            [
                f"{form}, {selections}",
                names,
                f"{images:,}",
                f"{agreement:.2%}",
                f"{float(worst['relative_error']):.1e}",
                str(sum(int(row["near_ties"]) for row in group.values())),
            ]
        )
    header = ["format, selections", "networks", "images each", "same class, least", "relative error, largest"]
    header += ["near ties in all"]
    return markdown_table(header, lines)


def deployment_table(rows: Rows) -> str:
    """Test accuracy of deployed networks, and points lost against the dynamic one of the same seed."""
    lines = []
    for model, variant in dict.fromkeys((row["model"], row["variant"]) for row in rows):
        own = list(last([r for r in rows if (r["model"], r["variant"]) == (model, variant)], ("seed",)).values())
        mean, half = mean_interval([100 * float(row["test_accuracy"]) for row in own])
        lost, lost_half = mean_interval([float(row["lost_points"]) for row in own])
        each = " ".join(f"{float(row['lost_points']):+.2f}" for row in own)
        lines.append([model, variant, with_interval(mean, half), with_interval(lost, lost_half, "+"), each])
    header = ["model", "deployed", "test accuracy, %", "points lost", "each seed"]
    return markdown_table(header, lines)


def price_table(rows: Rows) -> str:
    """Steps of a supernet against a training step of S: time and peak memory."""
    found = last(rows, ("space", "what"))
    lines = []
    for (space, what), row in found.items():
        base = found.get((space, "S")) or found["published", "S"]  # of the same run
        memory = float(row["peak_mib"]) / float(base["peak_mib"])
        spread = f"{float(row['lower_quartile_ms']):.0f} to {float(row['upper_quartile_ms']):.0f}"
        name = what if what == "S" else f"{what} ({space})"
        lines.append([name, f"{float(row['median_ms']):.0f}", spread, f"{ratio(row, base):.2f}", f"{memory:.2f}"])
    return markdown_table(["step", "ms", "quartiles", "time / S", "peak memory / S"], lines)


def prediction_table(rows: Rows) -> str:
    """How well latency tables predict whole networks they were not fitted to."""
    from scipy.stats import spearmanr

    lines = []
    columns = [name for name in ("space", "runtime", "selections") if name in rows[0]]
    for case in dict.fromkeys(tuple(row[name] for name in columns) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in columns) == case]
        predicted, measured = ([float(row[key]) for row in own] for key in ("predicted_ms", "measured_ms"))
        errors = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
        rank = spearmanr(predicted, measured).statistic  # pyright: ignore[reportAttributeAccessIssue]
        spread = f"{min(measured):.1f} to {max(measured):.1f}"
        found = [str(len(own)), spread, f"{rank:.3f}", f"{statistics.median(errors):.1%}"]
        lines.append([", ".join(case), *found])
    return markdown_table([", ".join(columns), "networks", "measured, ms", "Spearman", "median error"], lines)


def comparison_table(rows: Rows) -> str:
    """What searches found, random networks of the same latency and the published one: latency and accuracy."""
    from hadaptive.search.rivals import comparison_of

    result, lines = comparison_of(rows), []
    for group, values in result["groups"].items():
        own = [row for row in rows if row["group"] == group]
        ms = sorted({float(row["measured_ms"]) for row in own})
        against = result.get(f"found_against_{group}")
        lines.append(
            [
                group,
                f"{len({row['network'] for row in own})} ({len(own)})",
                f"{ms[0]:.2f}" if len(ms) == 1 else f"{ms[0]:.2f} to {ms[-1]:.2f}",
                with_interval(values["mean"], values["half_width"]),
                with_interval(against["difference"], against["half_width"], "+") if against else "",
            ]
        )
    header = ["networks", "how many (trainings)", "measured, ms", "test accuracy, %", "found - these"]
    return markdown_table(header, lines)


def kinds_table(rows: Rows) -> str:
    """The confidence in each kind of block at each depth, mean over the searches; beside it an even choice's."""
    kinds = [k for k in dict.fromkeys(row["kind"] for row in rows) if not k.startswith("kernel")]
    lines = []
    for place in dict.fromkeys((row["position"], row["channels"], row["side"]) for row in rows):
        own = [row for row in rows if (row["position"], row["channels"], row["side"]) == place]
        if own[0]["kind"].startswith("kernel"):
            continue
        cells = []
        for kind in kinds:
            shares = [float(row["confidence"]) for row in own if row["kind"] == kind]
            even = [float(row["chance"]) for row in own if row["kind"] == kind]
            cells.append(f"{statistics.fmean(shares):.2f} ({even[0]:.2f})" if shares else "")
        lines.append([f"{place[0]}: {place[1]} channels, {place[2]}x{place[2]}", *cells])
    return markdown_table(["position: map that leaves it", *kinds], lines)


def planted_table(rows: Rows) -> str:
    """How often each estimator found the planted answer."""
    lines = []
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        solved = [int(row["solved"]) for row in rows if row["estimator"] == estimator]
        lines.append([estimator, f"{sum(solved)} of {len(solved)}"])
    return markdown_table(["estimator", "planted answers found"], lines)


def shipped_table(rows: Rows) -> str:
    """The weights that come with the package, and what they are worth on test images."""
    lines = [
        [
            f"{row['network']}.{row['weights']}",
            f"{int(row['parameters']):,}",
            f"{int(row['macs']) / 1e6:.1f}, {row['image_size']}x{row['image_size']}",
            f"{int(row['train_images']):,} x {row['epochs']}",
            f"{100 * float(row['test_accuracy']):.2f} of {int(row['test_images']):,}",
        ]
        for row in last(rows, ("network", "weights")).values()
    ]
    return markdown_table(
        ["weights", "parameters", "MMACs, input", "images x epochs", "test accuracy, %, images"], sorted(lines)
    )


def ranking_table(rows: Rows) -> str:
    """How well a search's shared weights order random networks, and what it found beside them."""
    from hadaptive.search.rivals import rank_of

    lines = []
    for search in dict.fromkeys(row["search"] for row in rows):
        own = [row for row in rows if row["search"] == search]
        drawn, found = ([r for r in own if (r["network"] == "found") is is_found] for is_found in (False, True))
        rank = rank_of(drawn)
        mean, half = mean_interval([100 * float(row["accuracy"]) for row in drawn])
        lines.append(
            [
                drawn[0]["space"],
                str(len(drawn)),
                f"{rank['kendall_tau']:.2f} ({rank['p']:.2g})",
                with_interval(mean, half),
                f"{100 * max(float(row['accuracy']) for row in drawn):.2f}",
                ", ".join(f"{100 * float(row['accuracy']):.2f}" for row in found),
            ]
        )
    header = ["space", "random networks", "Kendall's tau (p)", "random, %", "best of them, %", "found, %"]
    return markdown_table(header, lines)


TABLES: dict[str, Callable[[Rows], str]] = {
    "accuracy": accuracy_table,
    "compiled": compiled_table,
    "costs": costs_table,
    "deployment": deployment_table,
    "depthwise": depthwise_table,
    "kernels": kernels_table,
    "latency": latency_table,
    "latency-summary": latency_summary,
    "networks": networks_table,
    "norms": norms_table,
    "operators": operators_table,
    "parity": parity_table,
    "products": products_table,
    "ranking": ranking_table,
    "search-comparison": comparison_table,
    "search-kinds": kinds_table,
    "search-planted": planted_table,
    "search-prediction": prediction_table,
    "search-price": price_table,
    "shipped": shipped_table,
    "stability": stability_table,
    "cache": cache_table,
    "trial": trial_table,
    "trial-static": partial(trial_table, against=":static"),
}


def render(text: str, root: Path) -> str:
    """The text with every table written anew from its rows.

    Args:
        text: Markdown.
        root: folder that the named files are relative to.

    Raises:
        UserError: a table is of no known kind, or its file has no rows.
    """

    def table(match: re.Match[str]) -> str:
        kind, source = match["kind"], match["source"]
        if kind not in TABLES:
            raise UserError(f"there is no table of kind {kind!r}; choose one of {', '.join(TABLES)}")
        rows: Rows = []
        for name in source.split(","):
            own = read_csv(root / name)
            if not own:
                raise UserError(f"{name} has no rows to make a table of")
            regime = Path(name).stem.removeprefix("accuracy-")
            rows += [{**row, "regime": regime} for row in own]
        origin = ", ".join(f"`{name}`" for name in source.split(","))
        return f"<!-- table {kind} {source} -->\n{TABLES[kind](rows)}\n\nFrom {origin}.\n<!-- end of table -->"

    return BLOCK.sub(table, text)


def report(path: Path) -> int:
    """Write the tables of one Markdown file anew; returns how many there are.

    Raises:
        UserError: there is no such file, or a table cannot be made.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    text = path.read_text(encoding="utf-8")
    new = render(text, path.parent)

    def write(temporary: Path) -> None:
        temporary.write_text(new, encoding="utf-8")

    write_atomically(path, write)
    return len(BLOCK.findall(text))
