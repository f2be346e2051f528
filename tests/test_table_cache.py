"""Latency tables are measured once for each space, setting, device and version."""

from pathlib import Path

import pytest
from tiny import WIDE_CHOICE, WIDE_SPACE

from hadaptive.cli import main
from hadaptive.search import LatencyTable, Setting, latency, launch, table_cache
from hadaptive.search.latency import references


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is as its commit has it."""
    before = table_cache.provenance
    monkeypatch.setattr(table_cache, "provenance", lambda device: {**before(device), "commit": "0123456789"})


@pytest.mark.usefixtures("places")
def test_whatever_a_figure_depends_on_is_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    setting, known = Setting(image_size=32), references()
    first = table_cache.place_of(WIDE_SPACE, setting, known)
    assert first == table_cache.place_of(WIDE_SPACE, setting, references())
    others = [
        table_cache.place_of(WIDE_SPACE.with_stem_strides(1), setting, known),
        table_cache.place_of(WIDE_SPACE, setting, references((1, 1))),
        *(
            table_cache.place_of(WIDE_SPACE, Setting(**{"image_size": 32, **change}), known)
            for change in ({"threads": 1}, {"runtime": "onnxruntime"}, {"frozen": True}, {"image_size": 64})
        ),
    ]
    before = table_cache.provenance
    for name in ("device", "threads", "torch", "hadaptive", "commit"):
        monkeypatch.setattr(table_cache, "provenance", lambda device, name=name: {**before(device), name: "other"})
        others.append(table_cache.place_of(WIDE_SPACE, setting, known))
    monkeypatch.setattr(table_cache, "provenance", before)
    monkeypatch.setattr(table_cache, "_versions", lambda modules: {"onnxruntime": "another"})
    others.append(table_cache.place_of(WIDE_SPACE, Setting(image_size=32, runtime="onnxruntime"), known))
    assert len({first, *others}) == 1 + len(others)


def test_a_package_that_was_changed_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    before = table_cache.provenance
    monkeypatch.setattr(table_cache, "provenance", lambda device: {**before(device), "commit": "0123456789+"})
    assert table_cache.place_of(WIDE_SPACE, Setting(), references()) is None


@pytest.mark.usefixtures("places")
def test_a_second_search_takes_what_the_first_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "REFERENCES", {"S": WIDE_SPACE.build(WIDE_CHOICE, "slow")})
    WIDE_SPACE.save(tmp_path / "wide.json")
    measured, measure = [], launch.measure_table

    def counted(*arguments: object, **how: object) -> LatencyTable:
        measured.append(arguments)
        return measure(*arguments, **how)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(launch, "measure_table", counted)
    typed = ["search", "--data", "digits", "--space", "wide.json", "--epochs", "1", "--image-size", "32"]
    typed += ["--train-size", "40", "--batch-size", "8", "--cpu", "--latency-target", "0.8xS", "--output"]
    assert main([*typed, "first"]) == 0
    capsys.readouterr()
    assert main([*typed, "second"]) == 0
    assert "latencies as measured here on" in capsys.readouterr().out
    assert len(measured) == 1
    tables = [(tmp_path / run / "latency.json").read_bytes() for run in ("first", "second")]
    assert tables[0] == tables[1]
    (kept,) = table_cache.folder().iterdir()
    kept.write_text("{", encoding="utf-8")  # damaged
    assert main([*typed, "third"]) == 0
    assert main([*typed, "fourth", "--fresh-table"]) == 0
    assert len(measured) == 3
    assert LatencyTable.load(kept).space == WIDE_SPACE.fingerprint
    assert main([*typed, "fifth", "--fresh-table", "--latency-table", "first/latency.json"]) == 1
    assert "--fresh-table has no effect here, for --latency-table says which" in capsys.readouterr().err


@pytest.mark.usefixtures("places")
def test_no_search_needs_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(table_cache, "folder", nobody)
    assert table_cache.place_of(WIDE_SPACE, Setting(), references()) is None

    def refused(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refused)
    assert table_cache.kept_table(Path("table.json"), WIDE_SPACE, Setting()) is None


@pytest.mark.usefixtures("places")
def test_a_disk_that_is_full_stops_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(table_cache, "folder", lambda: tmp_path / "file")
    path = table_cache.place_of(WIDE_SPACE, Setting(), references())
    assert table_cache.kept_table(path, WIDE_SPACE, Setting()) is None
    table_cache.keep(None, path)  # pyright: ignore[reportArgumentType]
