"""What a trained network sees in a person's own images."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hadaptive.cards import ModelCard
from hadaptive.console import console, say
from hadaptive.data import decode, eval_transform, to_eight_bit
from hadaptive.data.images import open_image
from hadaptive.data.labels import listed_files
from hadaptive.data.scan import Reason, left_out, order, scan_folder
from hadaptive.data.tables import is_table
from hadaptive.errors import UserError, first_line
from hadaptive.files import check_new_picture, json_text
from hadaptive.models.shipped import shipped_weights
from hadaptive.pictures import MOST_TILES, contact_sheet, tile_of
from hadaptive.runs import RunFolder


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, or why it could not be read.

    Attributes:
        image: its path.
        classes: (name, probability) pairs, likeliest first; empty when unreadable.
        error: None, or the reason.
        unknown: whether the likeliest class is less likely than it must be.
        present: the classes that count, likeliest first, of a network that gives an image any number of them;
            None of others.
    """

    image: str
    classes: list[tuple[str, float]]
    error: str | None = None
    unknown: bool = False
    present: list[str] | None = None


def find_images(paths: Iterable[Path], file_column: str | None = None) -> tuple[list[Path], str]:
    """The files named, and the images in the folders named, at any depth, and in label files, in natural order.

    Which files of a folder count is said in :mod:`hadaptive.data.scan`, for training and prediction alike.

    Args:
        paths: of files, folders and tables.
        file_column: of tables, that names the images; None for one of a usual name.

    Returns:
        Their paths, and a line about what was left out, empty where nothing was.

    Raises:
        UserError: a path does not exist, a folder may not be read, or there is no image at all.
    """
    found: list[Path] = []
    passed: Counter[Reason] = Counter()
    paths = [Path(path) for path in paths]
    for path in paths:
        if path.is_dir():
            tree = scan_folder(path)
            passed += tree.all_left_out()
            found += [path / image.path for image in sorted(tree.all_images(), key=order)]
        elif path.is_file() and is_table(path):
            found += listed_files(path, file_column)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"there is no file or folder {path}")
    if not found:
        but = f" ({left_out(passed)})" if passed else ""
        raise UserError(f"there are no images in {', '.join(map(str, paths))}{but}")
    return found, left_out(passed)


def _batches(items: list[Path], size: int) -> Iterator[list[Path]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@torch.no_grad()
def predict_images(
    model: Callable[[Tensor], Tensor],
    images: Iterable[Path],
    card: ModelCard,
    *,
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Predict image by image, in order; one that cannot be read gives a Prediction with an error.

    Args:
        model: (B, C, H, W) -> logits; a network in eval mode on the CPU, or what runs an exported file.
        images: paths of image files.
        card: of the network: its classes, how it sees images, how sure it is, and from which probability a class
            counts. Of a network for one class an image, one that is less likely is unknown.
        top: how many classes to give, at most as many as there are.
        batch_size: images per forward pass.

    Raises:
        UserError: top is not positive.
    """
    if top < 1:
        raise UserError(f"top must be at least 1, got {top}")
    classes, transform = card.classes, eval_transform(card.preprocessing)
    least = torch.tensor(card.limits)
    for batch in _batches(list(images), batch_size):
        tensors: list[Tensor] = []
        errors: dict[Path, str] = {}
        for path in batch:
            try:
                tensors.append(transform(open_image(path.read_bytes())))
            except OSError as error:
                errors[path] = error.strerror or first_line(error)
        rows = iter(card.probabilities(model(torch.stack(tensors))) if tensors else [])
        for path in batch:
            if path in errors:
                yield Prediction(str(path), [], errors[path])
                continue
            row = next(rows)
            order = row.argsort(descending=True, stable=True)
            counts = row >= least
            pairs = [(classes[i], float(row[i])) for i in order[:top].tolist()]
            if card.multi_label:
                yield Prediction(str(path), pairs, present=[classes[i] for i in order.tolist() if counts[i]])
            else:
                yield Prediction(str(path), pairs, unknown=not counts[order[0]])


def _open(path: Path, weights: str | None, trust: bool) -> tuple[Callable[[Tensor], Tensor], ModelCard]:
    """The network of a run folder, of an exported file, or of weights that come with the package."""
    if not path.exists():
        path = shipped_weights().get(str(path), path)
    from hadaptive.measure.formats import is_exported
    from hadaptive.measure.sessions import load

    if not is_exported(path):
        return RunFolder.open(path).load_model(weights)
    if weights is not None:
        raise UserError(f"--weights is of a run folder, and {path} was exported: leave it out")

    run, card = load(path, trust=trust)
    return lambda images: torch.from_numpy(run(images.numpy())), card


def predict_command(
    run_path: Path,
    paths: Iterable[Path],
    *,
    top: int,
    weights: str | None = None,
    as_json: bool = False,
    sheet: Path | None = None,
    trust: bool = False,
    reject_below: Sequence[str] = (),
    file_column: str | None = None,
) -> None:
    """Predict and print: a table, or a JSON object per line; optionally a contact sheet.

    Raises:
        UserError: no such run, exported file or images, the sheet exists, reject_below names no probability or no
            class, or not one image could be read.
    """
    from rich.table import Table

    if file_column is not None and not any(is_table(Path(path)) for path in paths):
        raise UserError("--file-column is of a table that names images, and none is given: leave it out")
    images, passed = find_images(paths, file_column)
    if sheet is not None:
        check_new_picture(sheet, "--sheet")
    model, card = _open(run_path, weights, trust)
    card = card.with_thresholds(reject_below)
    if passed:
        say(passed, error=as_json)
    table = Table()
    columns = ("image", "class", "probability", *(("counts",) if card.multi_label else ()))
    for column in columns:
        table.add_column(column, overflow="fold")  # a name that is cut off may be that of another image
    tiles: list[tuple[Image.Image, str, bool | None]] = []
    failed = 0
    for prediction in predict_images(
        model,
        images,
        card,
        top=top,
    ):
        failed += prediction.error is not None
        if as_json:
            say(json_text(dataclasses.asdict(prediction)))
        elif prediction.error is not None:
            table.add_row(prediction.image, "cannot be read", prediction.error, end_section=True)
        elif prediction.unknown:
            table.add_row(prediction.image, "unknown", "")
        for place, (name, probability) in enumerate(prediction.classes):
            last = place == len(prediction.classes) - 1
            image = "" if place or prediction.unknown else prediction.image
            counts = [] if prediction.present is None else ["yes" if name in prediction.present else ""]
            table.add_row(image, name, f"{probability:.2%}", *counts, end_section=last)
        if sheet is not None and prediction.error is None and len(tiles) < MOST_TILES:
            how = card.preprocessing
            image = decode(Path(prediction.image).read_bytes(), how.max_pixels)
            image = to_eight_bit(image, 3, how.white)
            tiles.append((tile_of(image), _caption(prediction), None))
    if not as_json:
        console().print(table)
    if sheet is not None and tiles:
        contact_sheet(tiles, sheet, f"predictions of {card.model}")
        if len(images) - failed > len(tiles):
            say(f"{sheet} shows the first {len(tiles)} of {len(images) - failed:,} images", error=as_json)
    if failed == len(images):
        raise UserError("not one of the images could be read")


def _caption(prediction: Prediction) -> str:
    if prediction.present is not None:
        return ", ".join(prediction.present) or "none"
    name, probability = prediction.classes[0]
    return f"{f'unknown, perhaps {name}' if prediction.unknown else name} ({probability:.0%})"
