"""The model card that goes with a network to others: what it is, what it was measured to do, how it is used."""

from pathlib import Path
from typing import Any

from torch import nn

from hadaptive.cards import ModelCard
from hadaptive.errors import UserError
from hadaptive.info import inspect_network
from hadaptive.metrics import told
from hadaptive.runs import RunFolder
from hadaptive.text import in_markdown

MOST_CLASSES = 100  # that are listed; config.json has them all
HEAD = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- hadaptive
---
"""


def readme(
    title: str,
    network: nn.Module,
    card: ModelCard,
    measured: list[tuple[str, str]],
    *,
    at: str,
) -> str:
    """A model card as Markdown, with the header that the Hugging Face Hub reads.

    Args:
        title: what the network is called.
        network: in eval mode, on the CPU.
        card: its classes and preprocessing.
        measured: names and values, as :func:`of_training` and :func:`of_proof` give them.
        at: what timm calls it, such as "local-dir:FOLDER".
    """
    how = card.preprocessing
    size = "x".join(map(str, how.input_size))
    info = inspect_network(network, how.input_size)
    fit = "centre crop" if how.fit == "crop" else "stretched to the square"
    rows = [
        ("network", in_markdown(card.for_others.model)),
        ("parameters", f"{info.parameters:,}"),
        ("multiply-accumulates", f"{info.macs / 1e6:,.1f} M"),
        ("input", f"{size} (channels, height, width), {fit}"),
        *((name, in_markdown(value)) for name, value in measured),
    ]
    some = ", ".join(map(in_markdown, card.classes[:MOST_CLASSES]))
    more = f", and {len(card.classes) - MOST_CLASSES:,} more" if len(card.classes) > MOST_CLASSES else ""
    return "\n".join(
        [
            f"{HEAD}# {in_markdown(title)}",
            "",
            f"{_purpose(card)} The figures below were measured with `hadaptive`;",
            "how the network does on other pictures is not known.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            f"Classes: {some}{more}.",
            "",
            "## Use",
            "",
            *_usage(card, at),
            "",
        ]
    )


def _purpose(card: ModelCard) -> str:
    number = f"{len(card.classes):,} classes"
    return f"Says which of {number} a picture has." if card.multi_label else f"Tells {number} of pictures apart."


def _usage(card: ModelCard, at: str) -> list[str]:
    """What prepares a picture as `predict` does, but for 16 bits and transparency, and says what is on it."""
    how, ours = card.preprocessing, card.spec is not None
    mode = "L" if how.in_chans == 1 else "RGB"
    padded = how.pad and how.fit == "stretch"
    logits, said = "network(transform(image)[None])", []
    if ours:
        said += ["The package `hadaptive` registers the network with timm when it is imported.", ""]
    if card.temperature != 1:
        logits = f"({logits} / {card.temperature:.6g})"
        said += [
            f"Logits are divided by {card.temperature:.6g}, so that the network is as sure as it is right.",
            "",
        ]
    return [
        *said,
        "```python",
        *(["import hadaptive  # before the network is built: timm does not know it otherwise"] if ours else []),
        "import timm",
        "import torch",
        "from PIL import Image, ImageOps",
        "",
        f'network = timm.create_model("{at}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))",
        f'image = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("{mode}")',
        *([f"image = ImageOps.expand(image, {how.pad})"] if padded else []),
        "with torch.no_grad():",
        f"    probabilities = {logits}.{'sigmoid()' if card.multi_label else 'softmax(1)'}[0]",
        *(_present(card) if card.multi_label else _likeliest()),
        "```",
    ]


def _likeliest() -> list[str]:
    return [
        "best = int(probabilities.argmax())",
        'print(network.pretrained_cfg["label_names"][best], float(probabilities[best]))',
    ]


def _present(card: ModelCard) -> list[str]:
    return [
        f"least = [{', '.join(f'{one:.6g}' for one in card.limits)}]",
        'for name, probability, enough in zip(network.pretrained_cfg["label_names"], probabilities, least):',
        "    if probability >= enough:",
        "        print(name, float(probability))",
    ]


def of_training(run: RunFolder, which: str | None) -> list[tuple[str, str]]:
    """What a run says of "best" or "last" weights: the data, and the accuracy where these were measured.

    Without accuracy where `which` is None.

    Raises:
        UserError: one of its files is damaged.
    """
    if not run.summary.is_file():
        return [("training", "not finished: these are the weights it had so far")]
    summary = run.read_json(run.summary)
    try:
        epochs = "1 epoch" if summary["epochs"] == 1 else f"{summary['epochs']} epochs"
        rows = [
            (
                "trained on",
                f"{summary['train_images']:,} images of {_data_name(str(summary['data']))}, {epochs}, "
                f"recipe {summary['recipe']}, seed {summary['seed']}",
            ),
            (
                "trained with",
                f"hadaptive {summary['hadaptive']}, timm {summary['timm']}, PyTorch {summary['torch']}",
            ),
        ]
        if summary.get("weights") == which:
            rows += _accuracy("validation", summary.get("validation"))
            rows += _accuracy("test", summary.get("test"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.summary} is damaged: {error}") from None
    return rows


def _accuracy(part: str, found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not found or found.get("accuracy") is None or not found.get("images"):
        return []
    said = told(found, interval=True)
    name = f"{part} accuracy" if said.startswith("accuracy ") else part
    return [(name, said.removeprefix("accuracy "))]


def _data_name(data: str) -> str:
    """What data are called, and not where they lie on their owner's disk."""
    return data if data.startswith(("hfds/", "hfids/", "tfds/")) else Path(data).name


def of_proof(about: dict[str, Any], figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What an export measured of the network it wrote."""
    rows = []
    names = {
        "dynamic": "with dynamic selections",
        "frozen": "with fixed ones",
        "finetuned": "trained on with these",
    }
    for key, what in names.items():
        if f"accuracy_{key}" in about:
            rows.append((f"validation accuracy {what}", f"{about[f'accuracy_{key}']:.2%}"))
    rows.append(
        (
            "loaded by timm",
            f"the same class as before on {figures['top1']:.2%} of {figures['images']:,} images, largest "
            f"relative error {figures['relative_error']:.1e}",
        )
    )
    for number, times in enumerate(figures["latency"].values(), 1):
        threads = "1 thread" if number == 1 else f"{number} threads"
        rows.append((f"latency in PyTorch, {threads}", f"{times['p50_ms']:.2f} ms on {about['device']}"))
    return rows
