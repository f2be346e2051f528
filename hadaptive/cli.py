"""The command line: from what a person types to the function that does it. No logic lives here."""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import tyro

from hadaptive import __version__
from hadaptive.bench.commands import BENCHMARKS
from hadaptive.commands import (
    DataCommand,
    DemoCommand,
    DoctorCommand,
    EvaluateCommand,
    InfoCommand,
    LatencyCommand,
    PredictCommand,
    PushCommand,
    RecipesCommand,
    ReportCommand,
    RunsCommand,
    SearchCommand,
    SpacesCommand,
    TrainCommand,
)
from hadaptive.console import say
from hadaptive.engine.config import RecipeSettings
from hadaptive.engine.recipes import RECIPES
from hadaptive.errors import MainProcessError, TrainingInterruptedError, UserError, resuming
from hadaptive.export.config import ExportConfig
from hadaptive.files import json_text
from hadaptive.parsing import parsed
from hadaptive.search.config import StudyConfig
from hadaptive.settings import names
from hadaptive.train.config import TrainConfig

PIPE_STATUS = 141  # 128 and the number of SIGPIPE
FAULT_STATUS = 70  # as sysexits.h has it for an internal fault
FAULT = (
    "this is a fault of hadaptive, not of your input: please report it where you got hadaptive from, with the "
    "lines above, the command, and what 'hadaptive doctor' prints"
)


Command = TypeVar("Command", bound=RecipeSettings)


COLUMNS = ("file_column", "label_column", "split_column")  # of a label file
BESIDE_RESUME = {
    "train": {"resume", "quiet", "data", "data_dir", "epochs"},
    "search": {"resume", "quiet", "data", "data_dir", "jobs", "executor"},
}


def _configured(kind: type[Command], name: str, arguments: list[str]) -> tuple[Command, set[str]]:
    """The settings that flags give on top of their recipe's, and which were typed; beside --resume, hardly any."""
    default = kind.from_recipe(_recipe_named_in(arguments, f"hadaptive {name}"))
    # The parts of a configuration are no part of a flag's name.
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    command = parsed(kind, f"hadaptive {name}", arguments, default=default, config=config)
    flags = [argument.partition("=")[0][2:].replace("-", "_") for argument in arguments if argument[:2] == "--"]
    typed = {flag if flag in names(kind) else flag.removeprefix("no_") for flag in flags}
    if "resume" in typed and (others := typed - BESIDE_RESUME[name]):
        extra = min(others).replace("_", "-")
        raise UserError(f"--resume takes every setting from the run: leave out --{extra}")
    return command, typed


def _part(command: Any, kind: type) -> Any:
    """The configuration that a command adds flags to."""
    return kind(**{f.name: getattr(command, f.name) for f in fields(kind)})


def _where(command: Any, typed: set[str]) -> dict[str, Any]:
    """Where the images of a resumed run lie now, where a person says so."""
    values = command.flat()
    return {name: values[name] for name in {"data", "data_dir", "quiet"} & typed}


def _train(arguments: list[str]) -> None:
    command, typed = _configured(TrainCommand, "train", arguments)
    if command.resume is not None:
        from hadaptive.train import resume

        epochs = command.optimisation.epochs if "epochs" in typed else None
        resume(command.resume, epochs=epochs, **_where(command, typed))
        return
    config = _part(command, TrainConfig)
    config.refuse_idle(typed)
    command.refuse_idle_flags(typed)
    if command.dry_run:
        from hadaptive.dry_run import dry_run

        dry_run(config, given=typed, first_batch=command.first_batch, quiet=command.quiet)
        return
    if command.find_lr is not None:
        from hadaptive.train.find_rate import find_rate

        find_rate(config, command.find_lr, given=typed, quiet=command.quiet)
        return
    from hadaptive.train import train

    train(config, given=typed, quiet=command.quiet)


@dataclass(frozen=True)
class _Named:
    recipe: str = "quick"


def _recipe_named_in(arguments: list[str], prog: str) -> str:
    """The recipe alone, as tyro reads it: the other flags' defaults hang on it."""
    return parsed(_Named, prog, arguments, return_unknown_args=True, add_help=False)[0].recipe  # pyright: ignore


