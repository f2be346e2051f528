"""Mistakes of newcomers, each as typed: one sentence says what was wrong and what to do, and nothing is left."""

import shlex
from pathlib import Path

import pytest
from folders import picture
from PIL import Image
from tiny import TINY, WIDE_SPACE

from hadaptive.cli import main

SMALL = "--image-size 16 --batch-size 8 --epochs 1 --model tiny.json --cpu"

# What is typed, the exit status, and words of the sentence.
MISTAKES = [
    # the images
    ("train --data pest", 1, "no data set 'pest'"),
    ("train --data picture.jpg", 1, "picture.jpg"),
    ("train --data empty", 1, "empty"),
    ("train --data flat", 1, "class"),
    ("train --data single", 1, "class"),
    (f"train --data few {SMALL}", 1, "gather more images"),
    ("train pets", 2, "pets"),
    # the network
    ("train --data pets --batch-size 8 --model hadaptive_net_xl", 1, "did you mean hadaptive_net_"),
    ("train --data pets --batch-size 8 --model missing.json", 1, "missing.json"),
    ("train --data pets --batch-size 8 --model table.txt", 1, "table.txt"),
    (f"train --data pets {SMALL} --image-size 1", 1, "image"),
    ("train --data pets --batch-size 8 --init picture.jpg", 1, "picture.jpg"),
    # settings
    ("train --data pets", 1, "fewer than batch_size 64: lower it"),
    ("train --data pets --recipe foldre", 1, "no recipe 'foldre'"),
    ("train --data pets --epoch 3", 2, "--epochs"),
    ("train --data pets --epochs three", 2, "three"),
    ("train --data pets --epochs 0", 1, "epochs must be at least 1"),
    ("train --data pets --lr -1", 1, "lr must be positive"),
    (f"train --data pets {SMALL} --opt adamv", 1, "adamv"),
    (f"train --data pets {SMALL} --sched cosin", 1, "cosin"),
    ("train --data pets --mixed-precision fp61", 2, "fp61"),
    ("train --data pets --val-fraction 10", 1, "between 0 and 1"),
    (f"train --data pets {SMALL} --fit crop --auto-augment randaugment", 1, "randaugment"),
    # folders that are there, or are not
    (f"train --data pets {SMALL} --output run", 1, "never overwritten"),
    ("train --resume", 2, "resume"),
    ("train --resume rum", 1, "no run folder rum"),
    ("train --resume run", 1, "finished"),
    ("train --resume run --epochs 20", 1, "leave out --epochs"),
    ("evaluate", 2, "run folder"),
    ("evaluate pets", 1, "not a run folder"),
    ("evaluate run/best.safetensors", 1, "best.safetensors"),
    ("predict run", 1, "no images"),
    ("predict pets/cat/0.png run", 1, "pets/cat/0.png"),
    ("predict run nowhere.jpg", 1, "nowhere.jpg"),
    ("predict run empty", 1, "empty"),
    ("predict run picture.jpg --sheet table.txt", 1, "not overwritten"),
    # search
    ("search --data pets --batch-size 8 --latency-target fast", 1, "fast"),
    ("search --data pets --batch-size 8 --latency-target 5", 1, "5ms"),
    ("search --data pets --space publish", 1, "no search space 'publish'"),
    ("search --data pets --baseline random", 2, "baseline"),
    ("search --data pets --ema 0.9", 2, "ema"),
    ("train --resume space.json", 1, "space.json"),
    ("latency published --rounds 1 --image-size 32", 1, "at least 5 rounds"),
    # export
    ("export", 2, "run folder, weights"),
    ("export rum", 1, "rum"),
    ("export run --format tflite", 2, "tflite"),
    ("export run --output network.pb", 1, ".onnx"),
    ("export run --int8 --format torch", 1, "int8 is for formats onnx and openvino"),
    ("export run --finetune 1", 1, "--freeze"),
    ("export picture.jpg", 1, "picture.jpg"),
    # the command itself
    ("tarin --data pets", 2, "no command 'tarin'"),
    ("bench speed", 1, "hadaptive bench"),
    ("info", 2, "timm model name, NetSpec file"),
    ("info pets", 1, "pets"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good pictures and a run, and folders as they should not be."""
    folder = tmp_path_factory.mktemp("mistakes")
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        for name, classes, count in (("pets", 3, 12), ("few", 2, 2), ("single", 1, 9)):
            for target in range(classes):
                (folder / name / ("cat", "dog", "fox")[target]).mkdir(parents=True)
                for number in range(count):
                    image = picture(target, number).resize((20, 18), Image.Resampling.NEAREST)
                    image.save(f"{name}/{('cat', 'dog', 'fox')[target]}/{number}.png")
        for name in ("empty", "flat"):
            (folder / name).mkdir()
        for path in ("picture.jpg", "flat/1.png", "flat/2.png"):
            picture(1, 99).save(path)
        Path("table.txt").write_text("a table", encoding="utf-8")
        TINY.save("tiny.json")
        WIDE_SPACE.save(Path("space.json"))
        assert main(shlex.split(f"train --data pets {SMALL} --output run --quiet")) == 0
    return folder


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("typed", "status", "words"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_a_mistake_is_one_sentence(
    typed: str, status: int, words: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(home)
    before = files(home)
    try:
        ended = main(shlex.split(typed))
    except SystemExit as stopped:  # of tyro, which draws a box
        ended = stopped.code
    captured = capsys.readouterr()
    assert words in captured.err
    assert ended == status
    assert "Traceback" not in captured.err
    if status == 1:
        assert len(captured.err.splitlines()) == 1, captured.err
    assert files(home) == before
