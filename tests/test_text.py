"""A person's own text: shown as it is and obeyed nowhere, on terminals, in pictures and in Markdown."""

import ast
import io
import json
import os
import re
from pathlib import Path

import pytest
import torch
from folders import picture
from matplotlib.figure import Figure
from PIL import Image
from processes import run_python
from tiny import tiny_spec

import hadaptive
from hadaptive.console import console, say
from hadaptive.evaluate import Evaluation, print_evaluation
from hadaptive.export.proof import write_table
from hadaptive.files import append_csv, read_csv, write_csv, write_json
from hadaptive.pictures import contact_sheet, plot_confusion
from hadaptive.runs import RunFolder
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


@pytest.mark.rendered
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


# -- files ------------------------------------------------------------------------------------------------------


def text_calls(path: Path) -> list[str]:
    """Calls in a file that read or write text in whatever encoding the locale has."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        given = {keyword.arg for keyword in node.keywords}
        texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        texts += [word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)]
        binary = any(isinstance(text, str) and re.fullmatch("[rwax]?b[+]?|[rwax][+]?b", text) for text in texts)
        whole = ast.unparse(node.func)
        opens = whole in ("open", "io.open") or (whole.endswith(".open") and name == "open" and "mode" in given)
        if name in ("read_text", "write_text", "fdopen") or (opens and not binary):
            if "encoding" not in given:
                found.append(f"{path.name}:{node.lineno}: {whole}")
        elif {"text", "universal_newlines"} & given and "encoding" not in given:
            found.append(f"{path.name}:{node.lineno}: {whole}")
    return found


def test_every_text_file_names_its_encoding() -> None:
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "benchmarks").rglob("*.py")]
    assert [call for path in files for call in text_calls(path)] == []


def test_the_rule_for_encodings_sees_what_breaks_it(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "p.read_text()\nopen(f)\nopen(f, 'w')\nsubprocess.run(x, text=True)\np.open(mode='w')\n"
        "open(f, 'rb')\nos.open(f, 1)\nopen(f, encoding='utf-8')\nfunctools.partial(open, f, 'rb')\n",
        encoding="utf-8",
    )
    assert [call.split(":")[1] for call in text_calls(path)] == ["1", "2", "3", "4", "5"]


def test_files_of_rows_keep_every_name(tmp_path: Path) -> None:
    rows = [{"name": name, "count": 1} for name in ODD_NAMES]
    write_csv(tmp_path / "a.csv", rows, ["name", "count"])
    append_csv(tmp_path / "a.csv", rows)
    assert [row["name"] for row in read_csv(tmp_path / "a.csv")] == [*ODD_NAMES, *ODD_NAMES]
    (tmp_path / "a.csv").read_bytes().decode("utf-8")  # for whoever else reads it
    write_json(tmp_path / "a.json", ODD_NAMES)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == ODD_NAMES


WHOLE_JOB = """
import os, signal, sys
import dying, figures
figures.Figure.savefig = figures.RENDER
main = dying.main
root, spec = sys.argv[1:]
run = os.path.join(root, "run")
flags = ["--image-size", "8", "--batch-size", "8", "--epochs", "2", "--workers", "0", "--cpu", "--quiet"]
flags += ["--model", spec, "--data", os.path.join(root, "data"), "--output", run]
dying.trainer.Trainer.micro_step = dying.counted(dying.trainer.Trainer.micro_step, 2, signal.SIGINT)
assert main(["train", *flags]) == 130
assert main(["train", "--resume", run, "--quiet"]) == 0
assert main(["evaluate", run, "--cpu"]) == 0
assert main(["predict", run, os.path.join(root, "data", "tea"), "--top", "1"]) == 0
"""


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252"},
    ],
    ids=["ascii", "cp1252"],
)
def test_a_run_of_any_names_ends_under_any_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    root = tmp_path / "data"
    for target, kind in enumerate(("tea", "猫 [red]", "10²")):
        (root / kind).mkdir(parents=True)
        for number in range(12):
            picture(target, number).save(root / kind / f"①{number}.png")
    latin = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(latin)
    for number in range(12):
        picture(7, number).save(os.fsdecode(latin + f"/{number}.png".encode()))
    for number in range(3):
        (root / "tea" / f"猫{number}.png").write_bytes(b"not an image")
    done = run_python(WHOLE_JOB, str(tmp_path), tiny_spec(tmp_path), **locale)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    classes = [row["class"] for row in read_csv(run / "per-class-test.csv")]
    assert sorted(classes) == sorted(["tea", "猫 [red]", "10²", "caf\udce9"])
    assert "猫" in (run / "skipped_images.txt").read_text(encoding="utf-8")
    # Elsewhere, where the file system's names are UTF-8, it is the same run.
    opened = RunFolder.open(run).open_data(exact=True)
    assert opened.classes == ["10²", "caf\udce9", "tea", "猫 [red]"]
    assert not [note for note in opened.notes if "left out" in note or "name" in note]