def _search(arguments: list[str]) -> None:
    command, typed = _configured(SearchCommand, "search", arguments)
    if command.resume is not None:
        from hadaptive.search import resume

        sharing = command.sharing if typed & {"jobs", "executor"} else None
        resume(command.resume, **_where(command, typed), sharing=sharing)
        return
    config = _part(command, StudyConfig)
    config.refuse_idle(typed)
    from hadaptive.search import search, study

    if config.is_single:
        search(config.search, given=typed, quiet=command.quiet)
    else:
        study(config, given=typed, quiet=command.quiet)


def _latency(arguments: list[str]) -> None:
    command = parsed(LatencyCommand, "hadaptive latency", arguments)
    from hadaptive.search.latency import latency_command

    latency_command(
        command.space,
        command.setting,
        command.output,
        command.rounds,
        command.networks,
        command.stem_strides,
        command.references,
    )


def _spaces(arguments: list[str]) -> None:
    command = parsed(SpacesCommand, "hadaptive spaces", arguments)
    from hadaptive.search.spaces import spaces_command

    spaces_command(command.space, command.save)


def _data(arguments: list[str]) -> None:
    command = parsed(DataCommand, "hadaptive data", arguments)
    from hadaptive.data import DataConfig
    from hadaptive.survey.command import data_command

    names = ("data", "data_dir", *COLUMNS, "multi_label", "label_separator")
    config = DataConfig(**{name: getattr(command, name) for name in names})
    data_command(config, split=command.split, as_json=command.json, csv=command.csv, sheet=command.sheet)


def _evaluate(arguments: list[str]) -> None:
    command = parsed(EvaluateCommand, "hadaptive evaluate", arguments)
    from hadaptive.evaluate import evaluate_run

    evaluate_run(
        command.run,
        split=command.split,
        weights=command.weights,
        data=command.data,
        data_dir=command.data_dir,
        on=command.on,
        columns={name: value for name in COLUMNS if (value := getattr(command, name)) is not None},
        sheet=command.sheet,
        cpu=command.cpu,
        quiet=False,
    )


def _predict(arguments: list[str]) -> None:
    command = parsed(PredictCommand, "hadaptive predict", arguments)
    from hadaptive.predict import predict_command

    predict_command(
        command.run,
        command.images,
        top=command.top,
        weights=command.weights,
        as_json=command.json,
        sheet=command.sheet,
        trust=command.trust,
        reject_below=command.reject_below,
        file_column=command.file_column,
    )


def _report(arguments: list[str]) -> None:
    command = parsed(ReportCommand, "hadaptive report", arguments)
    from hadaptive.report.command import report_command

    report_command(
        command.run,
        output=command.output,
        split=command.split,
        data=command.data,
        data_dir=command.data_dir,
        cpu=command.cpu,
    )


def _runs(arguments: list[str]) -> None:
    command = parsed(RunsCommand, "hadaptive runs", arguments)
    from hadaptive.compare import runs_command

    runs_command(command.folders or (Path("runs"),), as_json=command.json, plot=command.plot)


def _info(arguments: list[str]) -> None:
    command = parsed(InfoCommand, "hadaptive info", arguments)
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
    config = parsed(ExportConfig, "hadaptive export", arguments)
    from hadaptive.export.command import export_command

    export_command(config)


def _push(arguments: list[str]) -> None:
    command = parsed(PushCommand, "hadaptive push", arguments)
    from hadaptive.export.push import push_command

    push_command(
        command.source,
        command.name,
        weights=command.weights,
        public=command.public,
        overwrite=command.overwrite,
    )


def _demo(arguments: list[str]) -> None:
    command = parsed(DemoCommand, "hadaptive demo", arguments)
    from hadaptive.demo import run_demo

    run_demo(command.output, epochs=command.epochs)


def _recipes(arguments: list[str]) -> None:
    command = parsed(RecipesCommand, "hadaptive recipes", arguments)
    for name, recipe in RECIPES.items():
        say(f"{name:14} {recipe.about}")
        if command.show is not None:
            say(f"{'':14} {json_text(recipe.settings)}")


