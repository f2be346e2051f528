"""Commands and flags that messages speak of: they exist, and commands run as they are printed."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import picture
from PIL import Image
from test_choices import CONFIGURATIONS, settings
from tiny import WIDE_SPACE, tiny_config

import hadaptive
from hadaptive import cli
from hadaptive.engine import loop
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import UserError
from hadaptive.train import train

ROOT = Path(hadaptive.__file__).parent
# Of other programs, or of the command line itself.
OTHERS = {"--help", "--traceback", "--version", "--no"}
AWKWARD = 'a [b] c\'s $d "e"'  # markup, quotes, what a shell would replace


def spoken() -> Iterator[tuple[Path, str]]:
    """Every text of the package that is no docstring, f-strings with {} for what they fill in."""
    for path in sorted(set(ROOT.rglob("*.py")) - {ROOT / "provenance.py"}):  # which speaks to git
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield path, "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values)
            elif isinstance(node, ast.Constant) and id(node) not in parts | docs and isinstance(node.value, str):
                yield path, node.value


def test_every_flag_that_is_spoken_of_is_one() -> None:
    flags = {
        f"--{name.replace('_', '-')}" for kind in CONFIGURATIONS.values() for _, name, _, _ in settings(kind, "")
    }
    named = {
        (flag, path.name)
        for path, text in spoken()
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]\b", text)
    }
    assert len(named) > 30
    assert {(flag, where) for flag, where in named if flag not in flags | OTHERS} == set()


def test_every_command_that_is_spoken_of_is_one() -> None:
    known = {*cli.COMMANDS, *(name for name in CONFIGURATIONS if " " in name)}
    named = {
        (command, path.name)
        for path, text in spoken()
        for command in re.findall(r"(?:^|[\s'(\"])hadaptive ((?:bench )?[a-z]+)\b(?! net)", text)
    }
    assert len(named) > 5
    assert {(command, where) for command, where in named if command not in known | {"from"}} == set()


@pytest.fixture
def awkward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of an awkward name with pictures, a space and room for runs, where a person works."""
    home = tmp_path / AWKWARD
    for target, name in enumerate(("cat", "dog")):
        (home / "my pets" / name).mkdir(parents=True)
        for number in range(30):
            image = picture(target, number).resize((20, 18), Image.Resampling.NEAREST)
            image.save(home / "my pets" / name / f"{number}.png")
    WIDE_SPACE.save(home / "my space.json")
    monkeypatch.chdir(home)
    return home


def printed(text: str) -> list[str]:
    """The words of the command that a text ends with, as a shell would part them."""
    (found,) = re.findall(r"\bhadaptive ((?:train|search) .*)$", text.strip(), re.MULTILINE)
    return shlex.split(found)


def test_the_command_after_a_search_trains_what_was_found_alike(awkward: Path, capsys) -> None:
    flags = ["--image-size", "16", "--batch-size", "8", "--epochs", "1", "--train-size", "32", "--hflip", "0.25"]
    place = ["--data", "my pets", "--space", "my space.json", "--output", "my search"]
    assert cli.main(["search", *place, *flags, "--no-channels-last", "--seed", "3", "--cpu"]) == 0
    assert cli.main(printed(capsys.readouterr().out)) == 0
    folders = Path("my search"), Path("my search-trained")
    searched, trained = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in folders)
    for part in ("preprocessing", "augmentation", "optimisation", "execution"):
        assert searched[part] == trained[part], part
    assert trained["data"]["train_size"] == 32


@pytest.mark.parametrize("command", ["train", "search"])
def test_the_command_after_a_stop_goes_on(command: str, awkward: Path, monkeypatch, capsys) -> None:
    flags = ["--data", "my pets", "--image-size", "16", "--batch-size", "8", "--epochs", "2", "--cpu"]
    tiny_config(awkward)
    flags += ["--model", "tiny.json"] if command == "train" else ["--space", "my space.json"]
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: True)
        assert cli.main([command, *flags, "--output", "my run", "--quiet"]) == 130
    assert cli.main(printed(capsys.readouterr().err)) == 0


def test_the_command_after_a_full_disk_goes_on(awkward: Path, monkeypatch, capsys) -> None:
    config = tiny_config(awkward, "my run", data="my pets", batch_size=8, train_size=None)

    def full(*args: object) -> None:
        raise UserError("there is no space left") from OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(loop.Engine, "_end_epoch", full)
        with pytest.raises(UserError) as caught:
            train(config, quiet=True)
    assert cli.main(printed(str(caught.value))) == 0


def test_the_command_for_a_searchs_folder_says_how_to_train(awkward: Path, capsys) -> None:
    flags = ["--image-size", "16", "--batch-size", "8", "--epochs", "1", "--cpu", "--quiet"]
    assert cli.main(["search", "--data", "my pets", "--space", "my space.json", *flags, "--output", "it"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "it"]) == 1
    assert cli.main(printed(capsys.readouterr().err)) == 0
    assert "train it: hadaptive train" in capsys.readouterr().out
