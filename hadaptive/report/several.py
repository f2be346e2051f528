"""The report of a training on images of any number of classes each."""

from typing import Any

import torch

from hadaptive.data import eval_transform
from hadaptive.files import read_csv
from hadaptive.metrics import told
from hadaptive.mistakes import images_of, mistakes
from hadaptive.report.cam import NoMapError, activation_maps, overlay
from hadaptive.report.page import Facts, Figure, Figures, Note, Section, Table, picture_file, picture_uri
from hadaptive.report.run import MAPS, RunReport


class SeveralReport(RunReport):
    """As of one class an image, but that every class is a question of its own."""

    score = ("Mean average precision, validation", "%", {"precision": "val_average_precision"})
    entropy = "binary cross-entropy, nats"

    def lead(self) -> str:
        """How good it is."""
        if not self.evaluation:
            return super().lead()
        said = told(self.evaluation, interval=True)
        return f"{said[:1].upper()}{said[1:]}, {self.split} part."

    def classes(self) -> Section:
        path = self.run.path / f"per-class-{self.split}.csv"
        if not self.evaluation or not path.is_file():
            return Section("Classes")
        rows = sorted(read_csv(path), key=lambda row: float(row["average_precision"] or "inf"))
        names = ("images", "average_precision", "threshold", "recall", "precision", "f1")
        cells = [(row["class"], *(_rounded(name, row[name]) for name in names)) for row in rows]
        columns = ("class", *(name.replace("_", " ") for name in names))
        return Section("Classes", [Table("Classes, hardest first", columns, cells, frozenset(range(1, 7)))])

    def maps(self) -> Section:
        title = "Where it looks"
        wrong = mistakes(self.judged)
        if self.source is None or not wrong:
            return Section(title)
        shown = list(images_of(wrong, self.source, self.card.preprocessing, MAPS))
        transform = eval_transform(self.card.preprocessing)
        tensors = torch.stack([transform(image) for _, image in shown])
        numbers = {name: number for number, name in enumerate(self.card.classes)}
        try:
            found = activation_maps(self.network, tensors, [numbers[one.wrong] for one, _ in shown])
        except NoMapError as error:
            return Section(title, [Note(f"No class-activation maps of this network: {error}.")])
        pictures = [
            Figure(
                picture_uri(overlay(tensor, heat, self.card.preprocessing), exact=False),
                f"Places of an image of {one.true} that speak for {one.wrong}",
                (f"for {one.wrong}", f"is {one.true}", self.name(one)),
            )
            for tensor, heat, (one, _) in zip(tensors, found, shown, strict=True)
        ]
        about = "Bright places are those that speak for the class which is most surely wrong, said or left out."
        return Section(title, [Note(about), Figures(pictures, "tiles")])

    def sureness(self) -> Section:
        if not self.evaluation:
            return Section("How sure it is")
        rows = [
            (
                "Calibration error",
                f"{self.evaluation['calibration_error']:.3f}, of the probabilities of all classes",
            ),
            ("Temperature", f"{self.card.temperature:.3f}, which logits are divided by"),
        ]
        blocks: list[Any] = [Facts(rows)]
        picture = self.run.path / f"reliability-{self.split}.png"
        alt = "How often images have a class over the probability that the network gives it"
        return Section("How sure it is", [*blocks, *picture_file(picture, alt, "charts")])


def _rounded(name: str, cell: str) -> str:
    return cell if name == "images" else f"{float(cell):.3f}" if cell else "none"
