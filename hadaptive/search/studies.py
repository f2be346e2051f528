"""Is a search worth its price? Several seeds, their agreement, and what they find against random networks.

The folder of a study:

config.json, space.json, latency.json   all that is needed to run it again
split.csv                               every image of the data, and the part it is in throughout
searches/seed0/ ...                     one search each
agreement.csv, kinds.csv                per position: how far the seeds agree, and what kinds of block they prefer
confidence.png                          the mean confidence over the seeds; neither this nor kinds of evolution
baseline-best.csv, baseline-evolution.csv   what was judged for baselines of those kinds
networks.json                           the networks compared: found, rivals, published; with their latency
runs/                                   the training of each
comparison.csv, comparison.png          a row per training; accuracy over latency
summary.json
"""

import itertools
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hadaptive.console import say
from hadaptive.errors import TrainingInterruptedError, UserError
from hadaptive.files import append_csv, read_csv, write_atomically, write_csv, write_json
from hadaptive.jobs.config import Sharing
from hadaptive.jobs.job import Job
from hadaptive.jobs.run import check, run_jobs
from hadaptive.models import NetSpec
from hadaptive.models.layer_spec import ConvSpec
from hadaptive.packages import EXTRAS, require
from hadaptive.provenance import provenance
from hadaptive.search.baselines import baselines
from hadaptive.search.config import StudyConfig
from hadaptive.search.folder import SearchFolder
from hadaptive.search.latency import LatencyTable
from hadaptive.search.launch import describe, finished_search, prepared, resume_search, search
from hadaptive.search.plots import draw_confidence, plot_comparison
from hadaptive.search.position import SKIP
from hadaptive.search.report import print_study
from hadaptive.search.rivals import comparison_of, networks_to_compare
from hadaptive.search.space import Choice, SearchSpace
from hadaptive.train import train_or_resume


class StudyFolder(SearchFolder):
    """One study on disk."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.agreement = self.path / "agreement.csv"
        self.kinds = self.path / "kinds.csv"
        self.networks = self.path / "networks.json"
        self.comparison = self.path / "comparison.csv"
        self.plane = self.path / "comparison.png"

    def search(self, seed: int) -> SearchFolder:
        """The folder of one search."""
        return SearchFolder(self.path / "searches" / f"seed{seed}")

    def stored_settings(self) -> dict[str, Any]:
        stored = super().stored_settings()
        return {**stored["search"], "version": stored["version"]} if "version" in stored else stored


def study(config: StudyConfig, *, given: Iterable[str] = (), quiet: bool = False) -> dict[str, Any]:
    """Search with several seeds, and train what they find beside its rivals.

    Returns:
        The summary that is also in the folder, with its path under "run".

    Raises:
        UserError: as :func:`hadaptive.search.search`; or this is one process of several.
        TrainingInterruptedError: stopped by a signal; it can be resumed.
    """
    _check(config)
    searcher, single, table, data = prepared(config.search, given=given, quiet=quiet, alone=True)
    assert single.output is not None
    documents = describe(replace(config, search=single), searcher.space, table)
    StudyFolder.create(single.output, documents, manifest=data.manifest)
    return resume_study(single.output, quiet=quiet)


def resume_study(
    path: str | Path,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    sharing: Sharing | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Go on with a study where it stopped: what is finished is not done again.

    Args:
        path: of its folder.
        data, data_dir: where the images lie now, if they have moved since.
        sharing: which trainings run at once, and where; default as it began. It decides no result.
        quiet: print nothing.

    Raises:
        UserError: `path` is no study, is finished, or is damaged.
    """
    folder = StudyFolder.open(path)
    assert isinstance(folder, StudyFolder)
    if folder.summary.is_file():
        raise UserError(f"{path} is finished: there is nothing to resume")
    config = StudyConfig.from_dict(folder.read_json(folder.config))
    config = replace(config, sharing=config.sharing if sharing is None else sharing)
    _check(config)
    config = replace(config, search=replace(config.search, data=folder.data_config(data, data_dir)))
    space = SearchSpace.load(folder.space)
    table = LatencyTable.load(folder.latency) if folder.latency.is_file() else None
    try:
        summaries = [_search_once(folder, config, table, seed, quiet) for seed in _seeds(config, config.seeds)]
        agreement = _agree(folder, space, config, summaries)
        summary: dict[str, Any] = {"run": str(folder.path), "space": space.name, "agreement": agreement}
        summary["warnings"] = [f"seed {s['seed']}: {warning}" for s in summaries for warning in s["warnings"]]
        if config.baseline:
            _compare(folder, config, space, table, summaries, quiet)
            summary |= comparison_of(read_csv(folder.comparison))
            target = None if table is None else table.target(str(config.search.latency.latency_target))
            plot_comparison(read_csv(folder.comparison), target, config.search, folder.plane)
    except TrainingInterruptedError:
        raise TrainingInterruptedError(str(path), "search") from None
    write_json(folder.summary, {**summary, **provenance(summaries[0]["device_type"])})
    if not quiet:
        print_study(folder, read_csv(folder.comparison), summary)
    return summary


