"""What deployment costs in test accuracy, and whether exported files compute what the network does."""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import tyro

from hadaptive.data import is_stream
from hadaptive.engine.batches import evaluation_batches
from hadaptive.errors import UserError
from hadaptive.evaluate import evaluate_run
from hadaptive.export.command import export_command
from hadaptive.export.config import ExportConfig
from hadaptive.export.proof import accuracy_of
from hadaptive.files import append_csv
from hadaptive.measure.formats import SUFFIXES, Format
from hadaptive.measure.sessions import load
from hadaptive.provenance import provenance
from hadaptive.runs import RunFolder
from hadaptive.train import read_config, train_or_resume

VARIANTS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "frozen": {"freeze": True},
    "frozen, fine-tuned": {"freeze": True, "finetune": True},
    "frozen, int8, ONNX Runtime": {"freeze": True, "int8": True},
    "frozen, int8, OpenVINO": {"freeze": True, "int8": True, "format": "openvino"},
}
CONTROL = "dynamic, trained on"


@dataclass(frozen=True)
class DeploymentConfig:
    """Export trained runs in every way and measure each file's accuracy on the test part.

    Attributes:
        runs: run folders, of one model or several; what is trained on stays in them.
        epochs: of fine-tuning, and of the control that is trained on as long with dynamic selections.
        results: CSV file that the rows are appended to.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    epochs: int = 1
    results: Path = Path("benchmarks/results/deployment.csv")


def bench_deployment(config: DeploymentConfig) -> list[dict[str, Any]]:
    """A row for each run and way of deploying it, appended as they are measured; returns them.

    Raises:
        UserError: a run is none, has no test part, or its data have moved.
    """
    if not config.runs or config.epochs < 1:
        raise UserError("name the run folders to export, and train on for at least one epoch")
    rows = []
    config.results.parent.mkdir(parents=True, exist_ok=True)
    for path in config.runs:
        run = RunFolder.open(path)
        training, card = read_config(run), run.read_card()
        test = None if is_stream(training.data.data) else run.open_data(needs=("test",)).test
        if test is None:
            raise UserError(f"{path} has no test part to measure on")
        loader = evaluation_batches(test, card.preprocessing, workers=0)
        batches = [(images[bad < 0], targets[bad < 0]) for images, targets, bad in loader]
        accuracies: dict[str, float] = {}
        notes: dict[str, str] = {}
        for variant, settings in VARIANTS.items():
            with tempfile.TemporaryDirectory() as folder:
                form = settings.get("format", "onnx")
                output = Path(folder) / f"net{SUFFIXES[form]}"
                changes = {**settings, "finetune": config.epochs if settings.get("finetune") else 0}
                about = export_command(ExportConfig(str(path), output=output, force=True, **changes))
                accuracies[variant] = accuracy_of(load(output, trust=True)[0], batches)
                notes[variant] = " ".join(about.get("int8", {}).get("float", []))
        continued = path / "continued"
        train_or_resume(
            training.changed(
                model=None,
                stem_strides=None,
                init=path,
                output=continued,
                epochs=config.epochs,
                lr=training.optimisation.lr / 4,
                select="last",
            )
        )
        accuracies[CONTROL], notes[CONTROL] = evaluate_run(continued, cpu=True)[0].accuracy, ""
        new = [
            {
                "model": card.spec.name if card.spec else card.model,
                "seed": training.execution.seed,
                "variant": variant,
                "test_accuracy": accuracy,
                "lost_points": round(100 * (accuracies["dynamic"] - accuracy), 3),
                "test_images": len(test),
                "epochs": config.epochs if variant in ("frozen, fine-tuned", CONTROL) else 0,
                "float_layers": notes[variant],
                **provenance("cpu"),
            }
            for variant, accuracy in accuracies.items()
        ]
        append_csv(config.results, new)
        rows += new
    return rows


@dataclass(frozen=True)
class ParityConfig:
    """Export networks to every format, dynamic and frozen, and compare each file with PyTorch on real images.

    Attributes:
        sources: run folders, NetSpec files, or timm names (the last two with seeded random weights).
        formats: that are written.
        images: real images that each file is compared on.
        data: images for networks without a run.
        image_size: of networks without a run.
        num_classes: of networks without a run.
        results: CSV file that the rows are appended to.
    """

    sources: tyro.conf.Positional[tuple[str, ...]]
    formats: tuple[Format, ...] = get_args(Format)
    images: int = 1000
    data: str = "fashion-mnist"
    image_size: int = 64
    num_classes: int = 10
    results: Path = Path("benchmarks/results/parity.csv")


def bench_parity(config: ParityConfig) -> list[dict[str, Any]]:
    """A row for each file, appended as it is compared; returns them.

    Raises:
        UserError: a source cannot be exported, or a file computes something else.
    """
    if not config.sources:
        raise UserError("name the networks to export")
    rows = []
    config.results.parent.mkdir(parents=True, exist_ok=True)
    for source, form, frozen in itertools.product(config.sources, config.formats, (False, True)):
        bare = {"data": config.data, "image_size": config.image_size, "num_classes": config.num_classes}
        with tempfile.TemporaryDirectory() as folder:
            settings: Any = {"format": form, "freeze": frozen, "force": True, "images": config.images}
            settings |= {} if Path(source).is_dir() else bare
            found = export_command(ExportConfig(source, output=Path(folder) / f"net{SUFFIXES[form]}", **settings))
        row = {
            "source": Path(source).name,
            "format": form,
            "selections": "fixed" if frozen else "dynamic",
            **{key: found[key] for key in ("images", "top1", "relative_error", "near_ties", "bytes")},
        }
        rows.append({**row, **provenance("cpu")})
        append_csv(config.results, rows[-1:])
    return rows
