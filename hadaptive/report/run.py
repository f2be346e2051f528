"""The report of a training: what it is, how it went, how good it is, and why."""

import math
import os
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hadaptive import __version__
from hadaptive.compare import flat_settings
from hadaptive.data import Source, eval_transform, is_stream
from hadaptive.errors import UserError, resuming
from hadaptive.evaluate import evaluate_run, sureness_of
from hadaptive.files import read_csv
from hadaptive.info import inspect_network
from hadaptive.metrics import share_text, wilson_interval
from hadaptive.mistakes import Judgement, images_of, mistakes
from hadaptive.parsing import command_line
from hadaptive.pictures import tile_of
from hadaptive.report import charts
from hadaptive.report.cam import NoMapError, activation_maps, overlay
from hadaptive.report.channels import channel_sections
from hadaptive.report.page import (
    Command,
    Facts,
    Figure,
    Figures,
    Matrix,
    Note,
    Report,
    Section,
    Table,
    picture_file,
    picture_uri,
)
from hadaptive.report.words import duration, network_name, where
from hadaptive.runs import RunFolder
from hadaptive.train import read_config

PICTURES = 24  # mistakes that are shown
MAPS = 6  # images whose activation maps are shown
SAMPLE = 128  # images that channels are watched on
MATRIX = 20  # classes; the counts of more are a picture


