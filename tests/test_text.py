"""A person's own text: shown as it is and obeyed nowhere, on terminals, in pictures and in Markdown."""

import ast
import io
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import hadaptive
from hadaptive.console import console, say
from hadaptive.evaluate import Evaluation, print_evaluation
from hadaptive.export.proof import write_table
from hadaptive.pictures import contact_sheet, plot_confusion
from hadaptive.text import drawn, in_markdown, shown

ODD_NAMES = [
    *(
        "dog [brown]",
        "dog [red]",
        "a[/b]",
        "[bold]",
        ":dog:",
        "[link=x]y",
        "10²",
        "①",
        "猫",
        "$a$",
        "a $1",
        r"$\nope$",
    ),
    *(
        "a|b",
        "line\nbreak",
        "\x1b[2Jgone",
        "\r\x08over",
        "\udce9t\udce9",
        "\u202ereversed",
        "{}",
        "%s",
        "a\\",
        "*x*",
    ),
]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain [red] name: 10² 猫", "plain [red] name: 10² 猫"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[2J\x7f\x9b", r"\x1b[2J\x7f\x9b"),
        ("caf\udce9", r"caf\udce9"),
        ("\u202egpj.exe\u2028", r"\u202egpj.exe\u2028"),
    ],
)
def test_shown_replaces_what_a_terminal_obeys_only(text: str, line: str) -> None:
    assert shown(text) == line


def test_shown_names_what_an_encoding_lacks() -> None:
    assert shown("猫 é", "cp1252") == r"\u732b é"
    assert shown("猫 é", "ascii") == r"\u732b \xe9"


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_every_name_is_printed_whole(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    table = Table("class", title="of a[/b]")
    for name in ODD_NAMES:
        table.add_row(name)
        say(f"here is {name}")
        console().print(f"there is {name}")
    console().print(table)
    out.seek(0)
    text = out.read()
    lines = text.splitlines()
    assert "of a[/b]" in text
    for name in ODD_NAMES:
        line = shown(name, encoding)
        assert f"here is {line}" in lines
        assert f"there is {line}" in lines
        assert any(cell.strip("│| ") == line.strip("|") or line in cell for cell in lines[2 * len(ODD_NAMES) :])


def test_figures_of_classes_keep_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["dog [brown]", "dog [red]", "a[/b]"]
    evaluation = Evaluation(
        torch.arange(3), torch.arange(3), torch.ones(3, dtype=torch.bool), torch.ones(3), 3, []
    )
    print_evaluation(evaluation, classes, {"figures": Path("runs/[/b]/x.json")})
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*classes, "runs/[/b]/x.json"])


def test_a_progress_bar_shows_text_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from hadaptive.engine.progress import Progress

    out = io.StringIO()
    out.isatty = lambda: True  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr("sys.stdout", out)
    progress = Progress(2, 0, enabled=True)
    progress.say("a[/b] \x1b[2J [red]x")
    progress.close()
    assert r"a[/b] \x1b[2J [red]x" in out.getvalue()


def texts(figure: Figure) -> list[str]:
    """What the text of a figure becomes on paper, formulae refused."""
    from matplotlib.text import Text

    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    assert not any(text._preprocess_math(text.get_text())[1] for text in found)  # pyright: ignore
    return [text._preprocess_math(text.get_text())[0] for text in found]  # pyright: ignore


def test_pictures_show_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (said.append(texts(self)), real(self, *a, **k)))
    plot_confusion(torch.eye(len(ODD_NAMES)), ODD_NAMES, tmp_path / "a.png", "of $x$")
    assert {"of $x$", *map(shown, ODD_NAMES)} <= set(said[0])
    tiles: list[tuple[Image.Image, str, bool | None]] = [(Image.new("RGB", (4, 4)), n, None) for n in ODD_NAMES]
    contact_sheet(tiles, tmp_path / "b.png", "unbalanced $")
    assert (tmp_path / "b.png").stat().st_size


def test_drawn_dollars_are_dollars() -> None:
    assert drawn(r"$a$ \$ $") == r"\$a\$ \\$ \$"


def test_a_markdown_table_keeps_its_cells(tmp_path: Path) -> None:
    write_table(tmp_path / "proof.md", {"source": "runs/a|b <i>*c*</i> _d_ snake_case", "x|y": "line\nbreak"})
    _, _, source, other = (tmp_path / "proof.md").read_text(encoding="utf-8").splitlines()
    assert source == r"| source | runs/a\|b \<i\>\*c\*\</i\> \_d\_ snake_case |"
    assert other == r"| x\|y | line\\nbreak |"
    assert in_markdown("`a` [b](c)") == r"\`a\` \[b\](c)"


PACKAGE = Path(hadaptive.__file__).parent
PRINTERS = {PACKAGE / "console.py", PACKAGE / "measure" / "alone.py"}  # the latter talks JSON to its parent


def test_all_lines_are_printed_in_one_place() -> None:
    """What says a line elsewhere may meet a name that its terminal cannot show, or would obey."""
    for path in set(PACKAGE.rglob("*.py")) - PRINTERS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("print", "Console", "rich.print", "sys.stdout.write", "sys.stderr.write"), path
