"""Evolution within a latency and a size: predicted, measured, and what misses them."""

from pathlib import Path
from typing import Any

import pytest
from evolved import config_of, saved_space, table_of
from matplotlib.axes import Axes

from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.models import NetSpec
from hadaptive.search import (
    LatencyTable,
    SearchConfig,
    SearchSpace,
    search,
)
from hadaptive.search.evolution import Evolution


@pytest.fixture
def space(tmp_path: Path) -> SearchSpace:
    return saved_space(tmp_path)


def test_a_target_and_a_size(tmp_path: Path, space: SearchSpace) -> None:
    config = config_of(tmp_path, latency_target="2.2ms", max_params="2k", latency_table=tmp_path / "t.json")
    config = config.changed(foreign_table=True)
    table_of(space, config).save(tmp_path / "t.json")
    summary = search(config, quiet=True)
    table, front = LatencyTable.load(tmp_path / "t.json"), read_csv(tmp_path / "run" / "front.csv")
    assert table == table_of(space, config)
    for row in front:
        choice = tuple(map(int, row["choice"].split()))
        assert float(row["latency_ms"]) == table.predict(choice) <= 2.2
        assert int(row["parameters"]) <= 2000
    assert summary["predicted_ms"] <= 2.2
    assert summary["measured_ms"] is None  # another device's
    rows = read_csv(tmp_path / "run" / "evolution.csv")
    assert any(float(row["latency_ms"]) > 2.2 or int(row["parameters"]) > 2000 for row in rows)
    assert rows[0]["parameters"] == min((row["parameters"] for row in rows), key=int)
    assert table.range()[0] in [float(row["latency_ms"]) for row in rows if row["generation"] == "0"]
    assert [float(row["latency_ms"]) for row in front] == sorted(float(row["latency_ms"]) for row in front)


def test_a_latency_table_of_several_widths(tmp_path: Path, space: SearchSpace) -> None:
    table = table_of(space, config_of(tmp_path))
    assert table.predict((0, 0, 0, 0, 0)) == pytest.approx(1 + 4)
    assert table.predict((0, 0, 0, 0, 1)) == pytest.approx((1 + 4) / 2)
    assert table.range() == (pytest.approx(0.5 + 1), pytest.approx(1 + 1 + 1 + 2 * 1.3))
    table.check(space, table.setting, foreign=True)
    with pytest.raises(UserError, match="the latency table is of another space"):
        table.check(space.of_whole(0), table.setting, foreign=True)


def test_a_measured_table_is_used_and_networks_are_measured(tmp_path: Path, space: SearchSpace, capsys) -> None:
    search(config_of(tmp_path, latency_target="1s"))
    front = read_csv(tmp_path / "run" / "front.csv")
    assert all(float(row["measured_ms"]) > 0 for row in front)
    table = LatencyTable.load(tmp_path / "run" / "latency.json")
    assert len(table.others) == 1
    assert "measured ms" in capsys.readouterr().out


def test_latency_may_be_of_larger_images_than_accuracy(tmp_path: Path, space: SearchSpace, monkeypatch) -> None:
    labels: list[str] = []
    real = Axes.set
    monkeypatch.setattr(
        Axes, "set", lambda self, **how: labels.extend(map(str, how.values())) or real(self, **how)
    )
    search(config_of(tmp_path, latency_target="1s", latency_size=16, runtime="onnxruntime", threads=1), quiet=True)
    assert LatencyTable.load(tmp_path / "run" / "latency.json").setting.image_size == 16
    assert "predicted ms\n16x16 images" in labels
    assert "validation accuracy, shared weights, %\n8x8 images" in labels
    small = config_of(tmp_path, output=tmp_path / "small", space="published", image_size=32, latency_size=8)
    with pytest.raises(UserError, match="8x8 images are too small"):
        search(small.changed(latency_target="1s"), quiet=True)
    assert not small.output.exists()


def test_a_front_that_misses_when_measured_says_so(tmp_path: Path, space: SearchSpace, monkeypatch) -> None:
    config = config_of(tmp_path, latency_target="2.2ms", latency_table=tmp_path / "t.json", foreign_table=True)
    table_of(space, config).save(tmp_path / "t.json")
    monkeypatch.setattr(Evolution, "_measure", lambda self, specs: dict.fromkeys(specs, 3.0) | {"S": 9.0})
    summary = search(config, quiet=True)
    assert any(
        "the network found is not within the target when it is measured: 3 ms for 2.2 ms" in w
        for w in summary["warnings"]
    )
    assert summary["measured_ms"] == {"found": 3.0, "S": 9.0}
    # Of those that are within it, the most accurate one.
    monkeypatch.setattr(
        Evolution, "_measure", lambda self, specs: {name: 1.0 if name == "front-0" else 3.0 for name in specs}
    )
    summary = search(config.changed(output=tmp_path / "second"), quiet=True)
    first = read_csv(tmp_path / "second" / "front.csv")[0]
    assert NetSpec.load(tmp_path / "second" / "found.json").fingerprint == first["fingerprint"]
    assert not any("when it is measured" in w for w in summary["warnings"])


def test_a_front_is_measured_until_one_is_within_the_target(tmp_path: Path) -> None:
    engine = Evolution.__new__(Evolution)
    engine.target, asked = 2.0, []
    ms = {f"front-{n}": 1.9 if n == 3 else 2.1 + n / 10 for n in range(20)}

    def measure(specs: dict[str, Any]) -> dict[str, float]:
        asked.append(list(specs))
        return {name: ms[name] for name in specs} | {"S": 9.0}

    engine._measure = measure
    number, measured = engine._found(dict.fromkeys(ms))
    assert number == 3
    assert [len(names) for names in asked] == [8, 8, 4]
    assert measured == ms | {"S": 9.0}
    ms["front-3"] = 2.5
    assert engine._found(dict.fromkeys(ms))[0] == 0  # the fastest that was measured, where none is within
    engine._measure = lambda specs: None
    assert engine._found(dict.fromkeys(ms)) == (19, {})


def test_a_size_as_it_is_written() -> None:
    assert SearchConfig.from_recipe("quick").latency.most_parameters == float("inf")
    for text, number in (("1.5M", 1.5e6), ("400k", 4e5), ("800000", 8e5)):
        config = SearchConfig.from_recipe("quick", max_params=text, method="evolution")
        assert config.latency.most_parameters == number
