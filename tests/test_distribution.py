"""What is handed on: a wheel and an sdist that hold what they should and install into an empty environment."""

import email.message
import email.parser
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from documented import ROOT

import hadaptive

pytestmark = pytest.mark.slow
HERE = f"hadaptive-{hadaptive.__version__}"


def run(*words: object, folder: Path) -> str:
    """What a command prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, words)), cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, the wheel that is made of it, and in the folder direct the wheel that is made of this tree."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    run(
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        folder / "direct",
        folder=ROOT,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"{HERE}-py3-none-any.whl"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as file:
        return email.parser.Parser().parsestr(file.read(f"{HERE}.dist-info/METADATA").decode())


def test_the_sdist_makes_the_same_wheel(built: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as ours, zipfile.ZipFile(built / "direct" / wheel.name) as direct:
        assert ours.namelist() == direct.namelist()
        assert [name for name in ours.namelist() if ours.read(name) != direct.read(name)] == []


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "hadaptive").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if not name.startswith(f"{HERE}.dist-info/")} == package
    assert "hadaptive/py.typed" in names
    networks = {Path(name).name for name in names if name.startswith("hadaptive/models/networks/")}
    assert {
        "hadaptive_net2_s.json",
        "hadaptive_net2_s.digits.safetensors",
        "hadaptive_net2_s.digits.md",
    } <= networks
    assert f"{HERE}.dist-info/licenses/LICENSE" in names


def test_the_sdist_holds_what_it_takes_to_work_on_it(built: Path) -> None:
    with tarfile.open(built / f"{HERE}.tar.gz") as file:
        names = {name.removeprefix(f"{HERE}/") for name in file.getnames()}
    pages = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE", "Makefile"}
    assert pages <= names
    assert {"mkdocs.yml", "docs/hooks.py", "examples/train_and_predict.py", "tests/conftest.py"} <= names
    assert not [name for name in names if name.split("/")[0] in ("runs", "site", "dist", ".venv", ".git")]


def test_twine_is_content(built: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built.glob("hadaptive*"), folder=built)


def test_an_index_shows_a_page_without_broken_links(metadata: email.message.Message) -> None:
    """It has none of the files beside README."""
    page = str(metadata.get_payload())
    assert page.startswith("# Hadaptive")
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "| Your own images |" in page
    assert "Held-out digits after" not in page


def test_classifiers_and_addresses(metadata: email.message.Message) -> None:
    from trove_classifiers import classifiers

    ours = metadata.get_all("Classifier", [])
    assert ours
    assert set(ours) <= set(classifiers)
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2505.22226"]


def test_it_installs_into_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", folder=tmp_path)
    python = tmp_path / "venv/bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, folder=tmp_path)
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip()
    )
    # What it depends on is that of this environment, which has a later place on the path.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    where = run(python, "-c", "import hadaptive; print(hadaptive.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    command = tmp_path / "venv/bin/hadaptive"
    assert run(command, "--version", folder=tmp_path).strip() == hadaptive.__version__
    shown = run(command, "info", "hadaptive_net2_s", "--json", folder=tmp_path)
    assert json.loads(shown)["parameters"] > 200_000


# ---------------------------------------------------------------- how to cite it


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == hadaptive.__version__
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    paper = cited["preferred-citation"]
    assert paper["title"] in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_changelog_knows_this_version() -> None:
    assert hadaptive.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
