"""A search from its settings to its folder, in one process or several; and resuming one."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file

from hadaptive.console import say
from hadaptive.data import ImageData, is_stream, open_data
from hadaptive.engine.accelerator import create_accelerator
from hadaptive.engine.batches import create_batches
from hadaptive.engine.loop import begin
from hadaptive.engine.processes import on_main
from hadaptive.errors import UserError, first_line
from hadaptive.measure.setting import Setting
from hadaptive.search.base import SearchEngine
from hadaptive.search.config import SearchConfig, StudyConfig
from hadaptive.search.evolution import Evolution
from hadaptive.search.folder import SearchFolder
from hadaptive.search.latency import LatencyTable, measure_table, references
from hadaptive.search.report import print_search
from hadaptive.search.searcher import Searcher
from hadaptive.search.space import SearchSpace
from hadaptive.search.spaces import open_space
from hadaptive.search.table_cache import keep, kept_table, place_of


def default_output(config: SearchConfig) -> Path:
    """A new folder's name under runs/, from the time, the space and the data."""
    name = f"{datetime.now():%Y%m%d-%H%M%S}-search-{Path(config.space).stem}-{Path(config.data.data).name}"
    return Path("runs") / name


def configured_space(config: SearchConfig) -> SearchSpace:
    """The space the settings name, with their stem strides.

    Raises:
        UserError: there is no such space, or the strides or the images do not fit it.
    """
    space = open_space(config.space)
    if config.stem_strides:
        space = space.with_stem_strides(*config.stem_strides)
    for size in {config.preprocessing.image_size, config.latency.latency_size or config.preprocessing.image_size}:
        space.input_shapes(config.preprocessing.in_chans, size)
    return space


def configured_data(config: SearchConfig, given: Iterable[str] = ()) -> tuple[ImageData, SearchConfig]:
    """The images the settings name, and the settings as they turned out; as :func:`search`.

    Raises:
        UserError: they cannot be opened or divided, or a setting means nothing for them.
    """
    if is_stream(config.data.data):
        raise UserError(f"{config.data.data} is a stream, which a search cannot divide: unpack it into a folder")
    data = open_data(config.data)
    data.refuse_ignored(set(given) - {"data_seed"})  # it decides which images are the architecture's
    return data, replace(config, data=data.location)


def configured_table(
    config: SearchConfig, space: SearchSpace, num_classes: int, accelerator: Accelerator, quiet: bool
) -> LatencyTable | None:
    """The latency table the settings name, or a fresh one; None where they ask for no target.

    Raises:
        UserError: the table does not fit, or no network of the space reaches the target.
    """
    goal = config.latency
    if goal.latency_target is None:
        return None
    setting = config.setting(num_classes, accelerator.device.type)
    if goal.latency_table is not None:
        table = LatencyTable.load(goal.latency_table)
        table.check(space, setting, foreign=goal.foreign_table)
    else:
        LatencyTable.check_target(goal.latency_target)  # a slip of the pen shows before the measuring
        table = _table_of_this_machine(space, setting, config, quiet)
    table.target(goal.latency_target)
    return table


def _table_of_this_machine(
    space: SearchSpace, setting: Setting, config: SearchConfig, quiet: bool
) -> LatencyTable:
    """A table that was measured here before, or a fresh one, which is kept."""
    known = references(config.stem_strides, [LatencyTable.reference_of(config.latency.latency_target)])
    path = place_of(space, setting, known)
    table = None if config.latency.fresh_table else kept_table(path, space, setting)
    if table is None:
        table = measure_table(space, setting, known=known, quiet=quiet)
        keep(table, path)
    elif not quiet:
        assert path is not None
        when = datetime.fromtimestamp(path.stat().st_mtime)
        say(f"latencies as measured here on {when:%Y-%m-%d at %H:%M} ({path}); --fresh-table measures them anew")
    return table


def new_searcher(
    config: SearchConfig, space: SearchSpace, accelerator: Accelerator, data: ImageData, *, quiet: bool = False
) -> SearchEngine:
    """A search that has not begun, of the method that the settings name.

    Raises:
        UserError: the batch size does not fit the images.
    """
    evolves = config.architecture.method == "evolution"
    fraction = 0.0 if evolves else config.architecture.alpha_fraction
    batches = create_batches(config, accelerator, data, alpha_fraction=fraction, test=False)
    kind = Evolution if evolves else Searcher
    return kind(config, space, accelerator, batches, quiet=quiet)


