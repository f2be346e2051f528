"""Which images look alike: exact copies, and near-duplicates by a perceptual hash (ImageHash's phash).

A picture that was saved again, resized or made lighter keeps its hash but for a few of its 64 bits. Hashes that
are close make a suspicion, which thumbnails confirm: plain pictures have nothing that a hash could tell apart.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hadaptive.data.config import MOST_PIXELS
from hadaptive.data.images import load, open_image, to_eight_bit
from hadaptive.data.listing import Listing
from hadaptive.data.manifest import digest_of
from hadaptive.errors import first_line
from hadaptive.jobs import machine
from hadaptive.packages import obstacle, require

INSTALL = '"hadaptive[duplicates]"'
DISTANCE = 10  # of 64 bits, up to which two hashes are close
THUMBNAIL = 12  # pixels a side
SIDE = 192  # pixels that an image is reduced to, or nearly, before anything else is done with it
LARGE = 24_000_000  # pixels, of an image that is read while no other such is, for the memory's sake
BLOCK, PAIRS = 512, 16384  # hashes compared with all others, and pairs of thumbnails compared, at once
# What two thumbnails may differ by: their correlation, and their mean difference in [0, 255]; where one is plain,
# with a contrast below PLAIN, the latter alone decides. Tried on tiles of photographs, saved again, resized,
# lighter and cropped, of which nearly all but the cropped are found and none that shows something else; and on
# Fashion-MNIST at 28x28, where looser values join hundreds of garments into one group.
CORRELATION, APART, PLAIN, APART_PLAIN = 0.98, 26.0, 4.0, 2.0
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Look:
    """What one image looks like.

    Attributes:
        digest: of its contents; empty where they cannot be read.
        size: bytes.
        width, height: pixels, as it is shown.
        mode: Pillow's, such as RGB, L or P.
        format: Pillow's, such as JPEG.
        error: why it cannot be read; None where it can.
        hash: uint8 (8,), of 64 bits; None without ImageHash.
        thumbnail: uint8 (THUMBNAIL * THUMBNAIL * 3,), RGB.
    """

    digest: str = ""
    size: int = 0
    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    error: str | None = None
    hash: np.ndarray | None = None
    thumbnail: np.ndarray | None = None


def look(listing: Listing, seen: Callable[[], object] = lambda: None, *, needed: bool = True) -> list[Look]:
    """Look at every image of a listing, each read once, with as many threads as there are cores.

    Args:
        listing: of the images.
        seen: called after each.
        needed: whether hashes are what this is for; without, they are left out where ImageHash is not installed.

    Raises:
        UserError: hashes are needed, and ImageHash is not installed.
    """
    if needed:
        require(("imagehash",), "looking for near-duplicates", INSTALL)
    hashed = obstacle("imagehash") is None

    def one(number: int) -> Look:
        source, index = listing.sources[listing.origins[number]], int(listing.indices[number])
        try:
            content = source.content(index)
        except OSError as error:
            return Look(error=error.strerror or first_line(error))
        digest = digest_of(content)
        try:
            image = source.read(index)[0] if listing.opened.in_memory else open_image(content)
            return _looked_at(image, digest, len(content), hashed)
        except OSError as error:
            return Look(digest, len(content), error=error.strerror or first_line(error))

    # Those of single images are hidden one by one, which threads would undo for each other.
    with warnings.catch_warnings(), ThreadPoolExecutor(machine.cores()) as pool:
        warnings.filterwarnings("ignore", module="PIL")
        looks = []
        for result in pool.map(one, range(len(listing))):
            looks.append(result)
            seen()
    return looks


def _looked_at(image: Image.Image, digest: str, size: int, hashed: bool) -> Look:
    width, height, mode, kind = *image.size, image.mode, image.format or ""
    small = reduced(image)
    if (small.width > small.height) != (width > height) and small.width != small.height:  # turned by its EXIF data
        width, height = height, width
    thumbnail = np.asarray(small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)).ravel()
    return Look(digest, size, width, height, mode, kind, None, _hash(small) if hashed else None, thumbnail)


def reduced(image: Image.Image) -> Image.Image:
    """An image that was opened as 8-bit RGB, its short side SIDE pixels or somewhat more, where it had more.

    Raises:
        OSError: it is damaged, or too large.
    """
    pixels = image.width * image.height
    if image.format in ("JPEG", "MPO") and pixels <= MOST_PIXELS:
        image.draft(None, (SIDE, SIDE))
        pixels = 0
    with _one_at_a_time if pixels > LARGE else nullcontext():
        image = load(image)
        factor = min(image.size) // SIDE
        if factor > 1 and image.mode in ("L", "RGB", "RGBA", "CMYK") and "transparency" not in image.info:
            image = image.reduce(factor)
        return to_eight_bit(image, 3)


def _hash(image: Image.Image) -> np.ndarray:
    import imagehash

    bits: Any = imagehash.phash(image).hash
    return np.packbits(bits.ravel())


@dataclass(frozen=True)
class Alike:
    """Which images of a list look alike.

    Attributes:
        groups: int64 (N,), the first image of each image's group: itself where it is like no other. Images are in
            one group that are alike, or are so by others in between.
        like: int64 (N,), the earlier image that is most like it; -1 where there is none.
        distance: int64 (N,), bits in which their hashes differ; -1 for exact copies, and where there is none.
    """

    groups: np.ndarray
    like: np.ndarray
    distance: np.ndarray


def alike(looks: Sequence[Look]) -> Alike:
    """Find exact copies and, among images that have hashes, near-duplicates: in blocks, not pair by pair."""
    count = len(looks)
    like, distance = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
    first: dict[str, int] = {}
    for i, seen in enumerate(looks):
        earlier = first.setdefault(seen.digest if seen.error is None else f"#{i}", i)
        if earlier != i:
            like[i] = earlier
    groups = np.where(like >= 0, like, np.arange(count))
    hashed = np.array([i for i in first.values() if looks[i].hash is not None], np.int64)
    for later, earlier, bits in _close(looks, hashed):
        order = np.lexsort((earlier, bits))
        later, earlier, bits = later[order], earlier[order], bits[order]
        images, closest = np.unique(later, return_index=True)
        like[images], distance[images] = earlier[closest], bits[closest]  # all pairs of an image are in one block
        groups = _joined(groups, later, earlier)
    return Alike(groups, like, distance)


def _joined(groups: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Groups as before, but that those of some pairs of images are one; each is called by its first image."""
    count = len(groups)
    rows, columns = np.concatenate([np.arange(count), one]), np.concatenate([groups, other])
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, lowest, places = np.unique(labels, return_index=True, return_inverse=True)
    return lowest[places].astype(np.int64)


