"""Train a network on a folder of images, see how good it is on images it has not learned from, and use it.

    python examples/train_and_predict.py path/to/folder runs/mine picture.jpg

The folder holds one folder of images per class. What comes of it is a run folder, which `hadaptive evaluate`,
`predict` and `export` take as well.
"""

import argparse
from pathlib import Path

from hadaptive.evaluate import evaluate_run
from hadaptive.predict import find_images, predict_images
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, train


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on a folder of images and predict.")
    parser.add_argument("data", help="one folder of images per class")
    parser.add_argument("output", type=Path, help="run folder to make")
    parser.add_argument("images", type=Path, nargs="+", help="to predict: files, or folders of them")
    parser.add_argument("--model", default="hadaptive_net2_s", help="any name of timm's, or a network's JSON file")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16, help="images a step learns from")
    parser.add_argument("--image-size", type=int, default=64, help="side of the images, pixels")
    options = parser.parse_args()
    pictures, left_out = find_images(options.images)  # what is not there is said before the training, not after it

    # Settings have the names of the flags of `hadaptive train`, and the defaults of the recipe.
    config = TrainConfig.from_recipe(
        "folder",
        data=options.data,
        output=options.output,
        model=options.model,
        epochs=options.epochs,
        batch_size=options.batch_size,
        image_size=options.image_size,
    )
    train(config, quiet=True)

    evaluation, _, files = evaluate_run(options.output)
    print(f"{evaluation.correct} of {evaluation.total} test images are right; more in {files['confusion matrix']}")

    network, card = RunFolder.open(options.output).load_model()
    if left_out:
        print(left_out)
    for found in predict_images(network, pictures, card, top=1):
        if found.error is not None:
            print(f"{found.image}: cannot be read: {found.error}")
        for name, probability in found.classes:
            print(f"{found.image}: {name} ({probability:.0%})")


if __name__ == "__main__":  # processes that load images may import this file
    main()
