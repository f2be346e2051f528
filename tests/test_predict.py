"""Predictions on a person's own files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY, tiny_config

from hadaptive import predict
from hadaptive.cards import card_for
from hadaptive.data import Preprocessing, decode, eval_transform
from hadaptive.files import write_json
from hadaptive.models import create_model
from hadaptive.predict import find_images, predict_command, predict_images
from hadaptive.runs import RunFolder
from hadaptive.train import train

CLASSES = ["cat", "dög", "a bird"]
PREPROCESSING = Preprocessing(image_size=8)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    network = create_model(TINY, num_classes=3)
    folder = RunFolder.create(tmp_path / "run")
    write_json(folder.config, {})
    write_json(folder.card, card_for("tiny", network, CLASSES, PREPROCESSING).to_dict())
    folder.save_weights(network, "best")
    return folder.path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 13, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    (tmp_path / "images" / "deep er").mkdir(parents=True)
    for mode in ("RGB", "RGBA", "L", "P", "1"):
        image.convert(mode).save(tmp_path / "images" / f"{mode}.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "images" / "deep er" / "sïxteen.png")
    return tmp_path / "images"


def test_prediction_is_the_networks_output_on_the_transformed_image(run: Path, images: Path) -> None:
    model, card = RunFolder.open(run).load_model()
    paths, _ = find_images([images])
    assert len(paths) == 6
    transform = eval_transform(PREPROCESSING)
    for prediction, path in zip(predict_images(model, paths, card, top=3, batch_size=4), paths, strict=True):
        with torch.no_grad():
            expected = model(transform(decode(path.read_bytes()))[None]).softmax(1)[0]
        assert prediction.image == str(path)
        assert prediction.error is None
        for name, probability in prediction.classes:
            assert probability == pytest.approx(expected[CLASSES.index(name)].item(), abs=1e-5)
        probabilities = [p for _, p in prediction.classes]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_top_is_at_most_the_classes_and_at_least_one(run: Path, images: Path) -> None:
    model, card = RunFolder.open(run).load_model()
    path = [images / "RGB.png"]
    assert len(next(predict_images(model, path, card, top=99)).classes) == 3
    assert len(next(predict_images(model, path, card, top=1)).classes) == 1
    with pytest.raises(ValueError, match="top must be at least 1"):
        next(predict_images(model, path, card, top=0))


def test_unreadable_files_are_told_not_fatal(run: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "cut.png").write_bytes((images / "RGB.png").read_bytes()[:60])
    (images / "empty.png").write_bytes(b"")
    predict_command(run, [images], top=1)
    out = capsys.readouterr().out
    assert out.count("cannot be read") == 2
    with pytest.raises(ValueError, match="not one of the images"):
        predict_command(run, [images / "cut.png", images / "empty.png"], top=1)


def test_find_images_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file or folder"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="no images"):
        find_images([tmp_path])


def test_sheet_shows_every_readable_image(run: Path, images: Path, tmp_path: Path) -> None:
    (images / "empty.png").write_bytes(b"")
    predict_command(run, [images], top=1, sheet=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_sheet_of_too_many_images_is_cut_and_says_so(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "MOST_TILES", 2)
    readable = len(find_images([images])[0])
    predict_command(run, [images], top=1, sheet=tmp_path / "sheet.png")
    assert f"sheet.png shows the first 2 of {readable} images" in capsys.readouterr().out


def test_sheet_that_cannot_be_written_is_found_before_the_work(run: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        predict_command(run, [images], top=1, sheet=tmp_path / "nowhere" / "sheet.png")


def test_folders_are_searched_for_what_training_takes(tmp_path: Path) -> None:
    names = ("a.AVIF", "b.jp2", "deep/c.png", ".hidden.png", "notes.txt")
    (tmp_path / "deep").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images([tmp_path])[0]] == ["a.AVIF", "b.jp2", "c.png"]


def test_one_white_and_one_limit_hold_from_training_to_prediction(tmp_path: Path) -> None:
    """12-bit photos, and one of more pixels than are allowed: the card says it to whoever reads images after."""
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(20):
            grey = np.full((8, 8), 2000 * number + 40 * i, np.uint16)
            Image.fromarray(grey).save(tmp_path / "pets" / name / f"{i}.png")
    flags = {"white": 4095.0, "max_pixels": 100, "batch_size": 8, "epochs": 1, "train_size": None}
    train(tiny_config(tmp_path, data=str(tmp_path / "pets"), **flags), quiet=True)
    network, card = RunFolder.open(tmp_path / "run").load_model()
    assert (card.preprocessing.white, card.preprocessing.max_pixels) == (4095.0, 100)
    image = tmp_path / "pets" / "dog" / "19.png"
    pixels = eval_transform(card.preprocessing)(decode(image.read_bytes()))
    assert pixels.mean() == pytest.approx((round(2760 / 4095 * 255) / 255 - 0.5) / 0.5, abs=1e-6)
    Image.new("L", (11, 10)).save(tmp_path / "large.png")
    first, second = predict_images(network, [image, tmp_path / "large.png"], card)
    assert first.error is None
    assert second.error is not None
    assert "--max-pixels 100 allows" in second.error
