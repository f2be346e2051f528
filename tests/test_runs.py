"""The run folder: nothing is overwritten, nothing is left half written."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from tiny import TINY

from hadaptive.cards import ModelCard, card_for
from hadaptive.data import Preprocessing
from hadaptive.errors import UserError, first_line
from hadaptive.files import append_csv, read_csv, write_atomically, write_json
from hadaptive.models import create_model
from hadaptive.runs import RunFolder


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(UserError, match=r"file\.txt cannot be written: the disk is full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"


def test_create_refuses_what_exists(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("", "file"):
        with pytest.raises(ValueError, match="never overwritten"):
            RunFolder.create(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be made"):
        RunFolder.create(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_card_round_trip(tmp_path: Path) -> None:
    network = create_model(TINY, num_classes=2, in_chans=1)
    card = card_for(
        "tiny", network, ["cat", "dög"], Preprocessing(image_size=8, in_chans=1, mean=(0.1,), std=(0.2,))
    )
    run = RunFolder.create(tmp_path / "run")
    write_json(run.card, card.to_dict())
    assert run.read_card() == card
    again = run.read_card().create_model()
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}


def test_weights_round_trip_and_damage(tmp_path: Path) -> None:
    network = create_model(TINY, num_classes=2)
    run = RunFolder.create(tmp_path / "run")
    write_json(run.card, card_for("tiny", network, ["a", "b"], Preprocessing(image_size=8)).to_dict())
    with pytest.raises(ValueError, match="not finished an epoch"):
        run.load_model("best")
    run.save_weights(network, "best")
    with safe_open(run.weights("best"), "pt") as file:
        assert file.metadata() == {"format": "pt"}
    loaded, _ = run.load_model("best")
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert tensor.equal(loaded.state_dict()[name])
    run.weights("best").write_bytes(run.weights("best").read_bytes()[:100])
    with pytest.raises(ValueError, match="does not hold the weights"):
        run.load_model("best")


@pytest.mark.parametrize("content", ["", "{", '{"model": 1}', "[]"], ids=["empty", "cut", "incomplete", "list"])
def test_damaged_card_is_one_sentence(tmp_path: Path, content: str) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.card.write_text(content)
    with pytest.raises(ValueError, match=r"model\.json") as caught:
        run.read_card()
    assert "\n" not in str(caught.value)


def test_rows_of_repeated_epochs_are_dropped(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    for epoch in range(3):
        run.append_rows(run.metrics, [{"epoch": epoch, "loss": 1 / (epoch + 1)}])
    run.truncate_rows(2)
    assert [row["epoch"] for row in read_csv(run.metrics)] == ["0", "1"]


def test_rows_with_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append_csv(path, [{"a": 1, "b": 2}])
    with pytest.raises(ValueError, match="other columns"):
        append_csv(path, [{"a": 1, "c": 3}])
    assert read_csv(path) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(("error", "line"), [(OSError("one\ntwo"), "one"), (EOFError(), "EOFError")], ids=str)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_card_of_a_newer_version(tmp_path: Path) -> None:
    card = ModelCard("resnet18", None, ["a"], Preprocessing(image_size=8)).to_dict()
    run = RunFolder.create(tmp_path / "run")
    run.card.write_text(json.dumps({**card, "novelty": 1}))
    with pytest.raises(ValueError, match=r"model\.json"):
        run.read_card()
