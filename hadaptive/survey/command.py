"""``hadaptive data``: print what a data set holds, and leave what is suspected as rows and pictures."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hadaptive.console import console, say
from hadaptive.data.alike import reduced
from hadaptive.data.config import DataConfig
from hadaptive.data.listing import Listing
from hadaptive.data.manifest import Manifest
from hadaptive.data.places import find
from hadaptive.files import check_new_picture, json_text, refuse_existing, write_atomically, write_csv
from hadaptive.survey.report import Survey, survey
from hadaptive.text import shown

ROWS, GROUPS = 50, 10  # of classes and of groups that are printed
UNEVEN = 3  # times as many images of one class as of another, from where on flags are named
CSV_COLUMNS = ("group", "kind", "image", "class", "part", "like", "distance", "contradicts", "leaks")


def data_command(
    config: DataConfig,
    *,
    split: Path | None = None,
    as_json: bool = False,
    csv: Path | None = None,
    sheet: Path | None = None,
) -> Survey:
    """Look at a data set and print what it holds: tables, or one JSON object.

    Args:
        config: where it is.
        split: split.csv, or the folder of a run, whose parts are looked at for leaks.
        as_json: print JSON.
        csv: new file for a row of each suspected image.
        sheet: new PNG for suspected pairs, side by side.

    Raises:
        UserError: no such data or run, or a new file is there already.
    """
    refuse_existing(csv, "--csv")
    if sheet is not None:
        check_new_picture(sheet, "--sheet")
    manifest = None if split is None else Manifest.load(split)
    place = find(config)
    place.refuse_idle()
    listing = Listing(place.opened)
    with _bar(len(listing)) as seen:
        separator = config.label_separator if config.multi_label else None
        found = survey(listing, manifest, seen=seen, separator=separator)
    if as_json:
        say(json_text({"data": place.location.data, **found.to_dict()}))
    else:
        print_survey(found)
    if csv is not None:
        rows = suspects(found)
        write_atomically(csv, lambda path: write_csv(path, rows, list(CSV_COLUMNS)))
        say(f"suspects: {csv}, {len(rows):,} rows", error=as_json)
    if sheet is not None:
        _draw(found, listing, sheet, as_json)
    return found


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], object]]:
    """What to call after each image; a terminal shows a bar."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console(error=True), transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("looking at images", total=total)
        yield lambda: progress.advance(task)


def suspects(found: Survey) -> list[dict[str, object]]:
    """A row for each image that looks like another."""
    return [
        {
            "group": number,
            "kind": group.kind,
            "image": member.image,
            "class": member.label,
            "part": member.part,
            "like": member.like,
            "distance": "" if member.distance is None else member.distance,
            "contradicts": int(group.contradicts),
            "leaks": int(group.leaks),
        }
        for number, group in enumerate(found.groups, 1)
        for member in group.members
    ]


def print_survey(found: Survey) -> None:
    """Print the tables of a survey, and what follows from it."""
    from rich.table import Table

    out = console()
    for note in found.notes:
        say(note)
    about = Table(show_header=False)
    about.add_column()
    about.add_column(overflow="fold")
    parts = f" ({_counts(found.parts)})" if found.parts else ""
    about.add_row("images", f"{found.images:,}{parts}, {found.bytes / 1e6:,.1f} MB")
    for name, (low, middle, high) in found.sizes.items():
        form = ",.2f" if name == "aspect" else ",.0f"
        unit = "" if name == "aspect" else " pixels"
        about.add_row(name, f"{low:{form}} to {high:{form}}{unit}, median {middle:{form}}")
    about.add_row("modes", _counts(found.modes))
    about.add_row("formats", _counts(found.formats))
    out.print(about)
    table = Table(title="classes, largest first", title_justify="left")
    table.add_column("class", overflow="fold")
    shares = [*found.parts]
    for column in ("images", *shares):
        table.add_column(column, justify="right")
    by_size = sorted(found.classes.items(), key=lambda item: -sum(item[1].values()))
    for name, counts in by_size[:ROWS]:
        table.add_row(name, f"{sum(counts.values()):,}", *(f"{counts.get(part, 0):,}" for part in shares))
    out.print(table)
    if len(by_size) > ROWS:
        say(f"and {len(by_size) - ROWS:,} smaller classes")
    if found.imbalance >= UNEVEN:
        times = f"{found.imbalance:.1f} times the images of the smallest"
        ways = "--class-weights" if found.several else "--balanced or --class-weights"
        say(f"the largest class has {times}: train with {ways}")
    if found.unreadable:
        table = Table(title=f"cannot be read: {len(found.unreadable):,}", title_justify="left")
        for column in ("image", "reason"):
            table.add_column(column, overflow="fold")
        for image, _, reason in found.unreadable[:GROUPS]:
            table.add_row(image, reason)
        out.print(table)
    if found.groups:
        out.print(_table_of(found))
        if (more := len(found.groups) - GROUPS) > 0:
            say(f"and {more:,} more groups: --csv FILE lists them, --sheet FILE.png shows pairs")
    _say_groups(found)


