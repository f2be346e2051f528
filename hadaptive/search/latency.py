"""Latency of every candidate of a space on the device at hand, and of whole networks as their sum.

Each candidate is timed alone, in turns with all others, so that none finds its weights in the nearest cache. What
a sum cannot know, such as what blocks cost less beside each other, is a line fitted to a few whole networks of the
space, timed in turns in the same run.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hadaptive.console import console
from hadaptive.errors import UserError
from hadaptive.files import write_json
from hadaptive.measure.setting import Setting, runner
from hadaptive.measure.timing import interleaved, quartiles, threads
from hadaptive.models import HadaptiveNet, NetSpec
from hadaptive.models.spec import HADAPTIVE_NET_L, HADAPTIVE_NET_M, HADAPTIVE_NET_S, contents
from hadaptive.provenance import device_name, provenance
from hadaptive.search.space import Choice, SearchSpace, Skip, label
from hadaptive.search.spaces import open_space
from hadaptive.search.supernet import Supernet

FORMAT = "hadaptive-latency"
VERSION = 1
REFERENCES = {"S": HADAPTIVE_NET_S, "M": HADAPTIVE_NET_M, "L": HADAPTIVE_NET_L}


def references(stem_strides: tuple[int, ...] | None = None) -> dict[str, NetSpec]:
    """The published networks by their letter, with other strides in their first convolutions."""
    if not stem_strides:
        return dict(REFERENCES)
    return {name: spec.with_stem_strides(*stem_strides) for name, spec in REFERENCES.items()}


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of each candidate at each position.

    Attributes:
        space: the space's fingerprint.
        setting: what was measured.
        times: for each position the median time of each candidate, ms; 0 for skip.
        rest: the last convolution and the head, ms.
        slope, offset: of the line from the sum to a network's latency; offset in ms.
        references: measured latency of the published networks that fit the setting, ms.
        networks: whole networks the line was fitted to: how many, and the median relative error left.
        where: device, versions and commit.
    """

    space: str
    setting: Setting
    times: tuple[tuple[float, ...], ...]
    rest: float
    slope: float
    offset: float
    references: dict[str, float]
    networks: dict[str, float]
    where: dict[str, Any]

    def predict(self, choice: Choice) -> float:
        """Latency of one network of the space, ms."""
        total = sum(times[chosen] for times, chosen in zip(self.times, choice, strict=True))
        return self.slope * (total + self.rest) + self.offset

    def expected(self, probabilities: list[Tensor]) -> Tensor:
        """Latency expected when each position draws its candidate with these probabilities, ms, differentiable.

        Args:
            probabilities: (candidates,) for each position.
        """
        total = torch.zeros((), device=probabilities[0].device)
        for p, times in zip(probabilities, self.times, strict=True):
            total = total + (p * p.new_tensor(times)).sum()
        return self.slope * (total + self.rest) + self.offset

    def range(self) -> tuple[float, float]:
        """Latency of the fastest and of the slowest network, ms."""
        fast = tuple(min(range(len(t)), key=t.__getitem__) for t in self.times)
        slow = tuple(max(range(len(t)), key=t.__getitem__) for t in self.times)
        return self.predict(fast), self.predict(slow)

    def target(self, text: str) -> float:
        """Milliseconds of a target such as "5ms" or "0.8xS" (S, M and L as measured in this table).

        Raises:
            UserError: it is written otherwise, or no network of the space is that fast.
        """
        found = self.check_target(text)
        if found[3]:
            name = found[3].upper()
            if name not in self.references:
                known = ", ".join(self.references) or "none, as none fits these images"
                raise UserError(
                    f"there is no network {found[3]!r} to be {found[1]} times as fast as; known: {known}"
                )
            target = float(found[1]) * self.references[name]
        else:
            target = float(found[1]) * {"ms": 1.0, "s": 1e3, "us": 1e-3}[found[2]]
        low, high = self.range()
        if target < low:
            raise UserError(
                f"no network of this space reaches {target:.3g} ms: the fastest is predicted at {low:.3g} ms, "
                f"the slowest at {high:.3g} ms"
            )
        return target

    @staticmethod
    def check_target(text: str) -> re.Match[str]:
        """The parts of a target's text: a number, a unit, and a network's name where the unit is one.

        Raises:
            UserError: it is not written like 5ms or 0.8xS.
        """
        found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|us|x\s*([A-Za-z]+))", text.strip())
        if not found or float(found[1]) <= 0:
            raise UserError(f"a latency target is written like 5ms or 0.8xS, got {text!r}")
        return found

    @classmethod
    def reference_of(cls, text: str | None) -> str:
        """The letter of the network that a target is relative to; S where it is to none."""
        found = None if text is None else cls.check_target(text)
        return found[3].upper() if found and found[3] else "S"

    def check(self, space: SearchSpace, setting: Setting, foreign: bool = False) -> None:
        """Raise one clear UserError unless this table is of that space, setting and (unless foreign) device."""
        if self.space != space.fingerprint or [len(t) for t in self.times] != [len(p) for p in space.positions]:
            raise UserError(f"the latency table is of another space than {space.name}: measure this one's")
        for field in fields(Setting):
            if foreign and field.name in ("runtime", "device", "threads", "channels_last"):
                continue
            mine, asked = getattr(self.setting, field.name), getattr(setting, field.name)
            if mine != asked:
                raise UserError(f"the latency table was measured with {field.name} {mine}, the search has {asked}")
        counted = self.where.get("threads")
        if not foreign and not setting.threads and counted not in (None, torch.get_num_threads()):
            raise UserError(
                f"the latency table was measured with {counted} threads, this process has "
                f"{torch.get_num_threads()}: set OMP_NUM_THREADS alike, or pass --threads to both"
            )
        here = device_name(setting.device)
        if not foreign and self.where["device"] != here:
            raise UserError(
                f"the latency table was measured on another device ({self.where['device']}) than this ({here}): "
                "measure anew, or pass --foreign-table if it is that device the network is for"
            )

    @property
    def is_of_this_machine(self) -> bool:
        """Whether what it holds can be measured again here."""
        try:
            self.setting.check()
        except UserError:
            return False
        return self.where.get("device") == device_name(self.setting.device)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read a table.

        Raises:
            UserError: the file cannot be read or holds no latency table.
        """
        try:
            data = contents(cls, "latency table", json.loads(Path(path).read_text()), FORMAT, VERSION)
            data["setting"] = Setting(**data["setting"])
            data["times"] = tuple(tuple(float(t) for t in times) for times in data["times"])
            for name in ("rest", "slope", "offset"):
                data[name] = float(data[name])
            data["references"] = {str(name): float(ms) for name, ms in data["references"].items()}
            if "device" not in data["where"]:
                raise UserError("it does not say which device it is of")
            return cls(**data)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} holds no latency table: {error}") from None


def measure_table(
    space: SearchSpace,
    setting: Setting,
    *,
    known: dict[str, NetSpec] = REFERENCES,
    rounds: int = 60,
    networks: int = 24,
    quiet: bool = False,
) -> LatencyTable:
    """Time every candidate of `space` at the size of its input there, and fit the sum to whole networks.

    Args:
        known: networks that targets may be relative to; those that the images are too small for are left out.
        rounds: timed runs of each candidate, and a third of those of each whole network; the median counts.
        networks: whole networks drawn at random (a fixed seed) for the fit.

    Raises:
        UserError: the setting cannot be measured here, or the images do not fit the space.
    """
    setting.check()
    shapes = space.input_shapes(setting.in_chans, setting.image_size)
    with threads(setting.threads or None), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        runs, places, head = _candidate_runs(space, setting, shapes)
        if not quiet:
            print(f"timing {len(runs)} different candidates of {space.name}", flush=True)
        medians = {n: quartiles(t)["median_ms"] for n, t in _timed(runs, rounds, setting).items()}
        times = tuple(tuple(medians[key] if key else 0.0 for key in keys) for keys in places)
        del runs
        generator = torch.Generator().manual_seed(2024)
        choices = [space.random(generator) for _ in range(networks)]
        whole = {str(i): _network_run(space.build(choice), setting) for i, choice in enumerate(choices)}
        whole |= {name: run for name, spec in known.items() if (run := _reference_run(spec, setting))}
        if not quiet:
            print(f"timing {len(whole)} whole networks", flush=True)
        measured = {n: quartiles(t)["median_ms"] for n, t in _timed(whole, 3 * rounds, setting).items()}
    sums = [sum(t[c] for t, c in zip(times, choice, strict=True)) + medians[head] for choice in choices]
    slope, offset, error = _fit(sums, [measured[str(i)] for i in range(networks)])
    references = {name: measured[name] for name in known if name in measured}
    return LatencyTable(
        space.fingerprint,
        setting,
        times,
        medians[head],
        slope,
        offset,
        references,
        {"number": networks, "median_error": error},
        provenance(setting.device),
    )


def measure_networks(specs: dict[str, NetSpec], setting: Setting, rounds: int = 120) -> dict[str, float]:
    """Median latency of whole networks, timed in turns, ms."""
    setting.check()
    with threads(setting.threads or None):
        runs = {name: _network_run(spec, setting) for name, spec in specs.items()}
        return {name: quartiles(t)["median_ms"] for name, t in _timed(runs, rounds, setting).items()}


def _timed(runs: dict[str, Callable[[], Any]], rounds: int, setting: Setting) -> dict[str, list[float]]:
    return interleaved(runs, max(3, rounds // 5), rounds, setting.device)


def _candidate_runs(
    space: SearchSpace, setting: Setting, shapes: list[tuple[int, int]]
) -> tuple[dict[str, Callable[[], Any]], list[list[str]], str]:
    """Runs by name, the names of each position's candidates ("" for skip), and the head's name."""
    supernet = Supernet(space, setting.num_classes, setting.in_chans)
    runs: dict[str, Callable[[], Any]] = {}

    def add(module: nn.Module, key: str, shape: tuple[int, int]) -> str:
        channels, side = shape
        name = f"{key} on {channels}x{side}"
        if name not in runs:
            runs[name] = runner(module, torch.randn(setting.batch, channels, side, side), setting)
        return name

    places = [
        [
            "" if isinstance(candidate, Skip) else add(module, repr(candidate), shape)
            for candidate, module in zip(candidates, modules, strict=True)  # pyright: ignore[reportArgumentType]
        ]
        for candidates, modules, shape in zip(space.positions, supernet.positions, shapes, strict=False)
    ]
    return runs, places, add(supernet.head, "head", shapes[-1])


def _network_run(spec: NetSpec, setting: Setting) -> Callable[[], Any]:
    network = HadaptiveNet(spec, num_classes=setting.num_classes, in_chans=setting.in_chans)
    return runner(network, torch.randn(setting.batch, setting.in_chans, *[setting.image_size] * 2), setting)


def fits(spec: NetSpec, setting: Setting) -> bool:
    """Whether a network can take images of this size at all."""
    return _reference_run(spec, setting) is not None


def _reference_run(spec: NetSpec, setting: Setting) -> Callable[[], Any] | None:
    try:
        run = _network_run(spec, setting)
        run()
    except RuntimeError:  # the images are too small for it
        return None
    return run


def _fit(sums: list[float], measured: list[float]) -> tuple[float, float, float]:
    """The line through (sum, latency), in least relative squares, and its median relative error."""
    x, y = np.array(sums), np.array(measured)
    slope, offset = np.polyfit(x, y, 1, w=1 / y)
    # Too few or too similar networks leave the slope to noise: then the mean ratio.
    if len(x) < 3 or not 0.5 < slope < 2:
        slope, offset = float(np.median(y / x)), 0.0
    error = float(np.median(np.abs(slope * x + offset - y) / y))
    return float(slope), float(offset), error


def print_table(space: SearchSpace, table: LatencyTable) -> None:
    """Print the times of each position, equal positions once, and what the sum is worth."""
    from rich.table import Table

    shown = Table("positions", "candidate")
    shown.add_column("ms", justify="right")
    numbers: dict[Any, list[int]] = {}
    for number, (position, times) in enumerate(zip(space.positions, table.times, strict=True), start=1):
        numbers.setdefault((position, times), []).append(number)
    for (position, times), places in numbers.items():
        for i, (candidate, ms) in enumerate(zip(position, times, strict=True)):
            shown.add_row(", ".join(map(str, places)) if i == 0 else "", label(candidate), f"{ms:.3f}")
    shown.add_row("", "last convolution and head", f"{table.rest:.3f}")
    console().print(shown)
    low, high = table.range()
    print(f"a network of {space.name}: {low:.2f} to {high:.2f} ms")
    print(
        f"whole network = {table.slope:.3f} x sum {'-' if table.offset < 0 else '+'} {abs(table.offset):.3f} ms, "
        f"fitted to {table.networks['number']:.0f} networks (median error {table.networks['median_error']:.1%})"
    )
    for name, ms in table.references.items():
        print(f"{name}: {ms:.2f} ms")


def latency_command(
    space_name: str,
    setting: Setting,
    output: Path | None,
    rounds: int,
    networks: int,
    stem_strides: tuple[int, ...] | None = None,
) -> None:
    """Measure, print, and save to `output`.

    Raises:
        UserError: `output` exists, or something does not fit.
    """
    if output is not None and output.exists():
        raise UserError(f"{output} exists already and is never overwritten: choose another --output")
    if rounds < 5 or networks < 3:
        raise UserError(f"medians need at least 5 rounds and the fit 3 networks, got {rounds} and {networks}")
    if output is not None:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the folder {output.parent} cannot be made: {error.strerror}") from None
    space = open_space(space_name)
    if stem_strides:
        space = space.with_stem_strides(*stem_strides)
    known = references(stem_strides)
    table = measure_table(space, setting, known=known, rounds=rounds, networks=networks)
    print_table(space, table)
    if output is not None:
        table.save(output)
        print(f"table written to {output}")
