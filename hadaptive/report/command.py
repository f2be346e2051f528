"""`hadaptive report`: one HTML file of a training or a search."""

from pathlib import Path

from hadaptive.console import say
from hadaptive.errors import UserError
from hadaptive.report.page import check_place
from hadaptive.report.run import RunReport
from hadaptive.report.search import search_report
from hadaptive.report.several import SeveralReport
from hadaptive.runs import RunFolder

NAME = "report.html"


def report_command(
    path: Path,
    *,
    output: Path | None = None,
    split: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    cpu: bool = False,
) -> Path:
    """Write the report of a training or a search, and say where.

    A run that was not evaluated with the weights that it has is evaluated first.

    Args:
        path: its folder.
        output: a new file; None for report.html in the folder, where an older report is written anew.
        split: of a training, the part that it is judged on; None for the test part, or validation where there is
            no other.
        data, data_dir: where the images lie now, if they have moved since.
        cpu: evaluate on the CPU even where there is a GPU.

    Raises:
        UserError: it is no such folder, or the file cannot be written there.
    """
    place = path / NAME if output is None else output
    searched = (path / "space.json").is_file()
    if not searched:
        RunFolder.open(path)
    check_place(place, own=output is None)
    if searched:
        for name, value in (("split", split), ("data", data), ("data-dir", data_dir), ("cpu", cpu or None)):
            if value is not None:
                raise UserError(f"--{name} is of a training, and {path} is the folder of a search: leave it out")
        report = search_report(path)
    else:
        run = RunFolder.open(path)
        kind = SeveralReport if run.read_card().multi_label else RunReport
        report = kind(run, split, data, data_dir, cpu).report()
    report.write(place)
    say(f"report: {place}")
    return place