def _say_groups(found: Survey) -> None:
    """What the groups amount to, and what to do about it."""
    if not found.groups:
        say("no two images look alike")
        return
    copies = sum(group.kind == "exact" for group in found.groups)
    number = len(found.groups)
    said = "1 group of images looks" if number == 1 else f"{number:,} groups of images look"
    say(f"{said} alike: {copies:,} of exact copies, {number - copies:,} of suspected near-duplicates")
    if number := len(found.contradictions):
        of = "1 of them has" if number == 1 else f"{number:,} of them have"
        say(f"{of} different labels: look which is right")
    if number := len(found.leaks):
        of = "1 of them is" if number == 1 else f"{number:,} of them are"
        cure = "train anew with --group-by duplicates" if found.of_run else "leave each in one part"
        say(f"{of} in more than one part, so that figures are too good: {cure}")


def _table_of(found: Survey):
    from rich.table import Table

    table = Table(title="look alike", title_justify="left")
    for column in ("image", "class", *(("part",) if found.parts else ()), "bits apart", ""):
        table.add_column(column, overflow="fold")
    for group in found.groups[:GROUPS]:
        doubts = [what for what, there in (("leak", group.leaks), ("labels", group.contradicts)) if there]
        more = len(group.members) - GROUPS
        for place, member in enumerate(group.members[:GROUPS]):
            distance = "" if not member.like else "copy" if member.distance is None else str(member.distance)
            part = (member.part,) if found.parts else ()
            last = more <= 0 and place == len(group.members) - 1
            said = ", ".join(doubts) if place == 0 else ""
            table.add_row(member.image, member.label, *part, distance, said, end_section=last)
        if more > 0:
            table.add_row(f"and {more:,} more", end_section=True)
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{shown(name)} {count:,}" for name, count in counts.items())


def _draw(found: Survey, listing: Listing, path: Path, as_json: bool) -> None:
    """Pairs side by side, as many as a sheet holds."""
    from hadaptive.pictures import MOST_TILES, contact_sheet, tile_of  # PyTorch takes half a gigabyte

    tiles = []
    pairs = []
    for group in found.groups:
        named = {member.image: member for member in group.members}
        pairs += [(group, member, named[member.like]) for member in group.members if member.like]
    if not pairs:
        say("no two images look alike: there is no sheet to draw", error=as_json)
        return
    for group, member, other in pairs[: MOST_TILES // 2]:
        doubtful = False if group.leaks or group.contradicts else None
        for each in (other, member):
            number = each.number
            image, _ = listing.sources[listing.origins[number]].read(int(listing.indices[number]))
            # A tile is narrow: the file's own name, which --csv has whole.
            about = ", ".join(filter(None, (each.image.rpartition("/")[2], each.label, each.part)))
            tiles.append((tile_of(reduced(image)), about, doubtful))
    number = f"the first {MOST_TILES // 2} of {len(pairs):,}" if len(tiles) == MOST_TILES else f"{len(pairs):,}"
    contact_sheet(tiles, path, f"{number} pairs that look alike; red: in two parts, or with two labels")
    say(f"pairs: {path}", error=as_json)
