"""A report as data, and its one HTML file: no script, no request, all text escaped."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from hadaptive.errors import UserError
from hadaptive.files import refuse_existing, write_atomically
from hadaptive.text import shown

GENERATOR = "hadaptive report"  # by which a report of ours is known


@dataclass(frozen=True)
class Note:
    """A paragraph; a warning stands out."""

    text: str
    warning: bool = False
    kind: str = "note"


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    rows: Sequence[tuple[str, str]]
    kind: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows of text under a caption; `numbers` are the columns that are aligned as such."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    kind: str = "table"


@dataclass(frozen=True)
class Matrix:
    """Counts, rows true and columns predicted; shares of the row, in [0, 1], are the shades."""

    caption: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    shares: Sequence[Sequence[float]]
    kind: str = "matrix"


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        source: data URI.
        alt: what is on it, in words.
        caption: below it, one line each.
        pixels: whether its pixels are to be seen, as of a small image.
    """

    source: str
    alt: str
    caption: Sequence[str] = ()
    pixels: bool = False


@dataclass(frozen=True)
class Figures:
    """Pictures side by side: "charts", "tiles", or "wide", which scrolls where there is no room."""

    pictures: Sequence[Figure]
    size: str = "charts"
    kind: str = "figures"


@dataclass(frozen=True)
class Command:
    """What to type into a shell."""

    about: str
    line: str
    kind: str = "command"


Block = Note | Facts | Table | Matrix | Figures | Command


@dataclass
class Section:
    """A part of a report under a heading."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass
class Report:
    """All of it.

    Attributes:
        title: of the page.
        lead: the one sentence that says most.
        sections: in order; empty ones are left out.
        made: when and by what, for its foot.
    """

    title: str
    lead: str
    sections: list[Section]
    made: str

    def html(self) -> str:
        """The page."""
        environment = Environment(
            loader=PackageLoader("hadaptive.report", ""),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_shown,
        )
        sections = [section for section in self.sections if section.blocks]
        template = environment.get_template("page.html.j2")
        return template.render(report=self, sections=sections, generator=GENERATOR)

    def write(self, path: Path) -> None:
        """Write it atomically.

        Raises:
            UserError: it cannot be written.
        """
        text = self.html()
        write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def _shown(value: object) -> object:
    """Text without halves of characters, which UTF-8 does not have, and without what turns a line around."""
    return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def check_place(path: Path, *, own: bool) -> None:
    """Raise one clear UserError if a report cannot be written there.

    Args:
        path: where.
        own: whether a report of ours that is there is written anew.
    """
    if not own or not path.exists():
        refuse_existing(path, "--output")
        return
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            start = file.read(2000)
    except OSError as error:
        raise UserError(f"{path} cannot be written anew: {error.strerror}") from None
    if f'content="{GENERATOR}"' not in start:
        raise UserError(f"{path} is no report of hadaptive's and is not overwritten: pass --output")


def data_uri(content: bytes, kind: str) -> str:
    """A file within a page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture_uri(image: Image.Image, *, exact: bool) -> str:
    """An image within a page: as PNG where it must be exact, else as JPEG."""
    content = io.BytesIO()
    if exact:
        image.save(content, "PNG", optimize=True)
    else:
        image.convert("RGB").save(content, "JPEG", quality=85)
    return data_uri(content.getvalue(), "png" if exact else "jpeg")


def picture_file(path: Path, alt: str, size: str = "wide", most: int = 1800) -> list[Block]:
    """A picture of a folder where it is there, or a line where it is damaged.

    Args:
        path: of the file.
        alt: what is on it, in words.
        size: as of :class:`Figures`.
        most: pixels of its width.
    """
    try:
        return [Figures([Figure(_file_uri(path, most), alt)], size)] if path.is_file() else []
    except OSError:
        return [Note(f"{path.name} is damaged.", warning=True)]


def _file_uri(path: Path, most: int) -> str:
    """A picture file within a page, no wider than `most` pixels.

    Raises:
        OSError: it is no picture.
    """
    with Image.open(path) as image:
        image.load()
        if image.width <= most:
            return data_uri(path.read_bytes(), (image.format or "png").lower())
        return picture_uri(image.resize((most, round(image.height * most / image.width))), exact=True)
