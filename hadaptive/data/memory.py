"""What a manifest remembers of older runs, so that an image keeps its part through any number of them."""

from collections.abc import Sequence

import numpy as np

from hadaptive.data.manifest import PARTS, Manifest
from hadaptive.text import spelt

# Which of several parts is remembered of an image: one by which weights were made or chosen before one that was
# only measured on, and that before none.
RANKS = np.array([("train", "validation", "test", "unused").index(part) for part in PARTS])
TRAIN, VALIDATION, TEST, UNUSED = (PARTS.index(part) for part in ("train", "validation", "test", "unused"))
LEARNED = 1  # the last rank by which weights were made or chosen


def remembered(olders: Sequence[Manifest]) -> Manifest:
    """The images of several manifests and all that these remember, as one manifest.

    An image is taken from the first that has it; one that is unused there and was trained on before counts as
    trained on. The images of the first manifest itself come first, all of them and in their order; what that one
    remembers comes next.
    """
    every, origins = _joined(olders)
    first: dict[str, int] = {}
    keys = _keys(every)
    trained = {keys[i] for i in np.flatnonzero(every.codes == TRAIN).tolist()}
    every.codes[[code == UNUSED and key in trained for key, code in zip(keys, every.codes, strict=True)]] = TRAIN
    return every.take([i for i, key in enumerate(keys) if first.setdefault(key, origins[i]) == origins[i]])


def held_out(olders: Sequence[Manifest]) -> set[str]:
    """Digests of the images that were validation or test images of a run or of those before it."""
    every, _ = _joined(olders)
    return {every.digests[i] for i in np.flatnonzero(np.isin(every.codes, (VALIDATION, TEST)))} - {""}


def learned(manifest: Manifest) -> set[str]:
    """Digests of the images that the weights of a run, or those it began from, were made or chosen by."""
    every, _ = _joined([manifest])
    return {every.digests[i] for i in np.flatnonzero(RANKS[every.codes] <= LEARNED)} - {""}


def carry(manifest: Manifest, olders: Sequence[Manifest]) -> None:
    """Let a new manifest remember what older ones know and it does not tell itself. Changes it in place."""
    every, _ = _joined(olders)
    now: dict[str, int] = {}
    for key, rank in zip(_keys(manifest), RANKS[manifest.codes].tolist(), strict=True):
        now[key] = min(rank, now.get(key, rank))
    names = set(map(spelt, manifest.names_of_all))
    best: dict[str, int] = {}
    ranks = RANKS[every.codes].tolist()
    for i, key in enumerate(_keys(every)):
        if ranks[i] < ranks[best.setdefault(key, i)]:
            best[key] = i

    def is_news(key: str, i: int) -> bool:
        if key in now:
            return ranks[i] < now[key]
        return bool(every.digests[i]) or spelt(every.names_of_all[i]) not in names

    kept = [i for key, i in best.items() if is_news(key, i)]
    manifest.earlier = every.take(sorted(kept, key=lambda i: (every.codes[i], i))) if kept else None


def _joined(manifests: Sequence[Manifest]) -> tuple[Manifest, list[int]]:
    """All that manifests list and remember, in their order, and for each image which of these lists it is from."""
    layers = [layer for manifest in manifests for layer in (manifest, manifest.earlier) if layer is not None]
    numbers: dict[str, int] = {}
    labels = []
    for layer in layers:
        places = [numbers.setdefault(name, len(numbers)) for name in layer.classes]
        labels.append(np.array(places, np.int64)[layer.labels])
    joined = Manifest(
        list(numbers),
        np.concatenate([layer.codes for layer in layers]),
        np.concatenate(labels),
        [name for layer in layers for name in layer.names_of_all],
        np.concatenate([layer.stats for layer in layers]),
        [digest for layer in layers for digest in layer.digests],
    )
    rules = [layer.group_by for layer in layers if layer.group_by is not None]
    if rules:  # groups of another rule have no meaning beside those of the first
        joined.group_by = rules[0]
        joined.groups = [name for layer in layers for name in _groups(layer, layer.group_by == rules[0])]
    return joined, np.repeat(np.arange(len(layers)), [len(layer) for layer in layers]).tolist()


def _groups(layer: Manifest, known: bool) -> list[str]:
    return layer.groups if known and layer.groups is not None else [""] * len(layer)


def _keys(manifest: Manifest) -> list[str]:
    """What each image is known by: its contents, or its name where they could not be read."""
    return [
        digest or f"/{spelt(name)}" for digest, name in zip(manifest.digests, manifest.names_of_all, strict=True)
    ]
