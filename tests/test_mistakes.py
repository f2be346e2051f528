"""The surest mistakes as a contact sheet."""

import itertools
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_config

from hadaptive import mistakes as of_mistakes
from hadaptive.cli import main
from hadaptive.data import Preprocessing
from hadaptive.data.sources import ArraySource
from hadaptive.errors import UserError
from hadaptive.evaluate import evaluate_run
from hadaptive.files import read_csv
from hadaptive.mistakes import Judgement, draw_mistakes, images_of, mistakes
from hadaptive.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    train(tiny_config(folder, epochs=1), quiet=True)
    return folder / "run"


def test_the_command_draws_them(run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet, drawn = tmp_path / "wrong.png", []
    real = of_mistakes.contact_sheet
    monkeypatch.setattr(
        of_mistakes, "contact_sheet", lambda tiles, *rest: (drawn.extend(tiles), real(tiles, *rest))
    )
    assert main(["evaluate", str(run), "--sheet", str(sheet)]) == 0
    judged = [Judgement.of(row) for row in read_csv(run / "predictions-test.csv")]
    wrong = mistakes(judged)
    assert len(wrong) > 64
    assert f"{sheet}: the 64 surest of {len(wrong)} mistakes" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.width > 8 * 155
    assert [caption for _, caption, _ in drawn[:1]] == [
        f"{wrong[0].predicted} ({wrong[0].probability:.0%}), is {wrong[0].true}"
    ]
    assert all(one.probability >= other.probability for one, other in itertools.pairwise(wrong))


def test_what_cannot_be_is_refused_before_any_work(run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hadaptive.evaluate.evaluate_network", lambda *_, **__: pytest.fail("work was done"))
    there = tmp_path / "there.png"
    there.write_text("mine")
    with pytest.raises(UserError, match="exists already and is not overwritten: choose another --sheet"):
        evaluate_run(run, sheet=there)
    with pytest.raises(UserError, match="there is no folder"):
        evaluate_run(run, sheet=tmp_path / "none/there.png")
    monkeypatch.setattr("hadaptive.evaluate._part", lambda *_: (None, [], None, None))
    with pytest.raises(UserError, match="is a stream, whose images cannot be looked up again"):
        evaluate_run(run, sheet=tmp_path / "new.png")
    assert there.read_text() == "mine"


class Broken(ArraySource):
    """Whose first image cannot be read any more."""

    def read(self, index: int) -> tuple[Image.Image, int]:
        if index == 0:
            raise OSError("gone")
        return super().read(index)


def test_without_mistakes_there_is_no_sheet_and_unreadable_images_are_passed_over(tmp_path: Path) -> None:
    import numpy as np

    source = Broken(np.zeros((4, 5, 5), np.uint8), np.zeros(4, np.int64), "set")
    how = Preprocessing(image_size=5)
    right = [Judgement(source.name(n), "a", "a", 0.5, "a") for n in range(4)]
    path = tmp_path / "wrong.png"
    assert "there are no mistakes" in draw_mistakes(right, source, how, path, "title")
    assert not path.exists()
    names = (source.name(0), "elsewhere", source.name(2), source.name(3))
    wrong = [Judgement(name, "a", "b", 0.5, "b") for name in names]
    assert [one.image for one, _ in images_of(wrong, source, how, 1)] == [source.name(2)]
    assert "the 2 surest of 4 mistakes" in draw_mistakes(wrong, source, how, path, "title")
