"""The benchmark of bare products: rows by both backends, and none of what computes something else."""

from pathlib import Path

import pytest

from benchmarks import products
from benchmarks.__main__ import main
from hadaptive import ops
from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.ops import library

SMALL = ((8, 4, 3, 2),)


def test_a_row_for_each_backend_and_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SHAPES", SMALL)
    assert main(["products", "--rounds", "3", "--results", str(tmp_path / "new" / "rows.csv")]) == 0
    rows = read_csv(tmp_path / "new" / "rows.csv")
    parts = ("forward", "step", "expansion's step")
    assert [row["variant"] for row in rows] == 2 * [f"{p}, {b}" for b in ops.available_backends() for p in parts]
    assert all(0 < float(row["lower_quartile_ms"]) <= float(row["median_ms"]) for row in rows)


def test_what_computes_something_else_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = library.selected_products
    monkeypatch.setattr(products, "SHAPES", SMALL)
    monkeypatch.setattr(library, "selected_products", lambda *arguments: 1.01 * sound(*arguments))
    with pytest.raises(UserError, match="does not compute what the reference computes"):
        products.bench_products(products.ProductsConfig(tmp_path / "rows.csv"))
    assert not (tmp_path / "rows.csv").exists()
