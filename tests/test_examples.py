"""The scripts of examples/, run as they are but for their own arguments."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from documented import ROOT
from folders import picture
from tiny import TINY

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# What each is given: all that makes them brief is a flag of their own.
ARGUMENTS = {
    "ach_in_your_network.py": "--epochs 1 --selection sample",
    "search_for_this_device.py": "runs/search --epochs 1 --images 256 --rounds 2",
    "train_and_predict.py": "pets runs/mine picture.png pets/dog --model tiny.json --epochs 1 --image-size 16",
}
pytestmark = pytest.mark.slow


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / name
    monkeypatch.setattr(sys, "argv", [str(path), *ARGUMENTS[name].split()])
    runpy.run_path(str(path), run_name="__main__")


def test_there_are_no_others() -> None:
    assert [path.name for path in EXAMPLES] == sorted(ARGUMENTS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_purpose_and_command_come_first(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.match(rf'"""[A-Z][^\n]+\.\n\n    python examples/{path.name}\b', text)
    assert len(text.splitlines()) < 90


def test_train_and_predict(
    tmp_path: Path, pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    TINY.save("tiny.json")
    picture(1, 99).save("picture.png")
    (pets / "dog" / "broken.png").write_bytes(b"no picture")
    run("train_and_predict.py", monkeypatch)
    printed = capsys.readouterr().out
    total = int(re.search(r"of (\d+) test images are right", printed)[1])  # pyright: ignore[reportOptionalSubscript]
    assert total == json.loads((tmp_path / "runs/mine/evaluation-test.json").read_text())["images"]
    assert re.search(r"^picture\.png: (cat|dog|fox) \(\d+%\)$", printed, re.MULTILINE)
    assert "pets/dog/broken.png: cannot be read: " in printed
    assert len(re.findall(r"^pets/dog/\d+\.png: ", printed, re.MULTILINE)) == 20


def test_ach_in_your_network(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("ach_in_your_network.py", monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["convolution", "ACH"]
    assert all(": 24 channels to 52 with " in line for line in lines)


def test_search_for_this_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run("search_for_this_device.py", monkeypatch)
    printed = capsys.readouterr().out
    assert re.search(r"^found: \w+ 3x3", printed, re.MULTILINE)
    assert re.search(r"random networks of the space take [\d.]+ to [\d.]+ ms here", printed)
    assert re.search(r"^trained: [\d.]+% of the test images are right$", printed, re.MULTILINE)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "search",
        "search-found",
        "search-latency.json",
        "search-space.json",
    }
    with pytest.raises(SystemExit):
        run("search_for_this_device.py", monkeypatch)
    assert "runs/search exists already and is not overwritten" in capsys.readouterr().err
