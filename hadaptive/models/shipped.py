"""Networks and weights that come with the package, in the folder beside this file.

NAME.json holds a network's spec, and NAME.TAG.safetensors weights for it, in half precision, as ``hadaptive export
--format safetensors`` writes them: with classes and preprocessing. NAME.TAG.md is their model card.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hadaptive.models.spec import NetSpec

METADATA_KEY = "hadaptive"  # under which files of other formats say what they are
FOLDER = Path(__file__).parent / "networks"
FOUND = ("hadaptive_net2_xs", "hadaptive_net2_s", "hadaptive_net2_m")
TAGS = ("fmnist", "digits")  # of weights; the first are those of a network where no tag is given


@cache
def shipped_spec(name: str) -> NetSpec:
    """The spec of a network that a search found."""
    return NetSpec.load(FOLDER / f"{name}.json")


@cache
def shipped_weights() -> dict[str, Path]:
    """Files of weights by their names, as ``timm.create_model`` takes them: network, dot, tag."""
    files = sorted(FOLDER.glob("*.safetensors"), key=lambda path: TAGS.index(path.stem.partition(".")[2]))
    return {path.stem: path for path in files}


def pretrained_cfgs() -> dict[str, dict[str, Any]]:
    """What timm must know of each of these weights: where they lie, and how to feed the network."""
    found = {}
    for name, path in shipped_weights().items():
        with safe_open(path, "pt") as file:
            known = json.loads(file.metadata()[METADATA_KEY])["about"]["pretrained_cfg"]
        tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
        found[name] = {**tuples, "file": str(path)}
    return found
