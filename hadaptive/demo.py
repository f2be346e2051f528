"""The main job from end to end on real images that ship with scikit-learn."""

from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from hadaptive.console import say
from hadaptive.evaluate import evaluate_run
from hadaptive.pictures import contact_sheet
from hadaptive.predict import predict_images
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, train

SHOWN = 32


def run_demo(output: Path | None = None, *, epochs: int | None = None) -> dict[str, Any]:
    """Train S on scikit-learn's digits, evaluate it, predict held-out images from files, draw a contact sheet.

    Args:
        output: run folder to make; default runs/demo-<time>.
        epochs: fewer, to see it work only.

    Returns:
        The training summary, with the contact sheet's path under "sheet".

    Raises:
        UserError: the folder exists.
    """
    output = output or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    changes = {} if epochs is None else {"epochs": epochs}
    summary = train(TrainConfig.from_recipe("quick", data="digits", output=output, **changes))
    _, classes, files = evaluate_run(output, quiet=False)

    run = RunFolder.open(output)
    model, card = run.load_model()
    folder, sheet = run.path / "samples", run.path / "predictions.png"
    folder.mkdir()
    test = run.open_data(needs=("test",)).test
    assert test is not None
    paths, truths = [], []
    for i in range(SHOWN):
        image, target = test.read(i)
        paths.append(folder / f"{i:02d}-is-{classes[target]}.png")
        truths.append(classes[target])
        image.save(paths[-1])
    tiles: list[tuple[Image.Image, str, bool | None]] = []
    right = 0
    for prediction, path, truth in zip(
        predict_images(model, paths, card),
        paths,
        truths,
        strict=True,
    ):
        name, probability = prediction.classes[0]
        right += name == truth
        with Image.open(path) as image:
            title = f"{name} ({probability:.0%})" + ("" if name == truth else f", is {truth}")
            tiles.append((image.copy(), title, name == truth))
    contact_sheet(tiles, sheet, f"{right} of {SHOWN} held-out digits right")

    test_figures = summary["test"]
    say()
    say(f"test accuracy {test_figures['accuracy']:.2%} on {test_figures['images']} held-out digits")
    say(f"{right} of {SHOWN} shown right: {sheet}")
    say(f"confusion matrix: {files['confusion matrix']}")
    say(f"curves: {run.curves}")
    say(f"everything else: {run.path}")
    return {**summary, "sheet": str(sheet)}
