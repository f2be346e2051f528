"""Put ACH into a network of your own: products of channels in place of the convolution that widens a map.

    python examples/ach_in_your_network.py

Two small networks learn scikit-learn's digits in a plain loop. They differ in how 24 channels become 52: by a 1x1
convolution, or by multiplying pairs of channels. One seed tells nothing of which is better; it shows what each has
for parameters, and that both learn.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from hadaptive.nn import AdaptiveCrossHadamard, adapt_temperatures

parser = argparse.ArgumentParser(description="ACH beside a convolution, on digits.")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument(
    "--selection", default="static", help="of ACH: static, sample (the paper's), grouped or random"
)
options = parser.parse_args()


class Convolution(nn.Sequential):
    """The usual way: (B, C, H, W) -> (B, out, H, W)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))
        self.out_channels = out


def network(expansion: nn.Module, channels: int) -> nn.Module:
    """A network for 8x8 images with an expansion in the middle, which `out_channels` tells the width of."""
    wide = int(expansion.out_channels)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.Hardswish(),
        expansion,
        nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),  # depthwise
        nn.BatchNorm2d(wide),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * wide, 10),
    )


def fit(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train in batches of 64 for `--epochs` epochs."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    adapt_temperatures(optimizer, model)  # for "sample" and "grouped": nothing else changes in your loop
    for _ in range(options.epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


pixels, classes = load_digits(return_X_y=True)
images, labels = torch.tensor(pixels).float().view(-1, 1, 8, 8) / 16, torch.tensor(classes)
first, last = slice(0, 1400), slice(1400, None)
ach = AdaptiveCrossHadamard(24, k=8, selection=options.selection)  # 24 channels and 28 products
for name, expansion in (("convolution", Convolution(24, ach.out_channels)), ("ACH", ach)):
    torch.manual_seed(0)
    model = network(expansion, 24)
    fit(model, images[first], labels[first])
    model.eval()
    with torch.no_grad():
        right = (model(images[last]).argmax(1) == labels[last]).float().mean()
    size = sum(parameter.numel() for parameter in expansion.parameters())
    print(
        f"{name}: 24 channels to {ach.out_channels} with {size:,} parameters, {right:.1%} of held-out digits right"
    )
