"""A run and what comes from it, when its images grow, shrink, are renamed, move, or have a class renamed.

Whatever happens, it is said, and no image that was trained on is tested, nor the reverse.
"""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import TINY

from hadaptive.cli import main
from hadaptive.data import Manifest
from hadaptive.engine.stopping import StopRequest
from hadaptive.evaluate import evaluate_run
from hadaptive.models.layer_spec import ConvSpec, ach, ghost
from hadaptive.runs import RunFolder
from hadaptive.search import SearchSpace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FLAGS = ["--batch-size", "8", "--image-size", "8", "--workers", "0", "--cpu", "--quiet"]


def draw(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def typed(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def cut(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Interrupt a command after its third step."""
    calls = iter(range(1000))
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: next(calls) == 2)
        assert typed(*arguments) == 130


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 images, a run and a search of it that were interrupted, and a finished run."""
    folder = tmp_path_factory.mktemp("made")
    for target, name in enumerate(("cat", "dog", "newt")):
        (folder / "pets" / name).mkdir(parents=True)
        for i in range(20):
            draw(folder / "pets" / name / f"{i}.png", 100 * target + i)
    TINY.save(folder / "tiny.json")
    stage = ((ghost(2, 3, 12), ach(4, 3, 12)),)
    SearchSpace("small", (ConvSpec(8, 3, 2),), (), (stage,), 16, 16).save(folder / "space.json")
    train = ["train", "--data", folder / "pets", "--model", folder / "tiny.json", *FLAGS]
    with pytest.MonkeyPatch.context() as patch:
        assert typed(*train, "--epochs", "1", "--output", folder / "run") == 0
        cut(patch, *train, "--epochs", "2", "--output", folder / "cut")
        search = ["search", "--data", folder / "pets", "--space", folder / "space.json", *FLAGS]
        cut(patch, *search, "--epochs", "2", "--output", folder / "search")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it all, whose runs name the copied folder as theirs."""
    shutil.copytree(made, tmp_path / "world")
    for config in (tmp_path / "world").glob("*/config.json"):
        data = json.loads(config.read_text())
        (data.get("search") or data)["data"]["data"] = str(tmp_path / "world/pets")
        config.write_text(json.dumps(data))
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def part_of(run: Path | str) -> dict[str, set[str]]:
    """Contents by part."""
    manifest = Manifest.load(Path(run) / "split.csv")
    return {
        part: {entry.digest for entry in manifest.entries if entry.part == part}
        for part in ("train", "validation", "test")
    }


def rows_of(run: Path) -> list[str]:
    return (run / "split.csv").read_text(encoding="utf-8").splitlines()


def grow(world: Path) -> str:
    for i in range(5):
        draw(world / "pets/dog" / f"a{i}.png", 9000 + i)
    return "new"


def shrink(world: Path) -> str:
    for part in ("train", "test"):
        name = Manifest.load(world / "run/split.csv").names(part)[0]
        (world / "pets" / name).unlink()
    return "missing"


def rename_image(world: Path) -> str:
    name = Manifest.load(world / "run/split.csv").names("train")[0]
    path = world / "pets" / name
    path.rename(path.with_name("000-another.png"))
    return "another name"


def rename_class(world: Path) -> str:
    (world / "pets/dog").rename(world / "pets/hound")
    return "hound"


CHANGES = (grow, shrink, rename_image, rename_class)
each_change = pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)


@each_change
def test_evaluate(world: Path, change, capsys) -> None:
    before, word = part_of("run"), change(world)
    capsys.readouterr()
    status = typed("evaluate", "run", "--cpu")
    said = capsys.readouterr()
    assert word in said.out + said.err
    assert (status == 0) == (change is not rename_class)
    assert part_of("run") == before
    if change in (grow, rename_image):
        evaluation = evaluate_run("run", cpu=True)[0]
        assert evaluation.total == 12
        then = json.loads((world / "run/summary.json").read_text())["test"]
        assert evaluation.loss == pytest.approx(then["loss"], rel=1e-5)


@each_change
def test_resume(world: Path, change, capsys) -> None:
    before, word = part_of("cut"), change(world)
    capsys.readouterr()
    status = typed("train", "--resume", "cut")
    said = capsys.readouterr()
    assert word in said.out + said.err
    assert status == (0 if change in (grow, rename_image) else 1)
    assert part_of("cut") == before
    if change is grow:
        assert json.loads((world / "cut/summary.json").read_text())["train_images"] == 43


@each_change
def test_resumed_search(world: Path, change, capsys) -> None:
    before, word = part_of("search"), change(world)
    capsys.readouterr()
    status = typed("search", "--resume", "search")
    said = capsys.readouterr()
    assert word in said.out + said.err
    assert status == (0 if change in (grow, rename_image) else 1)
    assert part_of("search") == before


@each_change
def test_export(world: Path, change, capsys) -> None:
    word = change(world)
    capsys.readouterr()
    status = typed("export", "run", "--format", "safetensors", "--images", "16")
    said = capsys.readouterr()
    assert (status == 0) == (change is not rename_class)
    if change is not shrink:  # what is missing of the test part is not looked for
        assert word in said.out + said.err


@each_change
def test_init(world: Path, change, capsys) -> None:
    before = part_of("run")
    change(world)
    capsys.readouterr()
    flags = ["train", "--init", "run", "--data", "pets", "--epochs", "1", *FLAGS[:-1], "--output", "next"]
    status = typed(*flags)
    said = capsys.readouterr()
    assert status == 0
    if change is rename_class:  # to the network it is another class
        assert "the classifier is new" in " ".join(said.out.split())
        return
    after = part_of("next")
    learned = (before["train"] | before["validation"]) & (after["train"] | after["validation"] | after["test"])
    assert learned <= after["train"] | after["validation"]
    assert not after["test"] & (before["train"] | before["validation"])
    if change is grow:
        assert "5 images are new" in said.out


@each_change
def test_training_what_a_search_of_these_images_found(world: Path, change, capsys) -> None:
    assert typed("search", "--resume", "search", "--quiet") == 0
    before = part_of("search")
    change(world)
    flags = ["train", "--model", "search/found.json", "--data", "pets", "--split", "search", "--epochs", "1"]
    assert typed(*flags, *FLAGS, "--output", "next") == 0
    after = part_of("next")
    assert not after["test"] & (before["train"] | before["validation"])
    assert not (after["train"] | after["validation"]) & before["test"]


def test_a_folder_that_moved(world: Path, capsys) -> None:
    (world / "pets").rename(world / "animals")
    for command in (["evaluate", "run"], ["train", "--resume", "cut"], ["search", "--resume", "search"],
                    ["export", "run", "--format", "safetensors"]):  # fmt: skip
        assert typed(*command) == 1
        said = capsys.readouterr().err
        assert "pets" in said
        assert "--data" in said
        assert len(said.splitlines()) == 1
    assert typed("evaluate", "run", "--data", "animals", "--cpu") == 0
    assert typed("train", "--resume", "cut", "--data", "animals") == 0
    assert typed("search", "--resume", "search", "--data", "animals", "--quiet") == 0
    assert typed("export", "run", "--format", "safetensors", "--data", "animals", "--images", "8") == 0
    whole = RunFolder(world / "cut").open_data("animals")
    assert set(whole.manifest.names("train")) == set(Manifest.load(world / "cut/split.csv").names("train"))


def test_a_run_is_evaluated_from_anywhere(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    flags = ["train", "--data", "pets", "--model", "tiny.json", *FLAGS, "--epochs", "1", "--output", "relative"]
    assert typed(*flags) == 0
    monkeypatch.chdir(tmp_path)
    assert typed("evaluate", made / "relative", "--cpu") == 0
    (made / "tiny.json").rename(made / "gone.json")  # model.json holds it
    try:
        assert typed("evaluate", made / "relative", "--cpu") == 0
    finally:
        (made / "gone.json").rename(made / "tiny.json")


def test_a_lost_spec_file_does_not_stop_a_resumed_run(world: Path) -> None:
    (world / "tiny.json").unlink()
    assert typed("train", "--resume", "cut", "--quiet") == 0


def test_a_new_run_takes_a_division_over(world: Path, capsys) -> None:
    before = part_of("run")
    grow(world)
    flags = ["train", "--data", "pets", "--model", "tiny.json", "--split", "run", "--epochs", "1", *FLAGS[:-1]]
    assert typed(*flags, "--output", "next") == 0
    said = capsys.readouterr().out
    assert "5 images are new" in said
    after = part_of("next")
    assert all(before[part] <= after[part] for part in before)
    assert typed(*flags, "--output", "other", "--split", "nowhere.csv") == 1
    assert "nowhere.csv" in capsys.readouterr().err
    assert not (world / "other").exists()


def leaks(run: Path, *ancestors: Path) -> set[str]:
    """Images that the ancestors' weights have seen, in training or validation, and that the run is tested by."""
    seen = set().union(*(part_of(a)["train"] | part_of(a)["validation"] for a in ancestors))
    return part_of(run)["test"] & seen


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("grown", [False, True], ids=["same", "grown"])
def test_exported_weights_know_what_they_have_seen(world: Path, seed: int, grown: bool) -> None:
    """The division went lost on the way, so that all test images of the next run could have been trained on."""
    assert typed("export", "run", "--format", "safetensors", "--output", "net.safetensors", "--images", "8") == 0
    if grown:
        grow(world)
    (world / "run").rename(world / "run-elsewhere")
    flags = ["train", "--init", "net.safetensors", "--data", "pets", "--data-seed", seed, "--epochs", "1", *FLAGS]
    if grown or not seed:
        assert (
            typed(*(flag for flag in flags if grown or flag not in ("--data-seed", seed)), "--output", "next") == 0
        )
        assert not leaks(world / "next", world / "run-elsewhere")
    else:  # nothing is left to draw
        assert typed(*flags, "--output", "next") == 1


def test_two_generations(world: Path) -> None:
    """What was away while a run was trained on is known when it comes back."""
    away = world / "away"
    for name in ("cat", "dog", "newt"):
        (away / name).mkdir(parents=True)
        for i in range(10, 20):
            (world / "pets" / name / f"{i}.png").rename(away / name / f"{i}.png")
    flags = ["train", "--data", "pets", "--epochs", "1", *FLAGS]
    assert typed(*flags, "--init", "run", "--output", "second") == 0
    for path in away.glob("*/*.png"):
        path.rename(world / "pets" / path.parent.name / path.name)
    assert typed(*flags, "--init", "second", "--output", "third") == 0
    assert not leaks(world / "third", world / "run", world / "second")


def test_a_lost_list_of_images_is_not_guessed(world: Path, capsys) -> None:
    assert typed("train", "--data", "pets", "--model", "tiny.json", "--split", "run", "--epochs", "1", *FLAGS,
                 "--output", "second") == 0  # fmt: skip
    for run in ("second", "cut", "search"):
        (world / run / "split.csv").unlink()
    capsys.readouterr()
    for command in (["evaluate", "second"], ["train", "--resume", "cut"], ["search", "--resume", "search"],
                    ["export", "second", "--format", "safetensors"]):  # fmt: skip
        assert typed(*command) == 1
        assert "has lost its split.csv" in capsys.readouterr().err


def test_a_lost_checkpoint_is_no_reason_to_start_again(world: Path, capsys) -> None:
    before = (world / "cut/metrics.csv").read_bytes() if (world / "cut/metrics.csv").is_file() else b""
    (world / "cut/checkpoint.pt").unlink()
    assert typed("train", "--resume", "cut") == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert (world / "cut/metrics.csv").is_file() == bool(before)


def test_a_search_is_not_a_run(world: Path, capsys) -> None:
    for command in (
        ["evaluate", "search"],
        ["predict", "search", "pets/cat/0.png"],
        ["train", "--resume", "search"],
        ["export", "search"],
        ["train", "--init", "search", "--data", "pets"],
    ):
        assert typed(*command) == 1
        assert "is the folder of a search" in capsys.readouterr().err


def test_beside_resume_what_was_typed_counts(world: Path, capsys) -> None:
    assert typed("train", "--resume", "cut", "--recipe", "folder") == 1
    assert "leave out --recipe" in capsys.readouterr().err
    assert typed("train", "--resume", "cut", "--batch-size", "64") == 1  # though it is the recipe's own number
    assert "leave out --batch-size" in capsys.readouterr().err
    assert typed("train", "--resume", "cut", "--data", "digits") == 1
    assert "60 are missing" in capsys.readouterr().err


def test_the_command_that_a_search_prints_runs_as_printed(world: Path, capsys) -> None:
    assert typed("search", "--resume", "search") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("train it: hadaptive train")
    words = shlex.split(line.removeprefix("train it: hadaptive "))
    assert {"--split", "--output"} <= set(words)
    assert typed(*words, "--output", "found", "--epochs", "1", "--quiet") == 0
    assert not leaks(world / "found", world / "search")
