"""The report of a search, and of a comparison of several: what was found, and what speaks against trusting it."""

import math
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hadaptive import __version__
from hadaptive.compare import flat_settings
from hadaptive.errors import UserError, resuming
from hadaptive.files import read_csv
from hadaptive.info import NetworkInfo, inspect_network
from hadaptive.metrics import with_interval
from hadaptive.models import NetSpec, create_model
from hadaptive.parsing import command_line
from hadaptive.report import charts
from hadaptive.report.page import Command, Facts, Figures, Note, Report, Section, Table, picture_file
from hadaptive.report.words import duration, sentence, where
from hadaptive.search.config import SearchConfig, StudyConfig
from hadaptive.search.folder import SearchFolder
from hadaptive.search.labels import label
from hadaptive.search.report import study_lines, training_command
from hadaptive.search.space import SearchSpace
from hadaptive.search.studies import StudyFolder

CURVES = (
    ("Loss", "cross-entropy, nats", {"weights": "weight_loss", "architecture": "alpha_loss"}),
    ("Validation accuracy of one network", "share", {"accuracy": "val_accuracy"}),
    ("Temperature", "tau", {"tau": "tau"}),
    ("Entropy of the scores, 1 is undecided", "relative entropy", {"entropy": "entropy"}),
    ("Latency that the scores expect", "ms", {"expected": "expected_ms"}),
)
BEST = 20  # networks that were looked at, by their accuracy


