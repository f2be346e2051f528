"""`hadaptive push`: a run, or a folder that timm loads, to the Hugging Face Hub, with its model card."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hadaptive.console import say
from hadaptive.errors import UserError, first_line
from hadaptive.export.proof import compare
from hadaptive.export.readme import of_training, readme
from hadaptive.measure.formats import is_for_timm
from hadaptive.measure.lowering import write
from hadaptive.measure.sessions import load
from hadaptive.provenance import provenance
from hadaptive.runs import RunFolder

OWN = ".gitattributes"  # what the Hub puts into a new repository itself
PARTS = ("config.json", "model.safetensors")
IMAGES = 4  # of noise, that what is uploaded is compared on; export --format timm takes real ones


def push_command(
    source: Path, name: str, *, weights: str | None = None, public: bool = False, overwrite: bool = False
) -> str:
    """Write a run as timm and the Hub have it, and upload it.

    Args:
        source: run folder, or what ``hadaptive export --format timm`` wrote.
        name: of the repository: USER/NAME, or NAME for one of your own.
        weights: "best" or "last" of a run; None for those that its own test used.
        public: let everyone see a new repository.
        overwrite: put it into a repository that has files already.

    Returns:
        The address.

    Raises:
        UserError: there is no such run, nobody is logged in, the Hub refuses or cannot be reached, or the
            repository has files.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if is_for_timm(source) and weights is not None:
        raise UserError(f"--weights is of a run folder, and {source} was exported: leave it out")
    run = None if is_for_timm(source) else RunFolder.open(source)
    if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name, re.ASCII):
        raise UserError(
            f"{name!r} cannot be the name of a repository: give NAME or USER/NAME, of letters, digits, -, _ and ."
        )
    api = HfApi()
    with _told(name):
        owner = api.whoami()["name"]
        name = name if "/" in name else f"{owner}/{name}"
        files, private = _known(api, name, not public)
    if files and not overwrite:
        raise UserError(
            f"{name} has files on the Hub already, such as {files[0]}: choose another name, or pass --overwrite, "
            "which puts these beside and over them and keeps their history"
        )
    if public and private:
        raise UserError(
            f"{name} is on the Hub already, and private: change that on its page, and leave --public out"
        )
    at = f"hf-hub:{name}"
    with tempfile.TemporaryDirectory(prefix="hadaptive-push-") as folder:
        staged = source if run is None else Path(folder) / "network.timm"
        text = _readme_of(source, at) if run is None else _write(run, weights, staged, name, at)
        contents: dict[str, Any] = {"README.md": text.encode(), **{part: staged / part for part in PARTS}}
        with _told(name):
            if files is None:
                api.create_repo(name, private=private)
            operations = [CommitOperationAdd(path, content) for path, content in contents.items()]
            api.create_commit(name, operations, commit_message="Upload a network trained with hadaptive")
    address = f"{api.endpoint}/{name}"
    say(f"{address} ({'private: only those who may see what is yours' if private else 'public'})")
    say(f'load it with timm.create_model("{at}", pretrained=True)')
    return address


def _known(api: Any, name: str, private: bool) -> tuple[list[str] | None, bool]:
    """The files of a repository, None where there is none yet, and whether it is private, or will be."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(name)
    except RepositoryNotFoundError:
        return None, private
    return [file.rfilename for file in found.siblings or () if file.rfilename != OWN], bool(found.private)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Inside, what the Hub or the way to it refuses is one sentence."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(
            "nobody is logged in to the Hugging Face Hub: run hf auth login, or set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise UserError("the Hugging Face Hub does not know your token: run hf auth login again") from None
        if status == 403:
            raise UserError(f"your token may not write to {name} on the Hugging Face Hub") from None
        raise UserError(f"the Hugging Face Hub refuses {name} with status {status}: {first_line(error)}") from None
    except Exception as error:  # the library under it has its own classes for a network that is not there
        raise UserError(f"the Hugging Face Hub cannot be reached: {first_line(error)}") from None


def _write(run: RunFolder, weights: str | None, folder: Path, name: str, at: str) -> str:
    """A run as timm loads it, in a new folder, and its model card.

    Raises:
        UserError: timm makes something else of it.
    """
    network, card = run.load_model(weights)
    write(network, folder, "timm", card, provenance("cpu"))
    noise = torch.randn(IMAGES, *card.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    if not compare(network, load(folder)[0], [noise]).holds:
        raise UserError(f"timm makes another network of {run.path} than it is, which is nothing to hand on")
    return readme(name.partition("/")[2], network, card, of_training(run, weights or run.choice()), at=at)


def _readme_of(folder: Path, at: str) -> str:
    """The model card of an exported folder, which says there where the folder was."""
    path = folder / "README.md"
    if not path.is_file():
        raise UserError(f"{folder} has no README.md to go with it: export it again with --format timm")
    return re.sub(r'"local-dir:[^"\n]*"', f'"{at}"', path.read_text(encoding="utf-8"))
