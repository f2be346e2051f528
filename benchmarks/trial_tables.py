"""Tables of networks on trial: several regimes side by side, and what each part of a network adds."""

import re
from collections.abc import Iterable

from benchmarks.rows import Rows, markdown_table
from hadaptive.bench.floor import FLOORS
from hadaptive.bench.trial import COLUMNS, cells, last_session, table
from hadaptive.errors import UserError
from hadaptive.metrics import mean_interval, welch_difference, with_interval

TIMED = ("runtime", "threads", "image_size")  # what latencies in one table have in common


def trial_table(rows: Rows, against: str = "") -> str:
    """Mean test accuracy, its 95% interval and, in brackets, the difference to the base network, in each regime.

    A column for each file of rows. Networks stand in the order of the first column's means, the floor last. A
    variant's base is the network without any suffix, or with `against`. Seeds are said where they are fewer than
    others of a regime.

    Raises:
        UserError: two networks have one name.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores.setdefault(row["regime"], {}).setdefault(row["model"], []).append(100 * float(row["test_accuracy"]))
    parameters = {row["model"]: f"{int(row['parameters']):,}" for row in rows}
    first = next(iter(scores.values()))
    by_name = {short(model): model for model in parameters}
    if len(by_name) < len(parameters):
        raise UserError(f"two networks of one name cannot stand in a table: {', '.join(sorted(parameters))}")

    def place(model: str) -> tuple[bool, bool, float]:
        return model in FLOORS, model not in first, -mean_interval(first.get(model, [0.0]))[0]

    most = {
        name: max((len(own) for model, own in regime.items() if model not in FLOORS), default=0)
        for name, regime in scores.items()
    }
    lines = []
    for model in sorted(parameters, key=place):
        base = by_name.get(short(model).partition(":")[0] + against, model)
        cells = []
        for name, regime in scores.items():
            own = regime.get(model, [])
            cell = with_interval(*mean_interval(own)) if own else ""
            if own and base != model and base in regime:
                difference, half = welch_difference(own, regime[base])
                cell += f" ({with_interval(difference, half, '+')})"
            if own and len(own) < most[name] and model not in FLOORS:
                cell += f", {len(own)} seed{'s' * (len(own) > 1)}"
            cells.append(cell)
        lines.append([short(model), parameters[model], *cells])
    return markdown_table(["network", "parameters", *scores], lines)


def costs_table(rows: Rows) -> str:
    """Accuracy beside what it costs, as ``bench ablation`` and ``bench plugin`` print it, best first.

    Of files of accuracies and, where there are any, of latencies and training steps, each of the last session that
    timed all networks it timed at all. Times are ratios to the base, a network without a suffix.

    Raises:
        UserError: two networks have one name, or rows are of several regimes, runtimes, sizes or thread counts.
    """
    _check_one_of_each(rows)
    rows = [{**row, "model": _plain(row["model"])} for row in rows]
    accuracies = [row for row in rows if "test_accuracy" in row]
    names = dict.fromkeys(row["model"] for row in accuracies if row["model"] not in FLOORS)
    timed, stepped = (_together(rows, names, column) for column in ("runtime", "layout"))
    lines = table({name: name.partition(":")[0] for name in names}, accuracies, timed, stepped)
    return markdown_table(["network", *COLUMNS], [[line["name"], *cells(line)] for line in lines])


def _check_one_of_each(rows: Rows) -> None:
    """Means and ratios are of what can be compared."""
    for mark, column in (("test_accuracy", "regime"), *(("runtime", column) for column in TIMED)):
        found = sorted({row[column] for row in rows if mark in row and column in row})
        if len(found) > 1:
            raise UserError(f"a table of costs is of one {column}, and these rows are of {', '.join(found)}")
    for mark in ("test_accuracy", "runtime", "layout"):
        models = {row["model"] for row in rows if mark in row}
        if len({_plain(model) for model in models}) < len(models):
            raise UserError("two networks of one name cannot stand in a table of costs")


def _plain(model: str) -> str:
    """A network's name in any rows, without a folder, a suffix of its file or a fingerprint."""
    return re.sub(r"^.*/|\.json", "", short(model))


def _together(rows: Rows, names: Iterable[str], column: str) -> Rows:
    """Of the rows that have this column, those of the last session with all networks of these that have any."""
    own = [row for row in rows if column in row]
    if not own:
        return []
    timed = {row["model"] for row in own}
    return last_session(own, int(own[0]["image_size"]), [name for name in names if name in timed], None)


def stability_table(rows: Rows) -> str:
    """Products and gradients in the last epoch under each norm: medians over layers and seeds."""
    from hadaptive.bench.stability import PANELS, by_epoch

    lines = []
    for model, norm in dict.fromkeys((row["model"], row["norm"]) for row in rows):
        own = [row for row in rows if (row["model"], row["norm"]) == (model, norm)]
        end = max(int(row["epoch"]) for row in own)
        found = [by_epoch(own, norm, column).get(end) for column in PANELS]
        cells = ["not finite" if value is None else f"{value:.3g}" for value in found]
        lines.append([model, norm, str(end + 1), *cells])
    return markdown_table(["network", "norm", "epochs", *PANELS.values()], lines)


def cache_table(rows: Rows) -> str:
    """Images a second of trainings that keep decoded pictures, and of those that do not; the latest rows count."""
    latest = {row["cache"]: row for row in rows}
    names = {"without": "no `--cache`", "new": "a new one", "there": "one that another run has filled"}
    lines = [
        [
            names[kind],
            *(f"{float(row[column]):,.0f}" for column in ("first_images_s", "later_images_s")),
            row["images"],
        ]
        for kind, row in latest.items()
    ]
    return markdown_table(["", "images/s, first epoch", "images/s, later epochs", "pictures"], lines)


def short(model: str) -> str:
    """A network's name in rows without the fingerprint behind it."""
    return model.partition("@")[0]
