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

MAY_BE_LEFT_OUT = (ach(8, 3, 24), ghost(2, 3, 24), inverted(2, 3, 24), Skip())
SPACE = SearchSpace(
    name="miniature",
    stem=(ConvSpec(12, 3, 1),),
    stage1=(),
    stages=(((ghost(2, 3, 24, stride=2),), MAY_BE_LEFT_OUT, MAY_BE_LEFT_OUT, MAY_BE_LEFT_OUT),),
    last_channels=None,
    head_channels=64,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Search a small network for this device.")
    parser.add_argument("output", type=Path, help="folder to make for the search; others get names that begin so")
    parser.add_argument("--epochs", type=int, default=10, help="of the search, and of the training after it")
    parser.add_argument("--images", type=int, default=0, help="to learn from; 0 takes all 1,293")
    parser.add_argument("--rounds", type=int, default=30, help="how often each candidate is timed")
    options = parser.parse_args()
    names = ("space.json", "latency.json", "found")
    made = {name: options.output.with_name(f"{options.output.name}-{name}") for name in names}
    for path in (options.output, *made.values()):
        if path.exists():
            parser.error(f"{path} exists already and is not overwritten: choose another output")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    SPACE.save(made["space.json"])

    # Every candidate by itself, and a few whole networks to see what their sum is worth.
    setting = Setting(image_size=32, in_chans=1, num_classes=10, threads=1)
    table = measure_table(SPACE, setting, rounds=options.rounds, networks=4, quiet=True)
    table.save(made["latency.json"])
    drawn = [SPACE.random(torch.Generator().manual_seed(seed)) for seed in range(20)]
    times = sorted(table.predict(choice) for choice in drawn)
    target = times[len(times) // 2]
    print(
        f"random networks of the space take {times[0]:.2f} to {times[-1]:.2f} ms here, half of them {target:.2f}"
    )

    config = SearchConfig.from_recipe(
        "quick",
        data="digits",
        in_chans=1,
        train_size=options.images,
        space=str(made["space.json"]),
        output=options.output,
        epochs=options.epochs,
        latency_table=made["latency.json"],
        latency_target=f"{target:.4f}ms",
        threads=1,
    )
    search(config, quiet=True)

    found = options.output / "found.json"
    for stage in NetSpec.load(found).stages:
        print("found:", ", ".join(f"{block.kind} {block.kernel}x{block.kernel}" for block in stage))
    summary = train(config.training(model=str(found), output=made["found"]), quiet=True)
    print(f"trained: {summary['test']['accuracy']:.1%} of the test images are right")


if __name__ == "__main__":  # processes that load images may import this file
    main()
