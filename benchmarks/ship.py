"""Put a network that a search found, and the weights of one of its trainings, into the package."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from hadaptive.cards import ModelCard
from hadaptive.console import say
from hadaptive.engine.batches import evaluation_batches
from hadaptive.errors import UserError
from hadaptive.files import append_csv, json_text, write_atomically
from hadaptive.info import inspect_network
from hadaptive.metrics import evaluate_model, share_text
from hadaptive.models import NetSpec
from hadaptive.models.shipped import FOLDER, METADATA_KEY
from hadaptive.provenance import provenance
from hadaptive.runs import RunFolder
from hadaptive.train import read_config


@dataclass(frozen=True)
class ShipConfig:
    """Put the network of a run and its weights into the package, and measure what is put there.

    Attributes:
        run: a finished run.
        network: what timm is to call the network.
        tag: what its weights are to be called behind the dot.
        folder: of the package's networks.
        results: the CSV file of rows.
    """

    run: Path
    network: str
    tag: str
    folder: Path = FOLDER
    results: Path = Path("benchmarks/results/shipped.csv")


def in_half_precision(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network with its parameters in float16; what was counted or estimated stays exact."""
    parameters = {name for name, _ in network.named_parameters()}
    return {
        name: value.detach().cpu().to(torch.float16 if name in parameters else value.dtype).contiguous()
        for name, value in network.state_dict().items()
    }


def ship(config: ShipConfig) -> dict[str, Any]:
    """Write NAME.json, NAME.TAG.safetensors and its model card, and append a row of what they are worth.

    Returns:
        The row, measured on the test part with the weights as they are written.

    Raises:
        UserError: the run is not finished or not of one of our networks, or the package has another network of
            that name.
    """
    run = RunFolder.open(config.run)
    summary, settings = run.read_json(run.summary), read_config(run)
    network, card = run.load_model()
    if card.spec is None:
        raise UserError(f"{config.run} is of {card.model}, which is not ours to put into the package")
    spec = replace(card.spec, name=config.network)
    spec_path = config.folder / f"{config.network}.json"
    if spec_path.is_file() and NetSpec.load(spec_path) != spec:
        raise UserError(f"{spec_path} is another network: choose another name")

    state = in_half_precision(network)
    network.load_state_dict(state)
    opened = run.open_data(needs=("test",))
    if opened.test is None:
        raise UserError(f"{config.run} has no test part to measure the weights on")
    batches = evaluation_batches(opened.test, card.preprocessing, in_memory=opened.in_memory)
    found = evaluate_model(network, batches, len(card.classes))
    info = inspect_network(network, card.preprocessing.input_size)
    row = {
        "network": config.network,
        "weights": config.tag,
        "data": summary["data"],
        "recipe": summary["recipe"],
        "train_images": summary["train_images"],
        "epochs": summary["epochs"],
        "lr": settings.optimisation.lr,
        "seed": settings.execution.seed,
        "image_size": card.preprocessing.image_size,
        "parameters": info.parameters,
        "macs": info.macs,
        "test_images": found.total,
        "test_accuracy": round(found.correct / found.total, 4),
        "trained_at": summary["commit"],
        **provenance(),
    }
    shipped = replace(card, model=config.network, spec=spec, drop_rate=None, drop_path_rate=None)
    about = {"row": row, "pretrained_cfg": shipped.pretrained_cfg}
    metadata = {METADATA_KEY: json_text({"card": shipped.to_dict(), "about": about, "split": None})}
    config.folder.mkdir(exist_ok=True)
    spec.save(spec_path)
    weights = config.folder / f"{config.network}.{config.tag}.safetensors"
    write_atomically(weights, lambda path: path.write_bytes(save(state, {"format": "pt", **metadata})))
    text = model_card(row, shipped, share_text(found.correct, found.total), weights.stat().st_size)
    write_atomically(weights.with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))
    append_csv(config.results, [row])
    say(f"{weights.name}: {share_text(found.correct, found.total)} of {found.total:,} test images right")
    return row


SOURCES = {
    "fashion-mnist": "Fashion-MNIST (Zalando Research, MIT licence): 28x28 grey pictures of ten kinds of clothing",
    "digits": "scikit-learn's digits (UCI, CC BY 4.0): 8x8 grey pictures of handwritten digits",
}


def model_card(row: dict[str, Any], card: ModelCard, accuracy: str, size: int) -> str:
    """The Markdown that lies beside the weights: what they are, what they were measured to do, and what not."""
    name, how = f"{row['network']}.{row['weights']}", card.preprocessing
    facts = {
        "parameters": f"{row['parameters']:,}, stored in float16 ({size / 1e3:,.0f} kB)",
        "input": "x".join(map(str, how.input_size)) + f", {row['macs'] / 1e6:.1f} M multiply-accumulates",
        "trained on": f"{row['train_images']:,} images of the training part for {row['epochs']} epochs, recipe "
        f"`{row['recipe']}`, learning rate {row['lr']:g}, seed {row['seed']}",
        "accuracy": f"{accuracy} of the {row['test_images']:,} test images, with the weights as they are stored; "
        "they chose nothing",
        "classes": ", ".join(card.classes),
        "licence": "as the package's; the data have their own",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""# {name}

`{row["network"]}`, a network that `hadaptive search` found, and the weights of one training on
{SOURCES.get(row["data"], row["data"])}.

| | |
| --- | --- |
{table}

```python
import timm
import hadaptive

network = timm.create_model("{name}", pretrained=True)
```

They are of small grey pictures and know nothing of photographs: to start from for others of their kind, for tests
and for demonstrations. `hadaptive predict {name} picture.png` prepares pictures as the training did.
"""
