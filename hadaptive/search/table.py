"""A latency table: milliseconds of each candidate of a space, and what they say about whole networks."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hadaptive.console import console, say
from hadaptive.errors import UserError
from hadaptive.files import write_json
from hadaptive.measure.setting import LOWERED, Setting
from hadaptive.models.documents import contents
from hadaptive.provenance import device_name
from hadaptive.search.labels import label
from hadaptive.search.space import Choice, SearchSpace

FORMAT = "hadaptive-latency"
VERSION = 2  # 1 knew no frozen selections, and timed ONNX graphs of another exporter than export's

LETTERS = ("S", "M", "L")  # of the published networks

Times = tuple[tuple[float, ...], ...]  # for each position, of each candidate, ms


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of each candidate at each position.

    Attributes:
        space: the space's fingerprint.
        setting: what was measured.
        times: for each position the median time of each candidate, ms; 0 for skip. In all runtimes but eager
            PyTorch what a call costs that does nothing is left out.
        rest: the last convolution and the head, ms.
        slope, offset: of the line from the sum to a network's latency; offset in ms.
        references: measured latency of the published networks that fit the setting, and of others by name, ms.
        networks: whole networks the line was fitted to: how many, and the median relative error left.
        where: device, versions and commit.
        others: `times` and `rest` of each further one of the space's wholes.
    """

    space: str
    setting: Setting
    times: Times
    rest: float
    slope: float
    offset: float
    references: dict[str, float]
    networks: dict[str, float]
    where: dict[str, Any]
    others: tuple[tuple[Times, float], ...] = ()

    def of_whole(self, number: int) -> "LatencyTable":
        """The table of one of the space's wholes alone."""
        times, rest = ((self.times, self.rest), *self.others)[number]
        return replace(self, times=times, rest=rest, others=())

    def predict(self, choice: Choice) -> float:
        """Latency of one network of the space, ms."""
        if self.others:
            return self.of_whole(choice[-1]).predict(choice[:-1])
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
        slowest = self._extreme(max)
        return self.predict(self.fastest()), self.predict(slowest)

    def fastest(self) -> Choice:
        """The network of least latency."""
        return self._extreme(min)

    def _extreme(self, which: Callable[..., Any]) -> Choice:
        found = []
        for number in range(1 + len(self.others)):
            times = self.of_whole(number).times
            choice = tuple(which(range(len(own)), key=own.__getitem__) for own in times)
            found.append((*choice, number) if self.others else choice)
        return which(found, key=self.predict)

    def target(self, text: str) -> float:
        """Milliseconds of a target such as "5ms" or "0.8xS" (of S, M and L or another network of this table).

        Raises:
            UserError: it is written otherwise, or no network of the space is that fast.
        """
        found = self.check_target(text)
        if found[3]:
            name = self.reference_of(text)
            if name not in self.references:
                known = ", ".join(self.references) or "none, as none fits these images"
                raise UserError(
                    f"the latency table has no {found[3]!r} to take {found[1]} times as long as: it has {known}"
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
        found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|us|x\s*(\S+))", text.strip())
        if not found or float(found[1]) <= 0:
            raise UserError(
                f"a latency target is written like 5ms, 0.8xS or 0.8xmobilenetv3_small_100, got {text!r}"
            )
        return found

    @classmethod
    def reference_of(cls, text: str | None) -> str:
        """The letter or the name of the network that a target is relative to; S where it is to none."""
        found = None if text is None else cls.check_target(text)
        name = found[3] if found and found[3] else "S"
        return name.upper() if name.upper() in LETTERS else name

    def check(self, space: SearchSpace, setting: Setting, foreign: bool = False) -> None:
        """Raise one clear UserError unless this table is of that space, setting and (unless foreign) device."""
        tables = [self.of_whole(number).times for number in range(1 + len(self.others))]
        shape = [[len(p) for p in space.positions]] * len(space.wholes)
        if self.space != space.fingerprint or [[len(t) for t in times] for times in tables] != shape:
            raise UserError(f"the latency table is of another space than {space.name}: measure this one's")
        for field in fields(Setting):
            if foreign and field.name in ("runtime", "device", "threads", "channels_last"):
                continue
            mine, asked = getattr(self.setting, field.name), getattr(setting, field.name)
            if mine != asked:
                raise UserError(
                    f"the latency table was measured with {field.name} {mine}, the search has {asked}: "
                    "give both the same"
                )
        counted = self.where.get("threads")
        pytorch = setting.runtime not in LOWERED  # the others count cores for themselves
        if not foreign and pytorch and not setting.threads and counted not in (None, torch.get_num_threads()):
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
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            version = data.get("version")
            if "narrower" in data:  # as it was called where there were widths alone
                data["others"] = data.pop("narrower")
            data = contents(cls, "latency table", data, FORMAT, 1 if version == 1 else VERSION)
            data["setting"] = Setting(**data["setting"])
            data["times"] = _times(data["times"])
            data["others"] = tuple((_times(times), float(rest)) for times, rest in data.get("others", ()))
            for name in ("rest", "slope", "offset"):
                data[name] = float(data[name])
            data["references"] = {str(name): float(ms) for name, ms in data["references"].items()}
            if "device" not in data["where"]:
                raise UserError("it does not say which device it is of")
            table = cls(**data)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} holds no latency table: {error}") from None
        if version == 1 and table.setting.runtime in LOWERED:
            raise UserError(
                f"{path} was measured in {table.setting.runtime} with graphs that export does not write: measure "
                "anew with hadaptive latency"
            )
        return table


def _times(data: Any) -> Times:
    return tuple(tuple(float(t) for t in times) for times in data)


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
    if table.others:
        say(f"of networks {space.wholes[0]}; the file has the others, too")
    low, high = table.range()
    say(f"a network of {space.name}: {low:.2f} to {high:.2f} ms")
    say(
        f"whole network = {table.slope:.3f} x sum {'-' if table.offset < 0 else '+'} {abs(table.offset):.3f} ms, "
        f"fitted to {table.networks['number']:.0f} networks (median error {table.networks['median_error']:.1%})"
    )
    for name, ms in table.references.items():
        say(f"{name}: {ms:.2f} ms")
