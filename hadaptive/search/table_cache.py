"""Latency tables that were measured here before: another search for the same device takes one.

Everything that its figures depend on decides the file's name: the space, the setting, the networks that targets
may be relative to, the processor, the threads, and every version. A package that was changed since its commit
keeps none.
"""

import contextlib
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from hadaptive.errors import UserError
from hadaptive.files import json_text
from hadaptive.measure.setting import LOWERED, Setting
from hadaptive.models import NetSpec
from hadaptive.packages import EXTRAS
from hadaptive.provenance import provenance
from hadaptive.search.space import SearchSpace
from hadaptive.search.table import LatencyTable


def folder() -> Path:
    """Where tables are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hadaptive" / "latency"


def place_of(space: SearchSpace, setting: Setting, known: Mapping[str, NetSpec | str]) -> Path | None:
    """The file of the table that is asked for; None where no figure of another day can be trusted."""
    where = provenance(setting.device)
    package = Path(__file__).parents[1]
    if where["commit"].endswith("+") or (not where["commit"] and (package.parent / ".git").exists()):
        return None
    needed = EXTRAS.get(LOWERED.get(setting.runtime, ""), ())
    where |= {"machine": platform.node(), "packages": _versions(needed)}
    networks = {name: net if isinstance(net, str) else net.fingerprint for name, net in known.items()}
    key: list[Any] = [space.fingerprint, asdict(setting), networks, where]
    name = hashlib.sha256(json_text(key, sort_keys=True).encode()).hexdigest()[:16]
    try:
        return folder() / f"{setting.runtime}-{name}.json"
    except RuntimeError:  # nobody's home
        return None


def _versions(modules: Sequence[str]) -> dict[str, str]:
    """Of the packages that modules are of, under whatever names they are installed; all that are are read once."""
    installed = packages_distributions() if modules else {}
    packages = {name for module in modules for name in installed.get(module.split(".")[0], ())}
    return {name: version(name) for name in packages}


def kept_table(path: Path | None, space: SearchSpace, setting: Setting) -> LatencyTable | None:
    """The table of a file, None where there is none or it is damaged."""
    try:
        if path is None or not path.is_file():
            return None
        table = LatencyTable.load(path)
        table.check(space, setting)
    except (UserError, OSError):
        return None
    return table


def keep(table: LatencyTable, path: Path | None) -> None:
    """Keep a table, where the disk lets us: a search does not need it again."""
    if path is not None:
        with contextlib.suppress(OSError, UserError):
            path.parent.mkdir(parents=True, exist_ok=True)
            table.save(path)
