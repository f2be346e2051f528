"""Search a network for this device in a space of your own, and train what was found.

    python examples/search_for_this_device.py runs/search

A space is data: for each position the blocks that may stand there. Every one of them is timed on this device; the
search then learns which to take within a latency, here on scikit-learn's digits in miniature. For images of your
own use `hadaptive search`, which does the same with larger spaces and says how far its result can be trusted.
"""

import argparse
from pathlib import Path

import torch

from hadaptive.models import ConvSpec, NetSpec
from hadaptive.models.layer_spec import ach, ghost, inverted
from hadaptive.search import SearchConfig, SearchSpace, Setting, Skip, measure_table, search
from hadaptive.train import train

parser = argparse.ArgumentParser(description="Search a small network for this device.")
parser.add_argument("output", type=Path, help="folder to make for the search")
parser.add_argument("--epochs", type=int, default=10, help="of the search, and of the training after it")
parser.add_argument("--images", type=int, default=0, help="to learn from; 0 takes all 1,293")
parser.add_argument("--rounds", type=int, default=30, help="how often each candidate is timed")
options = parser.parse_args()

names = ("space.json", "latency.json", "found")
made = {name: options.output.with_name(f"{options.output.name}-{name}") for name in names}
for path in (options.output, *made.values()):
    if path.exists():
        parser.error(f"{path} exists already and is not overwritten: choose another output")

may_be_left_out = (ach(8, 3, 24), ghost(2, 3, 24), inverted(2, 3, 24), Skip())
space = SearchSpace(
    name="miniature",
    stem=(ConvSpec(12, 3, 1),),
    stage1=(),
    stages=(((ghost(2, 3, 24, stride=2),), may_be_left_out, may_be_left_out, may_be_left_out),),
    last_channels=None,
    head_channels=64,
)

# Every candidate alone, and some whole networks to see how far their sum can be trusted.
setting = Setting(image_size=32, in_chans=1, num_classes=10, threads=1)
table = measure_table(space, setting, rounds=options.rounds, networks=4, quiet=True)
drawn = [space.random(torch.Generator().manual_seed(seed)) for seed in range(20)]
times = sorted(table.predict(choice) for choice in drawn)
target = times[len(times) // 2]
print(f"random networks of the space take {times[0]:.2f} to {times[-1]:.2f} ms here, half of them {target:.2f}")

options.output.parent.mkdir(parents=True, exist_ok=True)
space.save(made["space.json"])
table.save(made["latency.json"])
config = SearchConfig.from_recipe(
    "quick",
    data="digits",
    train_size=options.images,
    in_chans=1,
    space=str(made["space.json"]),
    output=options.output,
    epochs=options.epochs,
    latency_table=made["latency.json"],
    latency_target=f"{target:.4f}ms",
    threads=1,
)
search(config, quiet=True)

found = NetSpec.load(options.output / "found.json")
for block in (block for stage in found.stages for block in stage):
    print(block)
again = config.training(model=str(options.output / "found.json"), output=made["found"])
print(f"trained: {train(again, quiet=True)['test']['accuracy']:.1%} of the test images are right")
