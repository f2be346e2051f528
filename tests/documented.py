"""The commands and scripts that README, docs and the Makefile show, in their order."""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md")
PROGRAMS = ("hadaptive", "python", "torchrun", "make", "pip")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Shown:
    """What is shown under one heading of a document.

    Attributes:
        heading: the document and the heading.
        commands: lines to type, without their comments, from blocks and from running text.
        scripts: blocks of Python.
    """

    heading: str
    commands: tuple[str, ...]
    scripts: tuple[str, ...]


def _is_command(text: str) -> bool:
    """Whether this is typed as it stands; a command's bare name is a word of the sentence around it."""
    words = text.split()
    bare = 1 if words[:1] == ["make"] else 3 if words[:3] == ["python", "-m", "benchmarks"] else 2
    return len(words) > bare and words[0] in PROGRAMS


def sections() -> list[Shown]:
    """Every section of every document that shows something."""
    found = []
    for document in DOCUMENTS:
        for part in re.split(r"^(?=#+ )", document.read_text(encoding="utf-8"), flags=re.MULTILINE):
            blocks = FENCE.findall(part)
            commands = [
                line.split("  #")[0].split(" #")[0].strip()
                for language, block in blocks
                if not language
                for line in block.splitlines()
            ]
            quoted = (" ".join(text.split()) for text in re.findall(r"`([^`]+)`", FENCE.sub("", part)))
            commands += [text for text in quoted if _is_command(text)]
            scripts = [block for language, block in blocks if language == "python"]
            if commands or scripts:
                heading = f"{document.name}, {part.splitlines()[0].strip('# ')}"
                found.append(Shown(heading, tuple(dict.fromkeys(filter(None, commands))), tuple(scripts)))
    return found


def recipes() -> dict[str, tuple[str, ...]]:
    """The scripts of docs/recipes.md by their headings."""
    found = [section for section in sections() if section.heading.startswith("recipes.md, ")]
    return {section.heading.partition(", ")[2]: section.scripts for section in found if section.scripts}


def targets() -> dict[str, list[str]]:
    """Every target of the Makefile and the commands of ours that it would type, set-up aside."""
    names = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: _typed_by(name) for name in names}


def _typed_by(target: str) -> list[str]:
    dry = ["make", "--dry-run", "--always-make", target, "VENV=.venv"]
    done = subprocess.run(dry, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    found = []
    for line in re.split(r"\n|&&|\|\|", done.stdout.replace("\\\n", " ")):
        words = shlex.split(line.replace(".venv/bin/", ""))
        if words[:1] == ["hadaptive"] or words[1:3] == ["-m", "benchmarks"]:
            found.append(shlex.join(words))
    return found
