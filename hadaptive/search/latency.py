"""Latency of every candidate of a space on the device at hand, and of whole networks as their sum.

Each candidate is timed alone, in turns with all others, so that none finds its weights in the nearest cache. What
a sum cannot know, such as what blocks cost less beside each other, is a line fitted to a few whole networks of the
space, timed in turns in the same run. Where files are timed, they are those that export writes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hadaptive.console import say
from hadaptive.errors import UserError
from hadaptive.measure.runner import runners
from hadaptive.measure.setting import Setting
from hadaptive.measure.timing import interleaved, quartiles, threads
from hadaptive.models import HadaptiveNet, NetSpec, create_model
from hadaptive.models.published import HADAPTIVE_NET_L, HADAPTIVE_NET_M, HADAPTIVE_NET_S
from hadaptive.provenance import provenance
from hadaptive.search.candidates import Candidates, Parts
from hadaptive.search.space import SearchSpace
from hadaptive.search.spaces import open_space
from hadaptive.search.table import LETTERS, LatencyTable, print_table

REFERENCES = {"S": HADAPTIVE_NET_S, "M": HADAPTIVE_NET_M, "L": HADAPTIVE_NET_L}
NETWORKS = {"pytorch": 24, "compile": 8, "onnxruntime": 12, "openvino": 12, "executorch": 8}  # for the fit
ROUNDS = 60  # timed runs of each candidate, and half of those of a whole network

Runs = dict[str, Callable[[], Any]]
Reference = NetSpec | str  # a network of ours, or the name of any


def references(stem_strides: tuple[int, ...] | None = None, names: Iterable[str] = ()) -> dict[str, Reference]:
    """Networks that targets may be relative to: the published ones by their letter, and others by their names.

    Args:
        stem_strides: of the published ones' first convolutions.
        names: of the others, as every command takes them; letters of the published ones among them are left out.

    Raises:
        UserError: there is no network of such a name.
    """
    found: dict[str, Reference] = dict(REFERENCES)
    if stem_strides:
        found = {name: spec.with_stem_strides(*stem_strides) for name, spec in REFERENCES.items()}
    for name in names:
        if name not in LETTERS:
            if name.endswith(".json"):
                raise UserError(f"a target is relative to a network by name, not to a file: {name}")
            create_model(name, num_classes=2)
            found[name] = name
    return found


def _built(network: Reference, setting: Setting) -> nn.Module:
    if isinstance(network, NetSpec):
        return HadaptiveNet(network, setting.num_classes, setting.in_chans)
    return create_model(
        network, num_classes=setting.num_classes, in_chans=setting.in_chans, image_size=setting.image_size
    )


def measure_table(
    space: SearchSpace,
    setting: Setting,
    *,
    known: Mapping[str, Reference] = REFERENCES,
    rounds: int | None = None,
    networks: int | None = None,
    quiet: bool = False,
) -> LatencyTable:
    """Time every candidate of `space` at the size of its input there, and fit the sum to whole networks.

    Args:
        known: networks that targets may be relative to; those that the images are too small for are left out.
        rounds: timed runs of each candidate, and a third of those of each whole network, of which the median
            counts; default 60.
        networks: whole networks drawn at random (a fixed seed) for the fit; default as many as the runtime makes
            ready in a few minutes.

    Raises:
        UserError: the setting cannot be measured here, or the images do not fit the space.
    """
    setting.check()

    def tell(sentence: str) -> None:
        if not quiet:
            say(sentence)

    networks = NETWORKS[setting.runtime] if networks is None else networks
    rounds = ROUNDS if rounds is None else rounds
    with threads(setting.threads or None), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: Parts = {}
        wholes = [Candidates(space.of_whole(number), setting, parts) for number in range(len(space.wholes))]
        tell(f"making ready and timing {len(parts)} different candidates of {space.name} in {setting.runtime}")
        runs = dict(zip(parts, runners(list(parts.values()), setting), strict=True))
        medians = _medians(runs, rounds, setting)
        (times, rest), *others = (candidates.times(medians) for candidates in wholes)
        generator = torch.Generator().manual_seed(2024)
        choices = [space.random(generator) for _ in range(networks)]
        specs: dict[str, Reference] = {str(i): space.build(choice) for i, choice in enumerate(choices)}
        specs |= {name: spec for name, spec in known.items() if fits(spec, setting)}
        tell(f"timing {len(specs)} whole networks")
        measured = _medians(_network_runs(specs, setting), 3 * rounds, setting)
    table = LatencyTable(
        space.fingerprint,
        setting,
        times,
        rest,
        1.0,
        0.0,
        {name: measured[name] for name in known if name in measured},
        {},
        provenance(setting.device),
        tuple(others),
    )
    sums = [table.predict(choice) for choice in choices]
    slope, offset, error = _fit(sums, [measured[str(i)] for i in range(networks)])
    return replace(table, slope=slope, offset=offset, networks={"number": networks, "median_error": error})


def measure_networks(
    specs: Mapping[str, Reference], setting: Setting, rounds: int | None = None
) -> dict[str, float]:
    """Median latency of whole networks, timed in turns, ms; of 120 rounds where it is not said."""
    setting.check()
    rounds = 2 * ROUNDS if rounds is None else rounds
    with threads(setting.threads or None), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _medians(_network_runs(specs, setting), rounds, setting)


def fits(reference: Reference, setting: Setting) -> bool:
    """Whether a network can take images of this size at all."""
    try:
        network = _built(reference, setting).eval()
        with torch.inference_mode():
            network(torch.zeros(1, setting.in_chans, *[setting.image_size] * 2))
    except (RuntimeError, AssertionError, UserError):  # nothing is left of them somewhere, or it has one size
        return False
    return True


def _medians(runs: Runs, rounds: int, setting: Setting) -> dict[str, float]:
    times = interleaved(runs, max(3, rounds // 5), rounds, setting.device)
    return {name: quartiles(ms)["median_ms"] for name, ms in times.items()}


def _network_runs(specs: Mapping[str, Reference], setting: Setting) -> Runs:
    size = (setting.in_chans, setting.image_size, setting.image_size)
    networks = [_built(spec, setting) for spec in specs.values()]
    return dict(zip(specs, runners([(network, size) for network in networks], setting), strict=True))


def _fit(sums: list[float], measured: list[float]) -> tuple[float, float, float]:
    """The line through (sum, latency), in least relative squares, and its median relative error."""
    x, y = np.array(sums), np.array(measured)
    slope, offset = float(np.median(y / x)), 0.0
    if len(np.unique(x)) > 2:
        line = np.polyfit(x, y, 1, w=1 / y)
        if 0.5 < line[0] < 2:  # too similar networks leave the slope to noise: then the mean ratio
            slope, offset = line
    error = float(np.median(np.abs(slope * x + offset - y) / y))
    return float(slope), float(offset), error


def latency_command(
    space_name: str,
    setting: Setting,
    output: Path | None,
    rounds: int,
    networks: int | None,
    stem_strides: tuple[int, ...] | None = None,
    names: tuple[str, ...] = (),
) -> None:
    """Measure, print, and save to `output`; targets may be relative to networks of these `names`, too.

    Raises:
        UserError: `output` exists, or something does not fit.
    """
    if output is not None and output.exists():
        raise UserError(f"{output} exists already and is never overwritten: choose another --output")
    if rounds < 5 or (networks is not None and networks < 3):
        raise UserError(f"medians need at least 5 rounds and the fit 3 networks, got {rounds} and {networks}")
    known = references(stem_strides, names)
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {output.parent} cannot be made: {error.strerror}") from None
    space = open_space(space_name)
    if stem_strides:
        space = space.with_stem_strides(*stem_strides)
    for name in names:
        if name not in LETTERS and not fits(known[name], setting):
            raise UserError(f"{name} cannot take {setting.image_size}x{setting.image_size} images: leave it out")
    table = measure_table(space, setting, known=known, rounds=rounds, networks=networks)
    print_table(space, table)
    if output is not None:
        table.save(output)
        say(f"table written to {output}")