def _close(looks: Sequence[Look], images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs (later, earlier, bits that differ) of some images, each int64 (M,), in blocks of the later ones."""
    if len(images) < 2:
        return
    bits = np.unpackbits(np.stack([looks[i].hash for i in images.tolist()]), axis=1)  # pyright: ignore
    signs = np.where(bits, np.float32(1), np.float32(-1))  # (N, 64): a product counts the bits that agree
    pictures = np.stack([looks[i].thumbnail for i in images.tolist()])  # pyright: ignore
    grey = pictures.reshape(len(images), -1, 3).mean(axis=2, dtype=np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    contrast = grey.std(axis=1)
    grey /= (np.linalg.norm(grey, axis=1, keepdims=True)).clip(min=1e-6)
    for start in range(0, len(images), BLOCK):
        stop = min(start + BLOCK, len(images))
        products = signs[start:stop] @ signs[:stop].T
        found = []
        later, earlier = np.nonzero(products >= 64 - 2 * DISTANCE)
        kept = earlier < later + start
        later, earlier = later[kept] + start, earlier[kept]
        for some in range(0, len(later), PAIRS):
            one, other = later[some : some + PAIRS], earlier[some : some + PAIRS]
            apart = np.abs(pictures[one].astype(np.int16) - pictures[other]).mean(axis=1)
            same = (grey[one] * grey[other]).sum(axis=1) >= CORRELATION
            plain = np.minimum(contrast[one], contrast[other]) < PLAIN
            found.append(np.where(plain, apart <= APART_PLAIN, same & (apart <= APART)))
        if not found:
            continue
        sure = np.concatenate(found)
        later, earlier = later[sure], earlier[sure]
        if len(later):
            differ = np.rint((64 - products[later - start, earlier]) / 2).astype(np.int64)
            yield images[later], images[earlier], differ