class RunReport:
    """What is known of a run, gathered once.

    Args:
        run: the folder.
        split: part that it is judged on; None for the test part, or validation where there is no other.
        data, data_dir: where its images lie now, if they have moved since.
        cpu: evaluate on the CPU even where there is a GPU.

    Raises:
        UserError: it is no run, has no weights yet, or is damaged.
    """

    score = ("Validation accuracy", "%", {"accuracy": "val_accuracy"})
    entropy = "cross-entropy, nats"

    def __init__(
        self,
        run: RunFolder,
        split: str | None = None,
        data: str | None = None,
        data_dir: Path | None = None,
        cpu: bool = False,
    ) -> None:
        self.run = run
        self.config = read_config(run)
        self.network, self.card = run.load_model()
        self.summary: dict[str, Any] = run.read_json(run.summary) if run.summary.is_file() else {}
        self.split = split or ("test" if self._has_test() else "validation")
        self.doubts: list[str] = []
        self.source = self._source(data, data_dir)
        self.evaluation, self.judged = self._judged(data, data_dir, cpu)

    def _has_test(self) -> bool:
        if self.summary:
            return self.summary.get("test") is not None
        manifest = self.run.read_manifest()
        return manifest is None or bool(manifest.counts.get("test"))

    def _source(self, data: str | None, data_dir: Path | None) -> Source | None:
        """The images of the part; None where they cannot be opened, which is said."""
        if is_stream(self.config.data.data):
            self.doubts.append("Images of a stream have no names to find them by: none are shown.")
            return None
        try:
            return self.run.open_data(data, data_dir, needs=(self.split,)).parts.get(self.split)
        except UserError as error:
            self.doubts.append(f"The images cannot be opened, so none are shown: {error}.")
            return None

    def _judged(
        self, data: str | None, data_dir: Path | None, cpu: bool
    ) -> tuple[dict[str, Any], list[Judgement]]:
        """The evaluation of the part and of each image; made now where there is none of these weights."""
        figures = self.run.path / f"evaluation-{self.split}.json"
        images = self.run.path / f"predictions-{self.split}.csv"
        files, choice = (figures, images), self.run.choice()
        try:
            made = min(path.stat().st_mtime for path in files) if all(map(Path.is_file, files)) else 0.0
            fresh = made >= self.run.weights(choice).stat().st_mtime
            known = self.run.read_json(figures) if fresh else {}
            sure = {"weights": choice, **sureness_of(self.card)}
            if data is not None or any(known.get(name) != value for name, value in sure.items()):
                evaluate_run(self.run.path, split=self.split, data=data, data_dir=data_dir, cpu=cpu)  # pyright: ignore
            return self.run.read_json(figures), [Judgement.of(row) for row in read_csv(images)]
        except UserError as error:
            self.doubts.append(f"It is not evaluated: {error}.")
        except (KeyError, ValueError):
            self.doubts.append(f"{images.name} is not what evaluate writes: delete it and make the report again.")
        return {}, []

    # -- sections -----------------------------------------------------------------------------------------------

    def report(self) -> Report:
        """All of it."""
        sections = [
            self.overview(),
            self.curves(),
            self.classes(),
            self.mistakes(),
            self.maps(),
            self.sureness(),
            *channel_sections(self.network, self.sample(), self.run),
            self.exports(),
            self.again(),
        ]
        now = datetime.now().isoformat(sep=" ", timespec="minutes")
        title = f"{network_name(self.card.model)} on {Path(self.config.data.data).name or self.config.data.data}"
        return Report(title, self.lead(), sections, f"Made by hadaptive {__version__}, {now}.")

    def lead(self) -> str:
        """How good it is."""
        if not self.judged:
            best = self.summary.get("validation_accuracy")
            return "Not evaluated." if best is None else f"Validation accuracy {best:.2%}."
        right = sum(one.right for one in self.judged)
        return f"Accuracy {share_text(right, len(self.judged), interval=True)}, {self.split} part."

    def overview(self) -> Section:
        how, summary, card = self.card.preprocessing, self.summary, self.card
        settings = flat_settings(self.run.stored_settings())
        rows = [("Network", card.model)]
        try:
            info = inspect_network(self.network, how.input_size)
            rows.append(("Parameters", f"{info.parameters:,}"))
            rows.append(("Multiply-accumulates", f"{info.macs / 1e6:,.2f} million an image"))
            if info.products:
                rows.append(("Products of channels", f"{info.products:,} an image"))
        except UserError:
            rows.append(("Parameters", f"{sum(p.numel() for p in self.network.parameters()):,}"))
        rows.append(("Input", f"{'x'.join(map(str, how.input_size))}, {how.fit}, {how.interpolation}"))
        rows.append(("Classes", f"{len(card.classes):,}"))
        rows.append(("Data", str(self.config.data.data)))
        manifest = self.run.read_manifest()
        if manifest is not None:
            counts = ", ".join(f"{number:,} {part}" for part, number in manifest.counts.items() if number)
            rows.append(("Images", counts))
        rows.append(("Recipe", f"{settings.get('recipe')}, seed {settings.get('seed')}"))
        done = len(read_csv(self.run.metrics))
        if summary:
            best = summary.get("best_epoch")
            best = "" if best is None or best < 0 else f", the best is {best + 1}"
            rows.append(("Epochs", f"{done}{best}; the {summary.get('weights', 'best')} weights are judged"))
            rows.append(("Training", duration(summary.get("train_seconds"))))
            rows.append(("On", ", ".join(where(summary))))
        else:
            rows.append(("Epochs", f"{done} of {settings.get('epochs')}: it is not finished"))
        rows.append(("Folder", str(self.run.path)))
        doubts = [*self.evaluation.get("notes", []), *self.doubts]
        return Section("Overview", [Facts(rows), *(Note(text, warning=True) for text in doubts)])

    def curves(self) -> Section:
        rows = read_csv(self.run.metrics)
        if not rows:
            return Section("Training")
        pictures = []
        epochs = [int(row["epoch"]) + 1 for row in rows]
        for title, unit, columns in (
            ("Loss", self.entropy, {"training": "train_loss", "validation": "val_loss"}),
            self.score,
            ("Learning rate", "rate", {"rate": "lr"}),
        ):
            scale = 100 if unit == "%" else 1
            series = {
                name: (epochs, [scale * float(row[key]) for row in rows])
                for name, key in columns.items()
                if all(row.get(key) for row in rows)
            }
            if series:
                pictures.append(charts.lines(title, "epoch", unit, series))
        return Section("Training", [Figures(pictures)])

    def classes(self) -> Section:
        if not self.judged:
            return Section("Classes")
        names = self.card.classes
        pairs = Counter((one.true, one.predicted) for one in self.judged)
        true, called = Counter(one.true for one in self.judged), Counter(one.predicted for one in self.judged)
        wrong = Counter({pair: number for pair, number in pairs.items() if pair[0] != pair[1]})
        most: dict[str, tuple[str, int]] = {}  # of each class: what it is most often taken for
        for (name, other), number in wrong.most_common():
            most.setdefault(name, (other, number))
        rows: list[tuple[float, tuple[str, ...]]] = []
        for name in names:
            hit, images = pairs[name, name], true[name]
            recall = hit / images if images else math.inf
            low, high = wilson_interval(hit, images)
            cells = (
                name,
                f"{images:,}",
                f"{recall:.1%}" if images else "no images",
                f"{low:.0%} to {high:.0%}" if images else "",
                f"{hit / called[name]:.1%}" if called[name] else "never predicted",
                "{} ({:,})".format(*most[name]) if name in most else "",
            )
            rows.append((recall, cells))
        rows.sort(key=lambda row: row[0])
        columns = ("class", "images", "recall", "95% interval", "precision", "most often taken for")
        table = Table("Classes, hardest first", columns, [cells for _, cells in rows], frozenset((1, 2, 3, 4)))
        blocks: list[Any] = [table]
        if len(names) <= MATRIX:
            counts = [[pairs[a, b] for b in names] for a in names]
            shares = [[n / max(1, sum(row)) for n in row] for row in counts]
            blocks.append(
                Matrix(
                    "Confusion matrix: a row for each true class, a column for each predicted one",
                    names,
                    counts,
                    shares,
                )
            )
        else:
            picture = self.run.path / f"confusion-{self.split}.png"
            alt = f"Confusion matrix of {len(names)} classes, rows true and columns predicted"
            blocks += picture_file(picture, alt, most=1200)
        if len(wrong) > 5:
            common = [(a, b, f"{n:,}", f"{n / true[a]:.1%}") for (a, b), n in wrong.most_common(12)]
            columns = ("true class", "taken for", "images", "of the class")
            blocks.append(Table("The most frequent confusions", columns, common, frozenset((2, 3))))
        return Section("Classes", blocks)

    def mistakes(self) -> Section:
        wrong = mistakes(self.judged)
        if not self.judged:
            return Section("Surest mistakes")
        if not wrong:
            return Section("Surest mistakes", [Note("There are none.")])
        said = f"{len(wrong):,} of {len(self.judged):,} images are taken for something else; the surest first."
        if self.source is None:
            rows = [
                (self.name(one), one.true, one.predicted, f"{one.probability:.1%}") for one in wrong[:PICTURES]
            ]
            table = Table("Mistakes", ("image", "class", "taken for", "probability"), rows, frozenset((3,)))
            return Section("Surest mistakes", [Note(said), table])
        pictures = []
        for one, image in images_of(wrong, self.source, self.card.preprocessing, PICTURES):
            small = max(image.size) <= 155
            pictures.append(
                Figure(
                    picture_uri(image if small else tile_of(image), exact=small),
                    f"An image of {one.true} that was taken for {one.predicted}",
                    (f"{one.predicted} ({one.probability:.0%})", f"is {one.true}", self.name(one)),
                    pixels=max(image.size) < 100,
                )
            )
        return Section("Surest mistakes", [Note(said), Figures(pictures, "tiles")])

    def name(self, one: Judgement) -> str:
        """An image's, within the folder of the data where it is there."""
        return one.image.removeprefix(f"{self.config.data.data}{os.sep}")

    def maps(self) -> Section:
        title = "Where it looks"
        if not self.judged or self.source is None:
            return Section(title)
        wrong = mistakes(self.judged)[:MAPS]
        least = sorted((one for one in self.judged if one.right), key=lambda one: one.probability)
        shown = list(images_of([*wrong, *least], self.source, self.card.preprocessing, MAPS))
        if not shown:
            return Section(title)
        transform = eval_transform(self.card.preprocessing)
        tensors = torch.stack([transform(image) for _, image in shown])
        numbers = {name: number for number, name in enumerate(self.card.classes)}
        try:
            found = [
                activation_maps(self.network, tensors, [numbers[getattr(one, of)] for one, _ in shown])
                for of in ("predicted", "true")
            ]
        except NoMapError as error:
            return Section(title, [Note(f"No class-activation maps of this network: {error}.")])
        pictures = []
        for place, (one, _) in enumerate(shown):
            for maps, name in zip(found, (one.predicted, one.true), strict=True):
                if maps is found[1] and one.right:
                    continue
                what = ", the truth" if maps is found[1] or one.right else ", predicted"
                said = (f"for {name}{what}", self.name(one))
                alt = f"Places of an image of {one.true} that speak for {name}"
                uri = picture_uri(overlay(tensors[place], maps[place], self.card.preprocessing), exact=False)
                pictures.append(Figure(uri, alt, said))
        about = (
            "Bright places are those that speak for a class: of the surest mistakes for the class that was "
            "predicted and for the right one, then of the right predictions that are least sure."
        )
        return Section(title, [Note(about), Figures(pictures, "tiles")])

    def sureness(self) -> Section:
        if not self.judged:
            return Section("How sure it is")
        error = self.evaluation.get("calibration_error")
        rows = (
            [] if error is None else [("Calibration error", f"{error:.3f}, how far confidence is from accuracy")]
        )
        temperature = self.card.temperature
        rows.append(
            ("Temperature", f"{temperature:.3f}, which logits are divided by" if temperature != 1 else "1")
        )
        right = [one.right for one in self.judged]
        chart = charts.reliability([one.probability for one in self.judged], right, "Reliability")
        limits = []
        for limit in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
            if kept := [one.right for one in self.judged if one.probability >= limit]:
                limits.append((f"{limit:g}", f"{len(kept) / len(right):.1%}", f"{sum(kept) / len(kept):.1%}"))
        columns = ("--reject-below", "images that are answered", "of these right")
        table = Table("What rejecting unsure predictions gains", columns, limits, frozenset((0, 1, 2)))
        return Section("How sure it is", [Facts(rows), Figures([chart]), *([table] if limits else [])])

    def sample(self) -> list[Tensor]:
        """Batches of images of the part, evenly spread over it; none where they cannot be read."""
        if self.source is None or not len(self.source):
            return []
        transform, found = eval_transform(self.card.preprocessing), []
        for place in range(min(SAMPLE, len(self.source))):
            number = place * len(self.source) // min(SAMPLE, len(self.source))
            try:
                found.append(transform(self.source.read(number)[0]))
            except OSError:
                continue
        return list(torch.stack(found).split(16)) if found else []

    def exports(self) -> Section:
        rows = []
        for path in sorted(self.run.path.glob("*.proof.json")):
            try:
                rows += _proof_rows(path.name.removesuffix(".proof.json"), self.run.read_json(path))
            except (UserError, KeyError, TypeError, ValueError, AttributeError):
                rows.append((path.name, "damaged", *[""] * 6))
        if not rows:
            return Section("Exported files")
        columns = ("file", "format", "MiB", "same class", "largest relative error", "proof", "setting", "latency")
        caption = "Exported files: what they compute beside the network, and how fast"
        return Section("Exported files", [Table(caption, columns, rows, frozenset((2, 3, 4)))])

    def again(self) -> Section:
        given = self.config.given()
        output = self.run.path.with_name(f"{self.run.path.name}-again")
        given["output"] = output
        extended = (self.summary or {}).get("extended") or []
        if extended:
            given["epochs"] = extended[0]["epochs"]
        again = command_line("train", self.config.recipe, given)
        blocks: list[Any] = [Command("To train it again, from the same images:", again)]
        after = [*(one["epochs"] for one in extended[1:]), self.config.optimisation.epochs]
        for epochs in after if extended else ():
            blocks.append(Command("And then to more epochs:", f"{resuming('train', output)} --epochs {epochs}"))
        if not self.summary:
            blocks.append(Command("To go on with it:", resuming("train", self.run.path)))
        return Section("Do it again", blocks)


def _proof_rows(name: str, proof: dict[str, Any]) -> list[tuple[str, ...]]:
    if "not_proved" in proof:
        return [(name, proof["format"], f"{proof['bytes'] / 2**20:.1f}", "", "", proof["not_proved"], "", "")]
    holds = {True: "holds", False: "does not hold", None: "no limit"}[proof["holds"]]
    lost = (proof.get("int8") or {}).get("lost")
    kind = proof["format"] + (", fixed selections" if proof.get("frozen") else "")
    kind += ", int8" if proof.get("int8") else ""
    first = (
        name,
        kind,
        f"{proof['bytes'] / 2**20:.1f}",
        f"{proof['top1']:.2%} of {proof['images']:,}",
        f"{proof['relative_error']:.1e}",
        holds if lost is None else f"{holds}: {lost:.2f} points of accuracy lost",
    )
    times = [
        (threads, f"{ms['p50_ms']:.2f} ms, 95% within {ms['p95_ms']:.2f} ms")
        for threads, ms in (proof.get("latency") or {}).items()
    ] or [("", "")]
    return [(*(first if number == 0 else [""] * 6), *row) for number, row in enumerate(times)]