def _doctor(arguments: list[str]) -> None:
    parsed(DoctorCommand, "hadaptive doctor", arguments)
    from hadaptive.doctor import diagnose, print_diagnosis

    checks = diagnose()
    print_diagnosis(checks)
    failed = [f"{check.operator} on {check.device}" for check in checks if not check.passed]
    if failed:
        raise UserError(
            f"{', '.join(failed)} failed the check; until it is mended, use hadaptive.ops.backend('reference')"
        )


def _bench(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        for name, (_, about) in BENCHMARKS.items():
            say(f"hadaptive bench {name:9} {about}")
        return
    if not arguments or arguments[0] not in BENCHMARKS:
        raise UserError(f"say which: {' or '.join(f'hadaptive bench {name}' for name in BENCHMARKS)}")
    BENCHMARKS[arguments[0]][0](arguments[1:])


COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (_train, "train a network on images, or --resume a run"),
    "data": (_data, "what a data set holds: sizes, classes, unreadable images, duplicates, leaks"),
    "evaluate": (_evaluate, "accuracy, per class, confusion matrix of a run"),
    "report": (_report, "one HTML file of a training or a search, with all that tells why"),
    "predict": (_predict, "classes and probabilities for image files"),
    "search": (_search, "search a network for your images and device, or --resume a search"),
    "latency": (_latency, "time every candidate of a search space on this device"),
    "export": (_export, "write a network for ONNX Runtime, OpenVINO, phones or timm, with the proof beside it"),
    "push": (_push, "upload a run to the Hugging Face Hub, as timm loads it, with its model card"),
    "spaces": (_spaces, "the search spaces that ship; spaces published --save mine.json starts your own"),
    "runs": (_runs, "the trainings and searches in a folder, with what came of them"),
    "info": (_info, "layers, parameters, MACs and products of a network"),
    "recipes": (_recipes, "the named settings that train starts from; recipes all shows them"),
    "demo": (_demo, "all of it on scikit-learn's digits, in a few minutes"),
    "doctor": (_doctor, "what this machine offers, which kernels are used and why, and whether they are right"),
    "bench": (
        _bench,
        f"{', '.join(sorted(BENCHMARKS))}: several networks side by side, a row of results for each",
    ),
}

SAME = "the same command goes on where this one stopped"  # of a benchmark
IN_PROCESSES = ("train", "search", "evaluate")  # of torchrun, together


def _say_usage(*, error: bool = False) -> None:
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
    for line in lines:
        say(line, error=error)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 (bad input), 2 (bad flags), 70 (our fault), 130 or 141.

    The last is a shell's for a pipe that was closed: whoever reads our output has seen enough.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in its buffer
        return PIPE_STATUS


def _run(arguments: list[str]) -> int:
    show_traceback = "--traceback" in arguments[:1]
    arguments = arguments[show_traceback:]
    if arguments[:1] == ["--version"]:
        say(__version__)
        return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _say_usage()
        return 0
    if arguments[0] not in COMMANDS:
        say(f"hadaptive: there is no command {arguments[0]!r}", error=True)
        say(error=True)
        _say_usage(error=True)
        return 2
    try:
        if arguments[0] not in IN_PROCESSES and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("this runs in one process: start it without torchrun")
        COMMANDS[arguments[0]][0](arguments[1:])
    except TrainingInterruptedError as stopped:
        again = f"go on with: {resuming(stopped.command, stopped)}" if stopped.command else SAME
        say(f"stopped; {again}", error=True)
        return 130
    except KeyboardInterrupt:
        say("interrupted", error=True)
        return 130
    except MainProcessError:
        return 1  # the main process has said it
    except UserError as error:
        if show_traceback:
            raise
        # What all processes of torchrun find alike is said once.
        if error.of_one_process or os.environ.get("RANK", "0") == "0":
            say(f"hadaptive {arguments[0]}: {error}", error=True)
        return 1
    except BrokenPipeError:
        raise
    except Exception:
        traceback.print_exc()
        say(FAULT, error=True)
        return FAULT_STATUS
    return 0
