"""The site: it is built without a warning, has all it should, and a mistake in a page is an error."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documented import ROOT

import hadaptive
from hadaptive.bench.commands import BENCHMARKS
from hadaptive.cli import COMMANDS

pytestmark = pytest.mark.slow

_spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/hooks.py")
assert _spec is not None
assert _spec.loader is not None
site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)

EXPORTED = [
    (package, name)
    for package, names in site.REFERENCE.items()
    for name in names or [name for part in site.exports(package, ROOT).values() for name in part]
]


def build(folder: Path, output: Path, words: str = "mkdocs build --strict") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words.split(), "--site-dir", str(output)],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it."""
    command = re.search(r"python -m (mkdocs build .*) --site-dir", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert command
    assert "--strict" in command[1]
    output = tmp_path_factory.mktemp("site")
    done = build(ROOT, output, command[1])
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return output


def test_pages_are_there(built: Path) -> None:
    home = (built / "index.html").read_text(encoding="utf-8")
    for page in ("quickstart", "images", "search", "paper", "recipes", "api/nn", "contributing", "security"):
        assert f'href="{page}.html"' in home
        assert (built / f"{page}.html").is_file()
    assert 'href="source/examples/index.html"' in home
    assert (built / "demo-predictions.png").is_file()
    source = (built / "paper.html").read_text(encoding="utf-8")
    assert 'href="source/hadaptive/nn/selection.py.html"' in source
    assert (built / "source/benchmarks/results/tradeoff.png").is_file()
    assert "hooks.py" not in {path.name for path in built.rglob("*.py")}


@pytest.mark.parametrize("package", site.REFERENCE)
def test_the_reference_names_all_that_is_exported(package: str, built: Path) -> None:
    page = (built / "api" / f"{package.rpartition('.')[2]}.html").read_text(encoding="utf-8")
    missing = [name for of, name in EXPORTED if of == package and not re.search(rf'id="[\w.]*\b{name}"', page)]
    assert missing == []
    assert not re.search(r":(func|class|meth|mod|data|attr):<", page)


def test_the_command_line_is_there_with_every_flag(built: Path) -> None:
    page = (built / "api/commands.html").read_text(encoding="utf-8")
    for command in [*(name for name in COMMANDS if name != "bench"), *(f"bench {name}" for name in BENCHMARKS)]:
        assert f"usage: hadaptive {command} " in page
    assert "--reject-below" in page


def test_the_public_packages_have_a_page() -> None:
    listed = {f"hadaptive.{name}" for name in hadaptive.__all__ if not name.startswith("_")}
    assert listed <= set(site.REFERENCE)


def test_nothing_is_fetched_from_elsewhere(built: Path) -> None:
    for path in built.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//', text), path
        assert not re.search(r'<link[^>]*\shref="(?:https?:)?//', text), path


# ---------------------------------------------------------------- small sites with these settings


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two pages, one of which leads to a file outside docs."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"nav": ["a.md", "b.md"], "plugins": [], "theme": "mkdocs"}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/hooks.py", tmp_path / "docs")
    (tmp_path / "hadaptive").mkdir()
    (tmp_path / "hadaptive/there.py").write_text("x = '```'\n# </pre>\n", encoding="utf-8")
    (tmp_path / "docs/a.md").write_text("# A\n\n[x](../hadaptive/there.py) [y](b.md#c)\n", encoding="utf-8")
    (tmp_path / "docs/b.md").write_text("# B\n\n## C\n", encoding="utf-8")
    return tmp_path


def test_a_link_leads_to_a_copy_of_the_file(small: Path) -> None:
    done = build(small, small / "site")
    assert done.returncode == 0, done.stderr
    assert 'href="source/hadaptive/there.py.html"' in (small / "site/a.html").read_text(encoding="utf-8")
    page = (small / "site/source/hadaptive/there.py.html").read_text(encoding="utf-8")
    assert "&lt;/pre&gt;" in page


MISTAKES = {
    "a file that is not there": ("../hadaptive/nothing.py", "hadaptive/nothing.py"),
    "a page that is not there": ("nothing.md", "nothing.md"),
    "a heading that is not there": ("b.md#nothing", "#nothing"),
    "a page without a line in mkdocs.yml": ("b.md", "c.md"),
}


@pytest.mark.parametrize(("link", "named"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_error(link: str, named: str, small: Path) -> None:
    (small / "docs/a.md").write_text(f"# A\n\n[x]({link})\n", encoding="utf-8")
    if named == "c.md":
        (small / "docs/c.md").write_text("# C\n", encoding="utf-8")
    done = build(small, small / "site")
    assert done.returncode != 0
    assert "in strict mode" in done.stdout + done.stderr
    assert named in done.stdout + done.stderr