def search(config: SearchConfig, *, given: Iterable[str] = (), quiet: bool = False) -> dict[str, Any]:
    """Search a network and leave a folder with it.

    Args:
        config: every setting; ``config.output`` is the folder to make.
        given: settings that are refused where these images leave them without an effect; a person gave them.
        quiet: print nothing.

    Returns:
        The summary that is also in the folder, with its path under "run".

    Raises:
        UserError: a setting, the data, the space or the latency table do not fit; the folder exists.
        TrainingInterruptedError: stopped by a signal, after a checkpoint was written.
    """
    searcher, config, table, data = prepared(config, given=given, quiet=quiet)
    assert config.output is not None
    documents = describe(config, searcher.space, table)
    return searcher.fit(begin(searcher, SearchFolder, config.output, documents, data.manifest))


def prepared(
    config: SearchConfig, *, given: Iterable[str] = (), quiet: bool = False, alone: bool = False
) -> tuple[SearchEngine, SearchConfig, LatencyTable | None, ImageData]:
    """A search that has not begun, its settings as they turned out, its table and its images; nothing is written.

    Args:
        config, given, quiet: as in :func:`search`.
        alone: refuse to be one process of several.

    Raises:
        UserError: as :func:`search`; every mistake in the settings shows here.
    """
    accelerator = create_accelerator(config.execution, unused_parameters=True)
    if alone and accelerator.num_processes > 1:
        raise UserError("--seeds and --baseline run in one process: under torchrun start each search by itself")
    output = config.output or on_main(accelerator, lambda: default_output(config))  # by the clock of one process
    SearchFolder.check_new(output)
    space = configured_space(config)
    data, config = configured_data(config, given)
    searcher = new_searcher(config, space, accelerator, data, quiet=quiet)
    table = on_main(accelerator, lambda: configured_table(config, space, searcher.num_classes, accelerator, quiet))
    searcher.use(table)
    return searcher, config.changed(output=output), table, data


def describe(config: SearchConfig | StudyConfig, space: SearchSpace, table: LatencyTable | None) -> dict[str, Any]:
    """All that is needed to run a search, or a comparison of several, again: JSON by the names of its files."""
    documents = {"config.json": config.to_dict(), "space.json": space.to_dict()}
    return documents if table is None else {**documents, "latency.json": table.to_dict()}


def resume_search(
    path: str | Path, *, data: str | None = None, data_dir: Path | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Continue an interrupted search exactly where its last checkpoint left it, with the very same images.

    A search that is finished is only told again.

    Args:
        path: of its folder.
        data, data_dir: where the images lie now, if they have moved since.
        quiet: print nothing.

    Raises:
        UserError: `path` is no search, or is damaged; its images are not what they were.
    """
    folder = SearchFolder.open(path)
    config = SearchConfig.from_dict(folder.read_json(folder.config))
    if folder.summary.is_file():
        summary = folder.read_json(folder.summary)
        if not quiet:
            say(f"{path} is finished")
            print_search(folder, config, SearchSpace.load(folder.space), summary)
        return summary
    config = replace(config, data=folder.data_config(data, data_dir))
    accelerator = create_accelerator(config.execution, unused_parameters=True)
    opened = folder.open_data(data, data_dir, exact=True)
    searcher = new_searcher(config, SearchSpace.load(folder.space), accelerator, opened, quiet=quiet)
    if config.latency.latency_target is not None and not folder.latency.is_file():
        raise UserError(f"{path} has a latency target but its table {folder.latency.name} is gone")
    searcher.use(LatencyTable.load(folder.latency) if folder.latency.is_file() else None)
    if folder.checkpoint.is_file():
        searcher.load(folder)
    return searcher.fit(folder)


def finished_search(folder: SearchFolder, *, data: str | None, data_dir: Path | None) -> SearchEngine:
    """An evolution that is done, with the weights that it left: to look at more networks.

    Args:
        folder: of the search.
        data, data_dir: where the images lie now.

    Raises:
        UserError: the folder is damaged, or its images are not what they were.
    """
    config = SearchConfig.from_dict(folder.read_json(folder.config))
    config = replace(config, data=folder.data_config(data, data_dir))
    accelerator = create_accelerator(config.execution, unused_parameters=True)
    opened = folder.open_data(data, data_dir, exact=True)
    engine = new_searcher(config, SearchSpace.load(folder.space), accelerator, opened, quiet=True)
    assert isinstance(engine, Evolution)
    try:
        engine.supernet.load_state_dict(load_file(folder.supernet))
    except Exception as error:  # safetensors raises its own class for a damaged file
        why = first_line(error)
        raise UserError(f"{folder.supernet} does not hold the weights of this search: {why}") from None
    engine.epoch = engine.epochs
    return engine
