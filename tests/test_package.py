"""The package as a whole: a light import, walls that hold, and no unpickling."""

import ast
import functools
import importlib
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from networks import REGISTERED
from packaging.version import Version

import hadaptive
from hadaptive.bench.commands import BENCHMARKS
from hadaptive.cli import COMMANDS

ROOT = Path(hadaptive.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])

# A room may import those before it, and itself; no two rooms of one line import each other.
ORDER = (
    ("text",),
    ("lazy", "errors", "console", "provenance"),
    ("files", "settings", "packages", "parsing"),
    ("pictures", "jobs"),
    ("ops",),
    ("nn",),
    ("models",),
    ("registration",),
    ("data",),
    ("cards", "metrics", "mistakes", "survey"),
    ("multi_label",),
    ("runs",),
    ("measure",),
    ("engine",),
    ("train",),
    ("info", "doctor", "compare"),
    ("evaluate", "dry_run"),
    ("search", "export"),
    ("predict", "report"),
    ("demo", "bench", "commands"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}


def fresh_python(code, *arguments):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What an import of the package must not load, nor a command before it runs.
HEAVY = {"torch", "torchvision", "timm", "numpy", "PIL", "matplotlib", "accelerate", "sklearn"}
HEAVY |= {
    "torchmetrics",
    "scipy",
    "numba",
    "pandas",
    "safetensors",
    "webdataset",
    "datasets",
    "onnx",
    "jinja2",
    "captum",
}


def test_importing_the_package_loads_nothing_heavy():
    loaded = set(fresh_python("import sys, hadaptive, hadaptive; print(*sys.modules)").split())
    assert loaded & {*HEAVY, "tyro", "rich"} == set()
    assert {name.split(".")[1] for name in loaded if name.startswith("hadaptive.")} == {"lazy", "registration"}


def test_a_process_that_times_a_file_imports_no_pytorch():
    loaded = fresh_python("import sys, hadaptive.measure.alone; print(*sys.modules)").split()
    assert set(loaded) & {"torch", "timm"} == set()


LIGHT = ["", *COMMANDS, *(f"bench {name}" for name in BENCHMARKS)]
LINES = [f"{command} {flag}".strip() for command in LIGHT for flag in ("--help", "--nonsense")]


@pytest.fixture(scope="module")
def brought() -> dict[str, tuple[int, list[str]]]:
    """The exit status of every command's help and misspelt flag, and the modules that it was the first to load."""
    code = """
import contextlib, io, json, sys
from hadaptive.cli import main
brought = {}
for line in sys.argv[1:]:
    before = set() if not brought else set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = main(line.split())
        except SystemExit as stopped:
            status = stopped.code
    brought[line] = status, sorted(set(sys.modules) - before)
print(json.dumps(brought))
"""
    return json.loads(fresh_python(code, *LINES))


@pytest.mark.parametrize("line", LINES)
def test_neither_help_nor_a_mistake_in_the_flags_loads_anything_heavy(line, brought):
    status, loaded = brought[line]
    assert status == 0 if line.endswith("--help") else status in (1, 2)
    assert set(loaded) & HEAVY == set()


def test_import_registers_the_networks():
    models, loaded = fresh_python(
        "import hadaptive, sys, timm; print(*timm.list_models('hadaptive*')); print(*sys.modules)"
    ).splitlines()  # two lines: the import itself prints nothing
    assert sorted(models.split()) == sorted(REGISTERED)
    loaded = set(loaded.split())
    # What torch and timm load by themselves (numpy, PIL, torchvision, safetensors...) is not ours to forbid.
    brought = {"torch", "torchvision", "timm", "numpy", "PIL", "safetensors"}
    assert loaded & {*HEAVY - brought, "tyro", "rich"} == set()
    ours = {name.split(".")[1] for name in loaded if name.startswith("hadaptive.")}
    assert ours == {"lazy", "registration", "errors", "packages", "ops", "nn", "models"}


@pytest.mark.parametrize(
    "imports",
    [
        "import timm.models, hadaptive",
        "import hadaptive.nn, timm",
        "import hadaptive, threading; from importlib.util import find_spec; find_spec('timm'); "
        "t = threading.Thread(target=__import__, args=('hadaptive.models',)); t.start(); import timm; t.join()",
    ],
    ids=["timm first", "a part first", "two threads"],
)
def test_timm_and_torch_know_what_is_ours_whatever_comes_first(imports):
    code = f"{imports}; import sys; from timm import list_models; print(len(list_models('hadaptive*'))); "
    # The loader is timm's own, which others ask for its files.
    code += "print(type(sys.modules['timm'].__loader__).__name__); "
    code += "import torch; print(torch.ops.hadaptive.cross_hadamard_expand.default.name())"
    assert fresh_python(code).split() == [
        str(len(REGISTERED)),
        "SourceFileLoader",
        "hadaptive::cross_hadamard_expand",
    ]


STUBS = sorted(ROOT.rglob("__init__.pyi"))


@pytest.mark.parametrize("stub", STUBS, ids=[str(path.relative_to(ROOT)) for path in STUBS])
def test_every_name_of_a_stub_is_there(stub):
    package = importlib.import_module(".".join(stub.relative_to(ROOT.parent).parts[:-1]))
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    listed = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert sorted({*package.__all__, *({"__version__"} & set(listed))}) == sorted(listed)
    assert set(listed) <= set(dir(package))
    for name in listed:
        assert not (stub.parent / f"{name}.py").exists(), "a module of that name would take its place"
        assert getattr(package, name) is getattr(package, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


# ---------------------------------------------------------------- walls


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """What a file says, read once for all tests."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def imported_modules(path):
    """Modules of this package that a file imports, anywhere in it, as dotted names."""
    package = ("hadaptive", *path.relative_to(ROOT).parts[:-1])
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from hadaptive import ops` names a module only in its second half.
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "hadaptive")


def room(parts):
    return parts[0].removesuffix(".py")


def test_every_room_has_its_floor():
    assert {room(path.relative_to(ROOT).parts) for path in FILES} - {"__init__"} == set(FLOOR)


@each_file
def test_nothing_imports_upwards(path):
    here = room(path.relative_to(ROOT).parts)
    if here == "__init__":
        assert {name.split(".")[1] for name in imported_modules(path)} <= {"lazy", "registration"}
        return
    for name in imported_modules(path):
        there = room(name.split(".")[1:])
        if there not in ("__version__", here):
            assert FLOOR[there] < FLOOR[here], f"{here} imports {name}"


@each_file
def test_what_measures_the_project_is_not_imported(path):
    """The folder benchmarks of a checkout is not installed; only the command line knows of hadaptive.bench."""
    for node in nodes(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not any(name.split(".")[0] == "benchmarks" for name in names)
    here = room(path.relative_to(ROOT).parts)
    if here not in ("bench", "cli"):
        assert not any(name.startswith("hadaptive.bench") for name in imported_modules(path))


def test_search_and_export_know_nothing_of_each_other() -> None:
    for one, other in (("search", "export"), ("export", "search")):
        for path in (ROOT / one).rglob("*.py"):
            assert not [name for name in imported_modules(path) if name.split(".")[1] == other], path


def test_the_package_knows_nothing_of_its_benchmarks() -> None:
    for path in FILES:
        assert not re.search(r"\b(from|import) benchmarks\b", path.read_text()), path


def test_the_wall_test_sees_imports(tmp_path, monkeypatch):
    (tmp_path / "nn").mkdir()
    path = tmp_path / "nn" / "ach.py"
    path.write_text(
        "import hadaptive.cli\nfrom hadaptive import ops\nfrom . import ghost\n"
        "def f():\n    from hadaptive.models.spec import NetSpec\n    from ..train import trainer\n    import os\n"
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert set(imported_modules(path)) == {
        "hadaptive.cli",
        "hadaptive.ops",
        "hadaptive.nn.ghost",
        "hadaptive.models.spec.NetSpec",
        "hadaptive.train.trainer",
    }
    with pytest.raises(AssertionError, match="nn imports"):
        test_nothing_imports_upwards(path)


@each_file
def test_timms_private_files_are_left_alone(path):
    for node in nodes(path):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            assert not re.match(r"timm\..*\b_", name), name


# ---------------------------------------------------------------- safety and form


@each_file
def test_nothing_is_unpickled(path):
    """But what our own processes hand each other, in one place."""
    text = path.read_text()
    if path == ROOT / "jobs/exchange.py":
        assert len(re.findall(r"pickle\.loads", text)) == 2
        return
    assert not re.search(r"pickle\.loads?\b|weights_only\s*=\s*False|allow_pickle\s*=\s*True", text)
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "pickle"):
            assert not {alias.name for alias in node.names} & {"load", "loads", "Unpickler"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in [ast.unparse(keyword) for keyword in node.keywords]


@each_file
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def test_typed():
    assert resources.files("hadaptive").joinpath("py.typed").is_file()


def test_version():
    assert str(Version(hadaptive.__version__)) == hadaptive.__version__
