"""Targets relative to a network of timm's: it is timed as it is deployed, and trained beside what is found."""

import csv
import json
from pathlib import Path

import pytest
import torch
from tiny import WIDE_CHOICE, WIDE_SPACE
from torch import nn

from hadaptive.cli import main
from hadaptive.errors import UserError
from hadaptive.measure.runner import runners
from hadaptive.measure.setting import Setting
from hadaptive.models import create_model
from hadaptive.models.published import HADAPTIVE_NET_M, HADAPTIVE_NET_S
from hadaptive.search import latency
from hadaptive.search.latency import fits, references
from hadaptive.search.table import LatencyTable
from hadaptive.search.table_cache import place_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
RIVAL = "repghostnet_050"


def table(**known: float) -> LatencyTable:
    times = tuple(tuple(float(n) for n in range(len(position))) for position in WIDE_SPACE.positions)
    where = {"device": "another"}
    setting = Setting(image_size=32, num_classes=10)
    return LatencyTable(WIDE_SPACE.fingerprint, setting, times, 1.0, 1.0, 0.0, known, {}, where)


def test_which_networks_there_are() -> None:
    assert list(references()) == ["S", "M", "L"]
    assert references(names=["S", "M"]) == references()
    known = references((1, 1), ["S", RIVAL, "hadaptive_net_s:static", "starnet_s050:plug"])
    assert list(known) == ["S", "M", "L", RIVAL, "hadaptive_net_s:static", "starnet_s050:plug"]
    assert known["S"] == HADAPTIVE_NET_S.with_stem_strides(1, 1)
    assert known[RIVAL] == RIVAL
    with pytest.raises(UserError, match=r"there is no model 'repghostnet_05', .*did you mean .*repghostnet_050"):
        references(names=["repghostnet_05"])
    with pytest.raises(UserError, match=r"relative to a network by name, not to a file: mine\.json"):
        references(names=["mine.json"])


def test_targets() -> None:
    own = table(S=4.0, **{RIVAL: 6.0})
    assert own.target("0.5xS") == own.target("0.5xs") == own.target("0.5 x s") == 2.0
    assert own.target(f"0.5x{RIVAL}") == own.target(f".5x {RIVAL}") == 3.0
    assert LatencyTable.reference_of(f"1x{RIVAL}") == RIVAL
    assert [LatencyTable.reference_of(text) for text in (None, "5ms", "2xm")] == ["S", "S", "M"]
    with pytest.raises(UserError, match=r"table has no 'starnet_s1' to take 0\.5 times as long as: it has S, rep"):
        own.target("0.5xstarnet_s1")
    with pytest.raises(UserError, match=r"written like 5ms, 0\.8xS or 0\.8xmobilenetv3_small_100, got '5 miles'"):
        own.target("5 miles")


def test_another_network_is_another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hadaptive.search.table_cache.provenance", lambda device: {"commit": "abc"})
    paths = {place_of(WIDE_SPACE, Setting(), references(names=names)) for names in ([], [RIVAL], ["starnet_s050"])}
    assert len(paths) == 3


def test_what_takes_no_such_images() -> None:
    assert fits(RIVAL, Setting(image_size=32, num_classes=3))
    assert not fits(HADAPTIVE_NET_M, Setting(image_size=8, num_classes=3))


@pytest.mark.slow
def test_it_is_timed_as_it_is_deployed() -> None:
    """Without its branches, in PyTorch as in a file; and it is left alone."""
    seen: list[int] = []
    for runtime in ("pytorch", "onnxruntime"):
        network = create_model(RIVAL, num_classes=3)
        before = sum(isinstance(m, nn.Conv2d) for m in network.modules())
        for module in network.modules():
            module.register_forward_hook(lambda m, *_: seen.append(1) if isinstance(m, nn.BatchNorm2d) else None)
        (run,) = runners([(network, (3, 32, 32))], Setting(runtime, image_size=32, num_classes=3, threads=1))
        seen.clear()
        run()
        assert len(seen) < 60  # of 125 with its branches
        assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == before


@pytest.mark.slow
def test_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "REFERENCES", {"S": WIDE_SPACE.build(WIDE_CHOICE, "slow")})
    WIDE_SPACE.save("wide.json")
    how = ["--runtime", "onnxruntime", "--image-size", "32", "--threads", "1"]
    line = ["latency", "wide.json", *how, "--num-classes", "10", "--rounds", "5", "--networks", "3"]
    assert main([*line, "--references", RIVAL, "--output", "table.json"]) == 0
    assert f"{RIVAL}: " in capsys.readouterr().out
    ms = json.loads(Path("table.json").read_text())["references"]
    assert set(ms) == {"S", RIVAL}
    line = ["search", "--recipe", "quick", "--space", "wide.json", *how, "--epochs", "1", "--cpu"]
    line += ["--train-size", "256"]
    line += ["--latency-table", "table.json", "--baseline", "random", "2", "--retrain-seeds", "1"]
    assert main([*line, "--latency-target", f"0.5x{RIVAL}", "--output", "run"]) == 0
    found = json.loads(Path("run/searches/seed0/summary.json").read_text())
    assert found["target_ms"] == pytest.approx(0.5 * ms[RIVAL])
    assert set(found["measured_ms"]) == {"found", "S", RIVAL}
    with Path("run/comparison.csv").open(newline="") as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"found", "random", "reference"}
    assert rows["reference"]["network"] == f"reference-{RIVAL}"
    with torch.device("meta"):
        network = create_model(RIVAL, num_classes=10)
    assert int(rows["reference"]["parameters"]) == sum(p.numel() for p in network.parameters())
    assert float(rows["reference"]["measured_ms"]) > 0
    capsys.readouterr()
    for target, sentence in (
        ("0.9xstarnet_s050", "the latency table has no 'starnet_s050' to take 0.9 times as long as"),
        ("fast", "a latency target is written like"),
    ):
        assert main([*line, "--latency-target", target, "--output", "other"]) != 0
        assert sentence in " ".join(capsys.readouterr().err.split())
    without = [word for word in line if word not in ("--latency-table", "table.json")]
    assert main([*without, "--latency-target", "0.9xstarnet_s05", "--output", "other"]) != 0
    assert "there is no model 'starnet_s05'" in " ".join(capsys.readouterr().err.split())
    assert main(["latency", "wide.json", *how, "--references", "vit_tiny_patch16_224.x"]) != 0
    assert not Path("other").exists()
