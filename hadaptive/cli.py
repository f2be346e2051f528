"""The command line: one dataclass per command, whose fields are its flags. No logic lives here."""

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from hadaptive import __version__
from hadaptive.bench.commands import BENCHMARKS
from hadaptive.errors import UserError
from hadaptive.measure.setting import Setting
from hadaptive.search.config import StudyConfig
from hadaptive.train.config import RECIPES, TrainConfig

Positional = tyro.conf.Positional
FAULT_STATUS = 70  # as sysexits.h has it for an internal fault
FAULT = (
    "this is a fault of hadaptive, not of your input: please report it where you got hadaptive from, with the "
    "lines above, the command, and what 'hadaptive doctor' prints"
)


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a network on images and leave a run folder.

    Every flag's default comes from the recipe. With --resume, nothing but --quiet may be given beside it.

    Attributes:
        resume: continue this interrupted run exactly where it stopped.
        quiet: print nothing.
    """

    resume: Path | None = None
    quiet: bool = False


@dataclass(frozen=True)
class SearchCommand(StudyConfig):
    """Search a network for your images and your device, and leave a folder with it.

    Every flag's default comes from the recipe. With --resume, nothing but --quiet may be given beside it.

    Attributes:
        resume: continue this interrupted search, or this comparison of several, where it stopped.
        quiet: print nothing.
    """

    resume: Path | None = None
    quiet: bool = False


@dataclass(frozen=True)
class LatencyCommand:
    """Time every candidate of a search space on this device, and predict whole networks from the sum.

    Attributes:
        space: published, rich-s, rich-m, rich-l, or a .json file.
        output: new JSON file for the table, for ``hadaptive search --latency-table``.
        setting: what the latency is of.
        rounds: timed runs of each candidate.
        networks: whole networks the sum is fitted to; default as many as are ready in minutes in the runtime.
        stem_strides: strides of the first convolutions, as the search will have them.
    """

    space: Positional[str] = "published"
    output: Path | None = None
    setting: tyro.conf.OmitArgPrefixes[Setting] = field(default_factory=Setting)
    rounds: int = 60
    networks: int | None = None
    stem_strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SpacesCommand:
    """List the search spaces that ship, or show one position by position.

    Attributes:
        space: published, rich-s, rich-m, rich-l, or a .json file; left out, all are listed.
        save: write it to this new .json file, to change it by hand.
    """

    space: Positional[str | None] = None
    save: Path | None = None


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a run: accuracy with its interval, per class, and the confusion matrix as a picture.

    Attributes:
        run: run folder.
        split: part of the data.
        weights: which weights; default those that the run's own test used.
        data: where the data lie now, if they have moved.
        data_dir: likewise, for named data sets.
        cpu: stay on the CPU even where there is a GPU.
    """

    run: Positional[Path]
    split: Literal["test", "validation"] = "test"
    weights: Literal["best", "last"] | None = None
    data: str | None = None
    data_dir: Path | None = None
    cpu: bool = False


@dataclass(frozen=True)
class PredictCommand:
    """Predict what is on images.

    Attributes:
        run: run folder, or a file of ``hadaptive export``.
        images: image files, and folders to search for images.
        top: how many classes to show.
        weights: which weights of a run; default the best.
        json: print JSON lines instead of a table.
        sheet: also draw the images with their predictions into this new PNG.
        trust: load a torch.export file (.pt2), which can run code: only one that you made yourself.
    """

    run: Positional[Path]
    images: Positional[tuple[Path, ...]]
    top: int = 3
    weights: Literal["best", "last"] | None = None
    json: bool = False
    sheet: Path | None = None
    trust: bool = False