def search_report(path: Path) -> Report:
    """The report of a search's folder, or of a study's.

    Raises:
        UserError: it is none, or damaged.
    """
    stored = SearchFolder.open(path).read_json(Path(path) / "config.json")
    try:
        if "seeds" in stored:
            return _Study(StudyFolder(path), StudyConfig.from_dict(stored)).report()
        return _Search(SearchFolder(path), SearchConfig.from_dict(stored)).report()
    except (KeyError, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: {type(error).__name__}, {error}") from None


class _Searched:
    """What reports of both have."""

    def __init__(self, folder: SearchFolder, config: SearchConfig | StudyConfig) -> None:
        self.folder, self.config = folder, config
        self.summary: dict[str, Any] = folder.read_json(folder.summary) if folder.summary.is_file() else {}

    def facts(self, rows: Sequence[tuple[str, str]]) -> Section:
        settings = flat_settings(self.folder.stored_settings())
        first = [("Space", str(settings.get("space"))), ("Method", str(settings.get("method", "gradient")))]
        first += [("Data", str(settings.get("data")))]
        first += [("Recipe", f"{settings.get('recipe')}, seed {settings.get('seed')}")]
        if settings.get("latency_target") is not None:
            runtime = f", in {settings['runtime']}" if settings.get("runtime") else ""
            first.append(("Latency target", f"{settings['latency_target']}{runtime}"))
        if settings.get("max_params") is not None:
            first.append(("Parameters at most", f"{settings['max_params']:,}"))
        last = [("On", ", ".join(where(self.summary)))] if self.summary else []
        facts = Facts([*first, *rows, *last, ("Folder", str(self.folder.path))])
        return Section("Overview", [facts])

    def warnings(self) -> Section:
        section = Section("What speaks against trusting it")
        if self.summary:
            found = self.summary.get("warnings", [])
            section.blocks += [Note(sentence(text), warning=True) for text in found]
            if not found:
                section.blocks.append(Note("The search itself found nothing."))
        return section

    def again(self, config: Any, more: Sequence[Command] = ()) -> Section:
        given = {**config.given(), "output": self.folder.path.with_name(f"{self.folder.path.name}-again")}
        section = Section(
            "Do it again", [Command("To search again:", command_line("search", config.recipe, given))]
        )
        if not self.summary:
            section.blocks.append(Command("To go on with it:", resuming("search", self.folder.path)))
        section.blocks += more
        return section

    def report_of(self, title: str, lead: str, sections: list[Section]) -> Report:
        now = datetime.now().isoformat(sep=" ", timespec="minutes")
        return Report(title, lead, sections, f"Made by hadaptive {__version__}, {now}.")


class _Search(_Searched):
    config: SearchConfig

    def __init__(self, folder: SearchFolder, config: SearchConfig) -> None:
        super().__init__(folder, config)
        self.info: NetworkInfo | None = None  # of what was found
        if folder.found.is_file():
            how, classes = config.preprocessing, self.summary.get("num_classes", 1000)
            network = create_model(NetSpec.load(folder.found), num_classes=classes, in_chans=how.in_chans)
            self.info = inspect_network(network, how.input_size)

    def report(self) -> Report:
        sections = [
            self.facts(self.found_facts()),
            self.warnings(),
            self.front(),
            self.network(),
            self.latency(),
            self.curves(),
            self.looked_at(),
            self.again(self.config, self.trainings()),
        ]
        name = Path(self.config.space).stem
        data = Path(self.config.data.data).name or self.config.data.data
        return self.report_of(f"Search of {name} on {data}", self.lead(), sections)

    def lead(self) -> str:
        if not self.summary or self.info is None:
            return (
                f"Not finished: {len(read_csv(self.folder.metrics))} of {self.config.optimisation.epochs} epochs."
            )
        found = f"Found a network of {self.info.parameters:,} parameters"
        measured = (self.summary.get("measured_ms") or {}).get("found")
        target = self.summary.get("target_ms")
        if measured is None or target is None:
            return f"{found}."
        return f"{found} that takes {measured:.3g} ms, for a target of {target:.3g} ms."

    def found_facts(self) -> list[tuple[str, str]]:
        summary = self.summary
        if not summary or self.info is None:
            return [("State", self.lead())]
        rows = []
        if "networks" in summary:
            rows.append(
                ("Networks looked at", f"{summary['networks']:,}, of which {summary['front']} are the front")
            )
        rows.append(("Parameters found", f"{self.info.parameters:,}"))
        rows.append(("Multiply-accumulates", f"{self.info.macs / 1e6:,.2f} million an image"))
        accuracy = summary.get("supernet_accuracy")
        if accuracy is not None:
            rows.append(("Accuracy found", f"{accuracy:.1%} with shared weights, which training will change"))
        rows.append(("Time", duration(summary.get("search_seconds"))))
        return rows

    def front(self) -> Section:
        rows = read_csv(self.folder.front)
        blocks: list[Any] = self._plane(read_csv(self.folder.evolution), rows)
        if rows:
            timed = any(row["latency_ms"] for row in rows)
            columns = ["network", "accuracy, shared weights", "parameters", "MACs, million"]
            columns += ["predicted ms", "measured ms"] if timed else []
            cells = []
            for row in rows:
                times = [row[key] and f"{float(row[key]):.3f}" for key in ("latency_ms", "measured_ms")]
                macs = f"{int(row['macs']) / 1e6:,.2f}"
                cells.append((row["network"], f"{float(row['accuracy']):.2%}", f"{int(row['parameters']):,}", macs,
                              *(times if timed else ())))  # fmt: skip
            caption = "Networks that no other beats, from the cheapest to the most accurate"
            blocks.append(Table(caption, columns, cells, frozenset(range(1, len(columns)))))
        return Section("The front", blocks)

    def _plane(self, rows: list[dict[str, str]], front: list[dict[str, str]]) -> list[Any]:
        """Accuracy over cost of all networks that were looked at."""
        if not rows:
            return []
        timed = bool(rows[0]["latency_ms"])

        def points(own: list[dict[str, str]]) -> charts.Points:
            cost = [float(row["latency_ms"]) if timed else int(row["macs"]) / 1e6 for row in own]
            return cost, [100 * float(row["accuracy"]) for row in own]

        first = [row for row in rows if row["generation"] == "0"]
        later = [row for row in rows if row["generation"] != "0"]
        kinds = {"drawn at random": points(first), "bred": points(later)} if later else {"": points(first)}
        unit = "predicted ms" if timed else "million multiply-accumulates"
        joined = {"front": points(front)} if front else {}
        return [Figures([charts.scatter("Networks", unit, "accuracy, shared weights, %", kinds, joined=joined)])]

    def network(self) -> Section:
        if self.info is None:
            return Section("The network")
        blocks = picture_file(self.folder.strip, "The network as a strip of blocks: height is width in channels")
        rows = [
            (row.name, row.kind, "x".join(map(str, row.output)), f"{row.parameters:,}", f"{row.macs:,}",
             f"{row.products:,}" if row.products else "")
            for row in self.info.layers
        ]  # fmt: skip
        columns = ("layer", "what", "output", "parameters", "MACs", "products")
        caption = f"Layers of the network found, for one {'x'.join(map(str, self.info.input_size))} image"
        blocks.append(Table(caption, columns, rows, frozenset(range(2, 6))))
        confidence = self.summary.get("confidence")
        if confidence is not None:
            blocks.append(self.positions(self.summary["choice"], confidence))
        blocks += picture_file(self.folder.heat_map, "Confidence in every candidate at every position")
        return Section("The network", blocks)

    def positions(self, choice: Sequence[int], confidence: Sequence[float]) -> Table:
        space = SearchSpace.load(self.folder.space)
        rows = [
            (str(n), label(position[number]), f"{sure:.2f}", str(len(position)))
            for n, (position, number, sure) in enumerate(
                zip(space.positions, choice, confidence, strict=False), start=1
            )
            if len(position) > 1
        ]
        columns = ("position", "found", "confidence", "candidates")
        return Table("What was chosen, and how surely", columns, rows, frozenset((0, 2, 3)))

    def latency(self) -> Section:
        measured: dict[str, float] = self.summary.get("measured_ms") or {}
        rows = [row for row in read_csv(self.folder.front) if row.get("latency_ms") and row.get("measured_ms")]
        blocks: list[Any] = []
        if rows:
            pairs = [(float(row["latency_ms"]), float(row["measured_ms"])) for row in rows]
            x, y = zip(*pairs, strict=True)
            chart = charts.scatter("Latency", "predicted, ms", "measured, ms", {"front": (x, y)}, agree=True)
            blocks.append(Figures([chart]))
        elif self.summary.get("predicted_ms") is not None and "found" in measured:
            blocks.append(
                Note(f"Predicted {self.summary['predicted_ms']:.3f} ms, measured {measured['found']:.3f} ms.")
            )
        if measured:
            found = measured.get("found", math.nan)
            cells = [
                (name, f"{ms:.3f}", f"{ms / found:.2f}")
                for name, ms in sorted(measured.items(), key=lambda m: m[1])
            ]
            columns = ("network", "measured ms", "times the one found")
            blocks.append(Table("Timed in turns", columns, cells, frozenset((1, 2))))
        return Section("Latency", blocks)

    def curves(self) -> Section:
        rows = read_csv(self.folder.metrics)
        pictures = []
        for title, unit, columns in CURVES:
            series = {}
            for name, key in columns.items():
                points = [(int(row["epoch"]) + 1, float(row[key])) for row in rows if row.get(key)]
                if points:
                    series[name] = tuple(zip(*points, strict=True))
            if series:
                pictures.append(charts.lines(title, "epoch", unit, series))
        return Section("Learning", [Figures(pictures)] if pictures else [])

    def looked_at(self) -> Section:
        rows = sorted(read_csv(self.folder.evolution), key=lambda row: -float(row["accuracy"]))
        if not rows:
            return Section("Networks looked at")
        cells = [
            (
                f"{float(row['accuracy']):.2%}",
                row["generation"],
                f"{int(row['parameters']):,}",
                f"{int(row['macs']) / 1e6:,.2f}",
                row["latency_ms"] and f"{float(row['latency_ms']):.3f}",
                row["fingerprint"],
            )
            for row in rows[:BEST]
        ]
        columns = ("accuracy, shared weights", "generation", "parameters", "MACs, million", "predicted ms", "spec")
        caption = f"The most accurate of {len(rows):,}, within the limits or not"
        return Section("Networks looked at", [Table(caption, columns, cells, frozenset(range(5)))])

    def trainings(self) -> list[Command]:
        if not self.folder.found.is_file():
            return []
        return [Command("To train what was found:", training_command(self.folder, self.config))]


class _Study(_Searched):
    config: StudyConfig
    folder: StudyFolder

    def report(self) -> Report:
        rows = read_csv(self.folder.comparison)
        lines = study_lines(self.folder, self.summary) if self.summary else []
        compared = Section(
            "The comparison", picture_file(self.folder.plane, "Accuracy over latency of all networks")
        )
        if "groups" in self.summary:
            compared.blocks.append(_groups(rows, self.summary["groups"]))
        compared.blocks += [Note(sentence(line)) for line in lines]
        if rows:
            compared.blocks.append(_trainings(rows))
        seeds = Section("Its searches")
        for seed in sorted((self.folder.path / "searches").glob("seed*")):
            seeds.blocks.append(Command(f"{seed.name}:", shlex.join(["hadaptive", "report", str(seed)])))
        heat = picture_file(self.folder.heat_map, "Mean confidence in every candidate at every position")
        agreement = Section("What the seeds chose", heat)
        sections = [self.facts([]), self.warnings(), compared, agreement, seeds, self.again(self.config)]
        name, data = Path(self.config.search.space).stem, Path(self.config.search.data.data).name
        lead = f"{self.config.seeds} searches" if self.summary else f"{self.config.seeds} searches, not finished"
        return self.report_of(f"Searches of {name} on {data}", f"{lead}.", sections)


def _groups(rows: Sequence[dict[str, str]], groups: dict[str, Any]) -> Table:
    cells = []
    for group, values in groups.items():
        ms = [float(row["measured_ms"]) for row in rows if row["group"] == group]
        accuracy = with_interval(values["mean"], values["half_width"])
        cells.append((group, accuracy, f"{min(ms):.2f} to {max(ms):.2f}"))
    return Table("Networks by where they come from", ("networks", "accuracy, %", "latency, ms"), cells,
                 frozenset((1, 2)))  # fmt: skip


def _trainings(rows: Sequence[dict[str, str]]) -> Table:
    cells = [
        (row["network"], row["seed"], f"{float(row['accuracy']):.2%}", f"{int(row['parameters']):,}",
         f"{float(row['measured_ms']):.3f}")
        for row in sorted(rows, key=lambda row: -float(row["accuracy"]))
    ]  # fmt: skip
    columns = ("network", "seed", f"{rows[0]['part']} accuracy", "parameters", f"{rows[0]['latency']} ms")
    return Table("Every training, the most accurate first", columns, cells, frozenset(range(1, 5)))
