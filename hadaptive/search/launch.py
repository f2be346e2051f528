"""A search from its settings to its folder, in one process or several; and resuming one."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hadaptive.errors import UserError
from hadaptive.files import write_json
from hadaptive.search.config import SearchConfig
from hadaptive.search.folder import SearchFolder
from hadaptive.search.latency import LatencyTable, measure_table, references
from hadaptive.search.loop import Searcher
from hadaptive.search.space import SearchSpace, label
from hadaptive.search.spaces import open_space
from hadaptive.train.processes import on_main
from hadaptive.train.setup import create_accelerator


def default_output(config: SearchConfig) -> Path:
    """A new folder's name under runs/, from the time, the space and the data."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-search-{Path(config.space).stem}-{Path(config.data).name}"
    return Path("runs") / name


def configured_space(config: SearchConfig) -> SearchSpace:
    """The space the settings name, with their stem strides.

    Raises:
        UserError: there is no such space, or the strides or the images do not fit it.
    """
    space = open_space(config.space)
    if config.stem_strides:
        space = space.with_stem_strides(*config.stem_strides)
    space.input_shapes(config.in_chans, config.image_size)
    return space


def configured_table(
    config: SearchConfig, space: SearchSpace, num_classes: int, accelerator: Accelerator, quiet: bool
) -> LatencyTable | None:
    """The latency table the settings name, or a fresh one; None where they ask for no target.

    Raises:
        UserError: the table does not fit, or no network of the space reaches the target.
    """
    if config.latency_target is None:
        if config.latency_table is not None:
            raise UserError("a latency table without a target has no use: pass --latency-target, or no table")
        return None
    setting = config.setting(num_classes, accelerator.device.type)
    if config.latency_table is not None:
        table = LatencyTable.load(config.latency_table)
        table.check(space, setting, foreign=config.foreign_table)
    else:
        LatencyTable.check_target(config.latency_target)  # a slip of the pen shows before the measuring
        table = measure_table(space, setting, known=references(config.stem_strides), quiet=quiet)
    table.target(config.latency_target)
    return table


def search(config: SearchConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Search a network and leave a folder with it.

    Returns:
        The summary that is also in the folder, with its path under "run".

    Raises:
        UserError: a setting, the data, the space or the latency table do not fit; the folder exists.
        TrainingInterruptedError: stopped by a signal, after a checkpoint was written.
    """
    accelerator = create_accelerator(config, unused_parameters=True)
    output = config.output or default_output(config)
    # Every mistake in the settings shows here, before there is a folder.
    SearchFolder.check_new(output)
    space = configured_space(config)
    searcher = Searcher(config, space, accelerator, quiet=quiet)

    def create() -> tuple[Path, LatencyTable | None]:
        table = configured_table(config, space, searcher.num_classes, accelerator, quiet)
        run = SearchFolder(SearchFolder.create(output).path)
        space.save(run.space)
        if table is not None:
            table.save(run.latency)
        write_json(run.config, replace(config, output=output).to_dict())
        return output, table

    path, table = on_main(accelerator, create)
    searcher.use(table)
    return _finish(searcher, SearchFolder(path))


def resume_search(path: str | Path, *, quiet: bool = False) -> dict[str, Any]:
    """Continue an interrupted search exactly where its last checkpoint left it.

    Raises:
        UserError: `path` is no search, is finished, or is damaged.
    """
    run = SearchFolder.open(path)
    if run.summary.is_file():
        raise UserError(f"{path} is finished: there is nothing to resume")
    config = SearchConfig.from_dict(run.read_json(run.config))
    searcher = Searcher(
        config, SearchSpace.load(run.space), create_accelerator(config, unused_parameters=True), quiet=quiet
    )
    if config.latency_target is not None and not run.latency.is_file():
        raise UserError(f"{path} has a latency target but its table {run.latency.name} is gone")
    searcher.use(LatencyTable.load(run.latency) if run.latency.is_file() else None)
    if run.checkpoint.is_file():
        searcher.load(run)
    return _finish(searcher, run)


def _finish(searcher: Searcher, run: SearchFolder) -> dict[str, Any]:
    summary = searcher.fit(run)
    if searcher.show:
        print_search(run, searcher.space, summary)
    return summary


def print_search(run: SearchFolder, space: SearchSpace, summary: dict[str, Any]) -> None:
    """Print what was found, position by position, its latency, and any warning."""
    from rich.table import Table

    from hadaptive.console import console

    table = Table("position", "found")
    table.add_column("confidence", justify="right")
    chosen = zip(space.positions, summary["choice"], summary["confidence"], strict=True)
    for number, (position, choice, confidence) in enumerate(chosen, start=1):
        if len(position) > 1:
            table.add_row(str(number), label(position[choice]), f"{confidence:.2f}")
    console().print(table)
    if summary["predicted_ms"] is not None:
        measured = ", ".join(f"{name} {ms:.2f} ms" for name, ms in (summary["measured_ms"] or {}).items())
        print(f"latency: target {summary['target_ms']:.2f} ms, predicted {summary['predicted_ms']:.2f} ms; "
              f"measured: {measured}")  # fmt: skip
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    recipe, data = summary["recipe"], summary["data"]
    print(f"train it: hadaptive train --model {run.found} --recipe {recipe} --data {data}")
