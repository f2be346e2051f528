"""What the site has beside docs/*.md: README as its home, files that pages link to, and reference pages.

Pages are plain Markdown that reads well in the repository. Their links to files outside docs lead to those files
there, and here to a copy of them, so that the site needs no repository behind it.
"""

import ast
import contextlib
import io
import os
import posixpath
import re
import sys
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Pages of the repository's root, and where they are in the site.
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
# What the reference describes: a package with all that it exports, or a module with the names that are public.
REFERENCE: dict[str, tuple[str, ...]] = {
    "hadaptive.nn": (),
    "hadaptive.ops": (),
    "hadaptive.models": (),
    "hadaptive.data": (),
    "hadaptive.train": (),
    "hadaptive.search": (),
    "hadaptive.evaluate": ("evaluate_run",),
    "hadaptive.predict": ("predict_images", "find_images", "Prediction"),
    "hadaptive.export": ("config.ExportConfig", "command.export_command"),
    "hadaptive.runs": ("RunFolder",),
}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")
PICTURES = (".png", ".jpg", ".svg")
LANGUAGES = {".py": "python", ".json": "json", ".csv": "text"}

_origins: dict[str, PurePosixPath] = {}  # of each page of the site, its file in the repository


def place_of(path: PurePosixPath, root: Path) -> str:
    """Where a file or folder of the repository is in the site."""
    if path.parts[0] == "docs":
        return str(path.relative_to("docs"))
    if str(path) in ROOT_PAGES:
        return ROOT_PAGES[str(path)]
    if (root / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}" if path.suffix in (".md", *PICTURES) else f"source/{path}.md"


def linked(markdown: str, origin: PurePosixPath, root: Path) -> dict[str, PurePosixPath]:
    """Links of a page that lead to something of the repository, and what it is."""
    found = {}
    for target in LINK.findall(markdown):
        path = PurePosixPath(posixpath.normpath(str(origin.parent / target)))
        if ":" not in target and path.parts[0] != ".." and (root / path).exists():
            found[target] = path
    return found


def as_page(path: PurePosixPath, root: Path) -> str:
    """A page that shows a file, or what is in a folder."""
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if (root / path).is_dir():
        names = sorted(entry.name for entry in (root / path).iterdir() if not entry.name.startswith(("_", ".")))
        shown = (".md", ".py", ".json", *PICTURES)
        rows = (f"[{name}]({path.name}/{name})" if name.endswith(shown) else name for name in names)
        return head + "\n".join(f"- {row}" for row in rows)
    text = (root / path).read_text(encoding="utf-8")
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text) or [""]))
    return f"{head}{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text}\n{fence}\n"


def exports(package: str, root: Path) -> dict[str, list[str]]:
    """What a package exports, by the module that each name comes from."""
    folder = root / package.replace(".", "/")
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.is_file() else stub.with_suffix(".py")).read_text(encoding="utf-8"))
    origin = {
        alias.asname or alias.name: str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    found: dict[str, list[str]] = {}
    for name in listed:
        found.setdefault(origin.get(name, package), []).append(name)
    return dict(sorted(found.items()))


def first_line(module: str, root: Path) -> str:
    """Of a module's docstring, without the roles of names."""
    path = root / f"{module.replace('.', '/')}.py"
    path = path if path.is_file() else path.with_suffix("") / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.sub(r":\w+:(?=`)", "", text.partition("\n\n")[0])


def reference(package: str, root: Path) -> str:
    """The page of one package or module."""
    names = REFERENCE[package]
    lines = [f"# {package}", "", first_line(package, root), ""]
    for module, members in ({package: list(names)} if names else exports(package, root)).items():
        if module != package:
            lines += [f"## {module.rpartition('.')[2]}", "", first_line(module, root), ""]
        lines += [f"::: {package}.{name}\n" for name in members]
    return "\n".join(lines)


def commands(root: Path) -> str:
    """The page of the command line: what each command's --help prints."""
    sys.path.insert(0, str(root))  # this tree's, whatever else is installed
    from hadaptive.bench.commands import BENCHMARKS
    from hadaptive.cli import COMMANDS, main

    all_of_them = {name: about for name, (_, about) in COMMANDS.items() if name != "bench"}
    all_of_them |= {f"bench {name}": about for name, (_, about) in BENCHMARKS.items()}
    lines = ["# The command line\n\nWhat `hadaptive COMMAND --help` prints; a `--recipe` has its own defaults.\n"]
    os.environ["COLUMNS"] = "78"
    for name, about in all_of_them.items():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])
        lines += [f"## hadaptive {name}", "", f"{about[0].upper()}{about[1:]}.", ""]
        lines += ["```text", printed.getvalue(), "```", ""]
    return "\n".join(lines)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is not in docs."""
    root = Path(config.config_file_path).parent
    _origins.clear()
    todo = [PurePosixPath("docs", file.src_uri) for file in files.documentation_pages()]
    todo += [PurePosixPath(name) for name in ROOT_PAGES if (root / name).is_file()]
    known = set(todo)
    while todo:
        path = todo.pop()
        place = place_of(path, root)
        if path.suffix in PICTURES:
            if path.parts[0] != "docs":
                files.append(File.generated(config, place, abs_src_path=str(root / path)))
            continue
        plain = path.suffix == ".md"
        text = (root / path).read_text(encoding="utf-8") if plain else as_page(path, root)
        _origins[place] = path
        if path.parts[0] != "docs":
            files.append(File.generated(config, place, content=text))
        if plain or (root / path).is_dir():
            new = set(linked(text, path, root).values()) - known
            todo += sorted(new)
            known |= new
    if "api" in str(config.nav):
        for package in REFERENCE:
            page = f"api/{package.rpartition('.')[2]}.md"
            files.append(File.generated(config, page, content=reference(package, root)))
        files.append(File.generated(config, "api/commands.md", content=commands(root)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where things are in the site."""
    root = Path(config.config_file_path).parent
    origin = _origins.get(page.file.src_uri)
    if origin is None or (origin.suffix != ".md" and not (root / origin).is_dir()):
        return markdown
    here = posixpath.dirname(page.file.src_uri) or "."
    found = linked(markdown, origin, root)
    places = {target: posixpath.relpath(place_of(path, root), here) for target, path in found.items()}
    return LINK.sub(lambda link: places.get(link[1], link[1]), markdown)