def resume(
    path: str | Path,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    sharing: Sharing | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Go on with a search or a study, whichever left this folder; as :func:`resume_study`.

    Raises:
        UserError: as :func:`resume_study` and :func:`hadaptive.search.resume_search`.
    """
    folder = SearchFolder.open(path)
    if "seeds" in folder.read_json(folder.config):
        return resume_study(path, data=data, data_dir=data_dir, sharing=sharing, quiet=quiet)
    if sharing is not None:
        raise UserError(f"{path} is one search, which shares nothing out: leave --jobs and --executor out")
    return resume_search(path, data=data, data_dir=data_dir, quiet=quiet)


def _check(config: StudyConfig) -> None:
    """Raise one clear UserError if a package is missing that is needed after hours only."""
    check(config.sharing)
    if "evolution" in config.rivals:
        require(EXTRAS["evolution"], "--baseline evolution", '"hadaptive[evolution]"')


def _seeds(config: StudyConfig, number: int) -> range:
    first = config.search.execution.seed
    return range(first, first + number)


def _division(folder: StudyFolder) -> Path | None:
    """What every search and training of the study takes its division of the images from."""
    folder.require_manifest()
    return folder.manifest if folder.manifest.is_file() else None


def _search_once(
    folder: StudyFolder, config: StudyConfig, table: LatencyTable | None, seed: int, quiet: bool
) -> dict[str, Any]:
    run = folder.search(seed)
    if run.summary.is_file():
        return run.read_json(run.summary)
    if not quiet:
        say(f"== search, seed {seed}")
    if run.config.is_file():
        where = config.search.data
        return resume_search(run.path, data=where.data, data_dir=where.data_dir, quiet=quiet)
    changes = {"seed": seed, "output": run.path, "latency_table": folder.latency if table else None}
    changes |= {"space": str(folder.space), "stem_strides": None, "split": _division(folder)}
    return search(config.search.changed(**changes), quiet=quiet)


# -- agreement ------------------------------------------------------------------------------------------------


def _agree(
    folder: StudyFolder, space: SearchSpace, config: StudyConfig, summaries: list[dict[str, Any]]
) -> dict[str, float] | None:
    """Write what the seeds agree on; the share of agreeing pairs over all positions, and what chance gives."""
    how = config.search.preprocessing
    evolved = config.search.architecture.method == "evolution"  # which has no confidence
    last = {} if evolved else {s["seed"]: _last_confidence(folder.search(s["seed"])) for s in summaries}
    shapes = space.input_shapes(how.in_chans, how.image_size)[1:]
    rows, kinds = [], []
    for number, position in enumerate(space.positions, start=1):
        channels, side = shapes[number - 1]
        if len(position) == 1:
            continue
        chosen = [s["choice"][number - 1] for s in summaries]
        pairs = list(itertools.combinations(chosen, 2))
        same = sum(a == b for a, b in pairs) / len(pairs) if pairs else ""
        place = {"position": number, "channels": channels, "side": side, "candidates": len(position)}
        rows.append({**place, "agreement": same, "chance": 1 / len(position)})
        for seed, confidence in last.items():
            shares: dict[str, float] = {}
            for candidate, p in zip(position, confidence[number], strict=True):
                shares[_kind(candidate)] = shares.get(_kind(candidate), 0.0) + p
            numbers = {kind: sum(_kind(c) == kind for c in position) / len(position) for kind in shares}
            kinds += [
                {**place, "seed": seed, "kind": kind, "confidence": share, "chance": numbers[kind]}
                for kind, share in shares.items()
            ]
    where = provenance(summaries[0]["device_type"])
    for path, table in ((folder.agreement, rows), *([] if evolved else [(folder.kinds, kinds)])):
        table = [{"space": space.name, **row, **where} for row in table]
        write_atomically(path, lambda p, table=table: write_csv(p, table, list(table[0])))
    average = [row for seed in last for row in _last_rows(folder.search(seed))]
    if average:
        draw_confidence(average, folder.heat_map, f"mean confidence of {len(last)} searches")
    if len(summaries) < 2:
        return None
    return {
        "share": statistics.fmean(float(row["agreement"]) for row in rows),
        "chance": statistics.fmean(float(row["chance"]) for row in rows),
    }


def _kind(candidate: Any) -> str:
    if candidate == SKIP:
        return "skip"
    return f"kernel {candidate.kernel}" if isinstance(candidate, ConvSpec) else candidate.kind


def _last_rows(run: SearchFolder) -> list[dict[str, str]]:
    rows = read_csv(run.confidence)
    return [row for row in rows if row["epoch"] == rows[-1]["epoch"]]


def _last_confidence(run: SearchFolder) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for row in _last_rows(run):
        found.setdefault(int(row["position"]), []).append(float(row["confidence"]))
    return found


# -- against random networks ----------------------------------------------------------------------------------


def _compare(
    folder: StudyFolder,
    config: StudyConfig,
    space: SearchSpace,
    table: LatencyTable | None,
    summaries: list[dict[str, Any]],
    quiet: bool,
) -> None:
    """Train every network that has not been; a row each in the folder's comparison."""
    if not folder.networks.is_file():
        judge, classes = _judge(folder, config), summaries[0]["num_classes"]
        rivals = baselines(folder.path, config, space, table, classes, judge, _division(folder), quiet)
        write_json(folder.networks, networks_to_compare(config, space, table, summaries, rivals, judge))
    networks = json.loads(folder.networks.read_text(encoding="utf-8"))
    jobs = [
        (seed, name)
        for name, network in networks.items()
        for seed in (
            [config.search.execution.seed + int(name.split("-")[1]) % config.retrain_seeds]
            if network["group"] == "random"
            else _seeds(config, config.retrain_seeds)
        )
    ]
    done = {(row["network"], row["seed"]) for row in read_csv(folder.comparison)}
    trainings = {}
    for seed, name in sorted(jobs, key=lambda job: job[0]):
        if (name, str(seed)) not in done:
            training = config.search.training(
                model=_model(folder, name, networks[name]["spec"]),
                seed=seed,
                output=folder.path / "runs" / f"{name}-seed{seed}",
                split=_division(folder),
            )
            trainings[Job(f"training {name}, seed {seed}", partial(train_or_resume, training))] = (name, seed)
    cpu = config.search.execution.cpu
    for outcome in run_jobs(list(trainings), config.sharing, quiet=quiet, cpu=cpu):
        name, seed = trainings[outcome.job]
        append_csv(folder.comparison, [_row(name, seed, networks[name], outcome.result())])


def _model(folder: StudyFolder, name: str, spec: dict[str, Any] | str) -> str:
    """What a training calls a network: its own name, or the file of its spec."""
    if isinstance(spec, str):
        return spec
    path = folder.path / "networks" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    NetSpec.from_dict(spec).save(path)
    return str(path)


def _row(name: str, seed: int, network: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    test = summary["test"]
    keys = ["group", "predicted_ms", "measured_ms", "latency"]
    keys += ["supernet_accuracy"] if "supernet_accuracy" in network else []
    row = {"network": name, "seed": seed, **{key: network.get(key, "measured") for key in keys}}
    row |= {key: summary[key] for key in ("recipe", "data", "parameters", "train_images", "epochs")}
    row |= {"part": "test" if test else "validation", "validation_accuracy": summary["validation_accuracy"]}
    row["accuracy"] = test["accuracy"] if test else summary["validation_accuracy"]
    where = ("device", "cores", "threads", "python", "hadaptive", "torch", "timm", "commit")
    return row | {key: summary[key] for key in ("train_seconds", *where)}


def _judge(folder: StudyFolder, config: StudyConfig) -> Callable[[Choice], float] | None:
    """The accuracy of a choice with the shared weights of the first search; None where no weights are shared."""
    if config.search.architecture.method != "evolution":
        return None
    where = config.search.data
    engine = finished_search(folder.search(config.search.execution.seed), data=where.data, data_dir=where.data_dir)
    return lambda choice: engine.evaluate(choice).accuracy
