"""The report of a training: complete, harmless whatever names hold, and right in a real browser."""

import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import faults, needs_browser
from folders import picture
from PIL import Image
from safetensors.torch import load_file
from tiny import stopped_after, tiny_config

from hadaptive.cli import main
from hadaptive.files import read_csv
from hadaptive.mistakes import Judgement
from hadaptive.report import cam
from hadaptive.report import run as of_run
from hadaptive.report.page import Figures, Note, Section, Table
from hadaptive.report.run import RunReport, _proof_rows
from hadaptive.runs import RunFolder
from hadaptive.train import train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of exporters
CLASSES = ("cat & co", '<script>alert("cat")<', "$x^2$ fox")
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a page holds, as a browser reads it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += f"{data} "

    @property
    def headings(self) -> list[str]:
        return re.findall(r"#([a-z-]+)", " ".join(a.get("href") or "" for tag, a in self.tags if tag == "a"))

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def command(self) -> str:
        return re.findall(r"hadaptive train [^\n]*", self.text)[0].strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of awkward names, and two runs of it: one exported, one stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("reports")
    for target, name in enumerate(CLASSES):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(30):
            image = picture(target, number).resize((20, 18), Image.Resampling.NEAREST)
            image.save(folder / "pets" / name / f"<img src=x onerror=alert({number})> \udcff.png")
    with pytest.MonkeyPatch.context() as patched:
        changes = {"data": str(folder / "pets"), "train_size": None, "batch_size": 16, "image_size": 16}
        train(tiny_config(folder, epochs=2, **changes), quiet=True)
        stopped_after(6, tiny_config(folder, "cut", epochs=3, **changes), patched)
    assert main(["export", str(folder / "run"), "--format", "safetensors", "--images", "8"]) == 0
    assert main(["report", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(home / "run", tmp_path / "run")
    return tmp_path / "run"


def test_all_sections_are_there_and_say_what_the_run_says(home: Path) -> None:
    page = Page(home / "run/report.html")
    assert page.headings == [
        "overview", "training", "classes", "surest-mistakes", "where-it-looks", "how-sure-it-is", "channel-pairs",
        "selections-and-products", "exported-files", "do-it-again",
    ]  # fmt: skip
    summary = json.loads((home / "run/summary.json").read_text())
    test = summary["test"]
    assert f"{round(test['accuracy'] * test['images'])} of {test['images']} (" in page.text
    assert f"{summary['parameters']:,}" in page.text
    assert "stages.1.1" in page.text
    assert "network.safetensors" in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert sorted(ids) == sorted(page.headings)


def test_the_mistakes_are_the_surest_and_every_picture_has_words(home: Path) -> None:
    page = Page(home / "run/report.html")
    judged = [Judgement.of(row) for row in read_csv(home / "run/predictions-test.csv")]
    wrong = sorted((one for one in judged if not one.right), key=lambda one: -one.probability)
    assert wrong, "an epoch of training makes mistakes"
    shown = [image for image in page.images() if "taken for" in (image["alt"] or "")]
    assert len(shown) == min(24, len(wrong))
    assert shown[0]["alt"] == f"An image of {wrong[0].true} that was taken for {wrong[0].predicted}"
    assert all(image["alt"] for image in page.images())
    assert len(page.images()) > len(shown) + 10


def test_no_name_is_markup_and_nothing_is_asked_for(home: Path) -> None:
    text = (home / "run/report.html").read_text(encoding="utf-8")
    page = Page(home / "run/report.html")
    for name in CLASSES:
        assert name in page.text
    assert "onerror=alert" in page.text
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "object", "form"} == set()
    for tag, attributes in page.tags:
        for key in ("src", "href"):
            if key in attributes:
                assert (attributes[key] or "").startswith(("data:", "#")), (tag, attributes[key])
    assert "url(" not in text
    assert "@import" not in text
    assert len(text) < 1_500_000


@needs_browser
def test_a_browser_finds_nothing_wrong_with_it(home: Path) -> None:
    assert faults(home / "run/report.html") == []


@needs_browser
def test_a_browser_finds_what_is_wrong(tmp_path: Path) -> None:
    """Else the test before would mean nothing."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<p>bad</p><div style="width: 1500px">wide</div><img src="https://example.com/a.png">'
        '<link rel="stylesheet" href="http://example.org/x.css"><script>nonsense()</script>'
    )
    said = "\n".join(faults(page))
    for expected in (
        "nonsense is not defined",
        "asks for https://example.com/a.png",
        "asks for http://example.org/x.css",
        "pixels wide: ",
        "1 broken",
        "1 unnamed",
        "1 scripts",
        "at 400",
        "at 1400",
    ):
        assert expected in said


def test_the_command_trains_it_again_to_the_same_weights(home: Path) -> None:
    command = Page(home / "run/report.html").command()
    words = shlex.split(command)
    assert words[0] == "hadaptive"
    assert main([*words[1:], "--quiet"]) == 0
    first, again = load_file(home / "run/best.safetensors"), load_file(home / "run-again/best.safetensors")
    assert first.keys() == again.keys()
    assert all(first[name].equal(again[name]) for name in first)


def test_a_report_is_made_anew_and_nothing_else_is_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.name != "report.html"}
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert {path: path.read_bytes() for path in run.iterdir() if path.name != "report.html"} == before
    (run / "report.html").write_text("mine")
    other = tmp_path / "other.html"
    other.write_text("mine, too")
    for arguments, said in (
        ([str(run)], "is no report of hadaptive's and is not overwritten"),
        ([str(run), "--output", str(other)], "exists already and is not overwritten"),
        ([str(run), "--output", str(tmp_path / "none/report.html")], "there is no folder"),
        ([str(tmp_path)], "is not a run folder"),
        ([str(tmp_path / "nowhere")], "there is no run folder"),
    ):
        assert main(["report", *arguments]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert (run / "report.html").read_text() == "mine"
    assert other.read_text() == "mine, too"


def test_the_validation_part_and_a_run_that_is_not_finished(home: Path, tmp_path: Path) -> None:
    place = tmp_path / "new.html"
    assert main(["report", str(home / "cut"), "--split", "validation", "--cpu", "--output", str(place)]) == 0
    page = Page(place)
    assert "validation part" in page.text
    assert "it is not finished" in page.text
    assert "hadaptive train --resume" in page.text
    assert (home / "cut/evaluation-validation.json").is_file()


def texts(section: Section) -> str:
    return " ".join(block.text for block in section.blocks if isinstance(block, Note))


def test_images_that_are_gone_are_missed_and_the_rest_is_there(home: Path, run: Path, tmp_path: Path) -> None:
    settings = json.loads((run / "config.json").read_text())
    settings["data"]["data"] = str(tmp_path / "moved away")
    (run / "config.json").write_text(json.dumps(settings))
    assert main(["report", str(run)]) == 0
    page = Page(run / "report.html")
    assert "The images cannot be opened, so none are shown" in page.text
    assert {"classes", "surest-mistakes", "how-sure-it-is"} <= set(page.headings)
    assert not {"where-it-looks", "channel-pairs"} & set(page.headings)
    (run / "predictions-test.csv").unlink()
    report = RunReport(RunFolder(run))
    assert "It is not evaluated" in texts(report.overview())
    assert "Validation accuracy" in report.lead()
    found = RunReport(RunFolder(run), data=str(home / "pets"))
    assert found.source is not None
    assert found.judged


def test_without_captum_the_report_says_what_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cam, "obstacle", lambda name: "is not installed")
    assert 'pip install "hadaptive[cam]"' in texts(RunReport(RunFolder(run)).maps())


def test_what_others_damaged_is_left_out(run: Path) -> None:
    (run / "predictions-test.csv").write_text("image,class\na,b\n")
    (run / "network.safetensors.proof.json").write_text('{"holds": 3}')
    report = RunReport(RunFolder(run))
    assert "predictions-test.csv is not what evaluate writes" in texts(report.overview())
    (table,) = report.exports().blocks
    assert isinstance(table, Table)
    assert table.rows[0][:2] == ("network.safetensors.proof.json", "damaged")


def test_a_picture_stands_for_the_counts_of_many_classes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = RunReport(RunFolder(run))
    assert [block.kind for block in report.classes().blocks][:2] == ["table", "matrix"]
    monkeypatch.setattr(of_run, "MATRIX", 2)
    assert [block.kind for block in report.classes().blocks][:2] == ["table", "figures"]


def test_without_mistakes_the_least_sure_are_looked_at(run: Path) -> None:
    report = RunReport(RunFolder(run))
    report.judged = [replace(one, predicted=one.true) for one in report.judged]
    assert texts(report.mistakes()) == "There are none."
    (figures,) = [block for block in report.maps().blocks if isinstance(block, Figures)]
    least = sorted(report.judged, key=lambda one: one.probability)[:6]
    assert [figure.caption[0] for figure in figures.pictures] == [f"for {one.true}, the truth" for one in least]


def test_a_report_of_weights_that_changed_is_of_the_new_ones(run: Path) -> None:
    path = run / "evaluation-test.json"
    stale = json.loads(path.read_text())
    for changes in ({"weights": "last"}, {}):
        path.write_text(json.dumps({**stale, "calibration_error": 0.77777, **changes}))
        if not changes:  # older than the weights
            os.utime(path, (0, 0))
        assert RunReport(RunFolder(run)).evaluation == stale
        assert json.loads(path.read_text()) == stale


def test_what_was_converted_and_not_proved_is_said() -> None:
    proof = {"format": "coreml", "bytes": 2**20, "holds": None, "not_proved": "Core ML runs on macOS only"}
    assert _proof_rows("x", proof) == [("x", "coreml", "1.0", "", "", "Core ML runs on macOS only", "", "")]
