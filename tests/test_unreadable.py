"""Images that cannot be read: told with their reasons, and a part of nothing else is refused before any work."""

import json
from pathlib import Path

import pytest
from folders import picture
from PIL import Image
from tiny import tiny_config, trainer_of

from hadaptive.errors import UserError
from hadaptive.export.proof import write_table
from hadaptive.metrics import Evaluation
from hadaptive.pictures import save_png
from hadaptive.train import resume, train
from hadaptive.train.trainer import _rank


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Three parts of two classes, each image another one."""
    number = 0
    for part, count in (("train", 8), ("val", 3), ("test", 3)):
        for target, name in enumerate(("cat", "dog")):
            (tmp_path / "pets" / part / name).mkdir(parents=True)
            for i in range(count):
                picture(target, number := number + 1).save(tmp_path / "pets" / part / name / f"{i}.png")
    return tmp_path / "pets"


def spoil(folder: Path) -> dict[Path, bytes]:
    """Make the images of a folder unreadable, and give what they were."""
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    for path in before:
        path.write_bytes(b"")
    return before


@pytest.mark.parametrize(("folder", "part"), [("train", "train"), ("val", "validation"), ("test", "test")])
def test_a_part_without_a_readable_image_is_refused_at_once(pets: Path, folder: str, part: str) -> None:
    before = spoil(pets / folder)
    config = tiny_config(pets.parent, data=str(pets), train_size=None, batch_size=8, epochs=1)
    sentence = (
        rf"not one of the {len(before)} {part} images can be read, .*{folder}.*: the file is empty; mend them"
    )
    with pytest.raises(UserError, match=sentence):
        train(config, quiet=True)
    assert not (pets.parent / "run").exists()
    for path, data in before.items():
        path.write_bytes(data)
    assert train(config, quiet=True)["validation"]["images"] == 6


def test_a_part_that_becomes_unreadable_stops_the_run_and_nothing_is_lost(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pets.parent, data=str(pets), train_size=None, batch_size=8, epochs=2)
    whole = train(config.changed(output=pets.parent / "whole"), quiet=True)
    from hadaptive.engine.loop import Engine

    monkeypatch.setattr(Engine, "refuse_unreadable", lambda self: None)
    monkeypatch.setattr(Evaluation, "total", property(lambda self: 0))
    with pytest.raises(UserError, match=r"validation images can be read any more.*--resume"):
        train(config, quiet=True)
    monkeypatch.undo()
    resumed = resume(config.output, quiet=True)
    assert resumed["validation"] == whole["validation"]
    assert resumed["test"] == whole["test"]


def test_skipped_images_are_listed_with_reasons(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pets / "train" / "cat" / "0.png").write_bytes(b"")
    (pets / "train" / "dog" / "0.png").write_bytes(b"a text")
    (pets / "val" / "dog" / "0.png").write_bytes(b"")
    config = tiny_config(pets.parent, data=str(pets), train_size=None, batch_size=8, epochs=1)
    train(config, quiet=False)
    lines = (pets.parent / "run" / "skipped_images.txt").read_text(encoding="utf-8").splitlines()
    found = dict(line.split("\t") for line in lines)
    assert sorted(Path(name).parent.name for name in found) == ["cat", "dog", "dog"]
    assert sorted(found.values()) == [
        "it is not an image of a kind that Pillow reads", "the file is empty", "the file is empty"
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "3 images could not be read and were skipped (2: the file is empty; 1: it is not an image" in out
    assert "best validation accuracy" in out
    assert "of 5 (" in out
    assert "test accuracy" in out
    assert "of 6 (" in out


def test_the_summary_says_what_was_tested(pets: Path) -> None:
    config = tiny_config(
        pets.parent, data=str(pets), train_size=None, batch_size=8, epochs=3, select="last", lr=0.3
    )
    train(config, quiet=True)
    summary = json.loads((pets.parent / "run" / "summary.json").read_text(encoding="utf-8"))
    rows = (pets.parent / "run" / "metrics.csv").read_text().splitlines()
    accuracies = [float(row.split(",")[rows[0].split(",").index("val_accuracy")]) for row in rows[1:]]
    assert summary["weights"] == "last"
    assert summary["validation"]["epoch"] == 3
    assert summary["validation_accuracy"] == summary["validation"]["accuracy"] == accuracies[-1]
    assert summary["best_validation_accuracy"] == max(accuracies)


def test_weights_whose_loss_is_no_number_are_never_better(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    assert _rank(0.1, 2.0) > _rank(0.9, nan) > _rank(-1.0, inf)
    assert _rank(0.5, 1.0) > _rank(0.5, 2.0)
    assert trainer_of(tiny_config(tmp_path)).best_accuracy == -1


@pytest.mark.rendered
def test_a_line_of_one_point_is_seen(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    axes = figure.subplots()
    axes.axis("off")
    axes.plot([1], [0.5])
    save_png(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as drawn:
        assert len(drawn.convert("RGB").getcolors() or [0] * 2) > 1


def test_a_proof_without_a_difference_says_none(tmp_path: Path) -> None:
    write_table(tmp_path / "proof.md", {"first": None, "output": 0})
    assert "| first | none |\n| output | 0 |" in (tmp_path / "proof.md").read_text(encoding="utf-8")