@dataclass(frozen=True)
class InfoCommand:
    """Show a network's layers, parameters, multiply-accumulates and element-wise products.

    Attributes:
        model: timm model name, NetSpec file (.json) or run folder.
        image_size: side of the input; default the run's own, or 224.
        num_classes: outputs; default the run's own, or 1000.
        in_chans: image channels; default the run's own, or 3.
        stem_strides: strides of a Hadaptive-Net's first convolutions.
        json: print JSON instead of a table.
        save_spec: write the network's spec to this new .json file, to change it by hand.
    """

    model: Positional[str]
    image_size: int | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    stem_strides: tuple[int, ...] | None = None
    json: bool = False
    save_spec: Path | None = None


@dataclass(frozen=True)
class DemoCommand:
    """Train, evaluate and predict on scikit-learn's digits, in about a minute on two cores.

    Attributes:
        output: run folder to make; default runs/demo-<time>.
        epochs: fewer, to see it work only.
    """

    output: Path | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class DoctorCommand:
    """Print versions, devices, and which backend each operator uses and why; check each against the reference."""


def _train(arguments: list[str]) -> None:
    from hadaptive.train import resume, train

    default = TrainCommand.from_recipe(_recipe_named_in(arguments))
    command = tyro.cli(TrainCommand, prog="hadaptive train", args=arguments, default=default)
    if command.resume is not None:
        _refuse_settings(command, default, TrainConfig)
        resume(command.resume, quiet=command.quiet)
        return
    config = TrainConfig(**{f.name: getattr(command, f.name) for f in fields(TrainConfig)})
    train(config, quiet=command.quiet)


def _recipe_named_in(arguments: list[str]) -> str:
    for i, argument in enumerate(arguments):
        if argument == "--recipe" and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith("--recipe="):
            return argument.removeprefix("--recipe=")
    return "quick"


def _search(arguments: list[str]) -> None:
    from hadaptive.search import resume, search, study

    default = SearchCommand.from_recipe(_recipe_named_in(arguments))
    command = tyro.cli(SearchCommand, prog="hadaptive search", args=arguments, default=default)
    if command.resume is not None:
        _refuse_settings(command, default, StudyConfig)
        resume(command.resume, quiet=command.quiet)
        return
    config = StudyConfig(**{f.name: getattr(command, f.name) for f in fields(StudyConfig)})
    if config.is_single:
        search(config.single(), quiet=command.quiet)
    else:
        study(config, quiet=command.quiet)


def _refuse_settings(command: Any, default: Any, config: type) -> None:
    """A resumed run has all its settings already."""
    extra = [f.name for f in fields(config) if getattr(command, f.name) != getattr(default, f.name)]
    if extra:
        raise UserError(f"--resume takes every setting from the run: leave out --{extra[0].replace('_', '-')}")


def _latency(arguments: list[str]) -> None:
    command = tyro.cli(LatencyCommand, prog="hadaptive latency", args=arguments)
    from hadaptive.search.latency import latency_command

    latency_command(
        command.space, command.setting, command.output, command.rounds, command.networks, command.stem_strides
    )


def _spaces(arguments: list[str]) -> None:
    command = tyro.cli(SpacesCommand, prog="hadaptive spaces", args=arguments)
    from hadaptive.search.spaces import spaces_command

    spaces_command(command.space, command.save)


def _evaluate(arguments: list[str]) -> None:
    command = tyro.cli(EvaluateCommand, prog="hadaptive evaluate", args=arguments)
    from hadaptive.evaluate import evaluate_run, print_evaluation

    print_evaluation(
        *evaluate_run(
            command.run,
            split=command.split,
            weights=command.weights,
            data=command.data,
            data_dir=command.data_dir,
            cpu=command.cpu,
        )
    )


def _predict(arguments: list[str]) -> None:
    command = tyro.cli(PredictCommand, prog="hadaptive predict", args=arguments)
    from hadaptive.predict import predict_command

    predict_command(
        command.run,
        command.images,
        top=command.top,
        weights=command.weights,
        as_json=command.json,
        sheet=command.sheet,
        trust=command.trust,
    )


def _info(arguments: list[str]) -> None:
    command = tyro.cli(InfoCommand, prog="hadaptive info", args=arguments)
    from hadaptive.info import info_command

    info_command(
        command.model,
        image_size=command.image_size,
        num_classes=command.num_classes,
        in_chans=command.in_chans,
        stem_strides=command.stem_strides,
        as_json=command.json,
        save_spec=command.save_spec,
    )


