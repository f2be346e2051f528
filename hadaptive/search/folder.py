"""The folder a search leaves behind, and the only code that knows its layout.

config.json, space.json    all that is needed to run it again
split.csv                  every image of the data, and the part it is in
latency.json               the table the search used, if it had a target
found.json                 the network found: a NetSpec for `hadaptive train --model`
confidence.csv             a row per epoch, position and candidate; of a search by gradient
evolution.csv              a row per network that was looked at; of evolution, as are the next three
front.csv, front/...       the networks that no other beats, from cheap to accurate, and their NetSpecs
front.png                  all networks: accuracy over cost
supernet.safetensors       the weights they share
metrics.csv                a row per epoch
checkpoint.pt              all state needed to go on exactly; removed when the search is done
confidence.png, curves.png, network.png, summary.json, report.html
"""

from pathlib import Path

from hadaptive.errors import UserError
from hadaptive.runs import RunFolder


class SearchFolder(RunFolder):
    """One search on disk."""

    goes_on = False

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.space = self.path / "space.json"
        self.latency = self.path / "latency.json"
        self.found = self.path / "found.json"
        self.confidence = self.path / "confidence.csv"
        self.by_epoch = (self.metrics, self.confidence)
        self.heat_map = self.path / "confidence.png"
        self.strip = self.path / "network.png"
        self.evolution = self.path / "evolution.csv"
        self.front = self.path / "front.csv"
        self.front_networks = self.path / "front"
        self.front_picture = self.path / "front.png"
        self.supernet = self.path / "supernet.safetensors"

    @classmethod
    def open(cls, path: str | Path) -> "SearchFolder":
        """Open an existing search.

        Raises:
            UserError: `path` is not a search's folder.
        """
        run = cls(path)
        if not (run.config.is_file() and run.space.is_file()):
            raise UserError(f"{path} is not the folder of a search: it has no config.json and space.json")
        return run
