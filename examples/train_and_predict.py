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

parser = argparse.ArgumentParser(description="Train on a folder of images and predict.")
parser.add_argument("data", help="one folder of images per class")
parser.add_argument("output", type=Path, help="run folder to make")
parser.add_argument("images", type=Path, nargs="+", help="to predict: files, or folders of them")
parser.add_argument("--model", default="hadaptive_net2_s", help="any name of timm's, or a network's JSON file")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--batch-size", type=int, default=16, help="images a step learns from")
parser.add_argument("--image-size", type=int, default=64, help="side of the images, pixels")
options = parser.parse_args()

# The recipe's settings are those of `hadaptive train --recipe folder`; flags of the command are its other names.
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

evaluation, classes, files = evaluate_run(options.output)
print(f"{evaluation.correct} of {evaluation.total} test images are right; more in {files['confusion matrix']}")

network, card = RunFolder.open(options.output).load_model()
paths, left_out = find_images(options.images)
for prediction in predict_images(network, paths, card, top=1):
    name, probability = prediction.classes[0] if prediction.classes else (prediction.error, 0.0)
    print(f"{prediction.image}: {name} ({probability:.0%})")