def _export(arguments: list[str]) -> None:
    from hadaptive.export.command import ExportConfig, export_command

    export_command(tyro.cli(ExportConfig, prog="hadaptive export", args=arguments))


def _demo(arguments: list[str]) -> None:
    command = tyro.cli(DemoCommand, prog="hadaptive demo", args=arguments)
    from hadaptive.demo import run_demo

    run_demo(command.output, epochs=command.epochs)


def _recipes(arguments: list[str]) -> None:
    for name, recipe in RECIPES.items():
        print(f"{name:14} {recipe.about}")
        if arguments:
            print(f"{'':14} {json.dumps(recipe.settings)}")


def _doctor(arguments: list[str]) -> None:
    tyro.cli(DoctorCommand, prog="hadaptive doctor", args=arguments)
    from hadaptive.doctor import diagnose, print_diagnosis

    checks = diagnose()
    print_diagnosis(checks)
    failed = [f"{check.operator} on {check.device}" for check in checks if not check.passed]
    if failed:
        raise UserError(
            f"{', '.join(failed)} failed the check; until it is mended, use hadaptive.ops.backend('reference')"
        )


def _bench(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in BENCHMARKS:
        raise UserError(f"say which: {' or '.join(f'hadaptive bench {name}' for name in BENCHMARKS)}")
    BENCHMARKS[arguments[0]](arguments[1:])


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (_train, "train a network on images, or --resume a run"),
    "evaluate": (_evaluate, "accuracy, per class, confusion matrix of a run"),
    "predict": (_predict, "classes and probabilities for image files"),
    "search": (_search, "search a network for your images and device, or --resume a search"),
    "latency": (_latency, "time every candidate of a search space on this device"),
    "export": (_export, "write a network for ONNX Runtime, OpenVINO or torch.export, with the proof beside it"),
    "spaces": (_spaces, "the search spaces that ship; spaces published --save mine.json starts your own"),
    "info": (_info, "layers, parameters, MACs and products of a network"),
    "recipes": (_recipes, "the named settings that train starts from; recipes all shows them"),
    "demo": (_demo, "all of it on scikit-learn's digits, in about a minute"),
    "doctor": (_doctor, "what this machine offers, which kernels are used and why, and whether they are right"),
    "bench": (
        _bench,
        f"{', '.join(sorted(BENCHMARKS))}: several networks side by side, a row of results for each",
    ),
}


def _usage() -> str:
    lines = [
        f"hadaptive {__version__}: efficient vision networks made of adaptive cross-Hadamard products",
        "",
        "usage: hadaptive COMMAND [FLAGS]      hadaptive COMMAND --help shows a command's flags",
        "",
        *(f"  {name:10} {about}" for name, (_, about) in COMMANDS.items()),
        "",
        "first steps:",
        "  hadaptive demo",
        "  hadaptive train --data path/to/folder --recipe folder --output runs/mine",
        "  hadaptive predict runs/mine picture.jpg",
        "",
        "--traceback before a command shows where in the code an error arose; --version prints the version.",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 (bad input), 2 (bad flags), 70 (our fault) or 130."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    show_traceback = "--traceback" in arguments[:1]
    if show_traceback:
        arguments = arguments[1:]
    if arguments[:1] == ["--version"]:
        print(__version__)
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if arguments[0] not in COMMANDS:
        print(f"hadaptive: there is no command {arguments[0]!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    from hadaptive.train.stopping import TrainingInterruptedError

    try:
        COMMANDS[arguments[0]][0](arguments[1:])
    except TrainingInterruptedError as stopped:
        print(f"stopped; go on with: hadaptive {stopped.command} --resume {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        if show_traceback:
            raise
        print(f"hadaptive {arguments[0]}: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        print(FAULT, file=sys.stderr)
        return FAULT_STATUS
    return 0
