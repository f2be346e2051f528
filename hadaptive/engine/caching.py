"""The pixels of a run's images that are kept from epoch to epoch."""

from pathlib import Path

import numpy as np
from accelerate import Accelerator

from hadaptive.data import ImageData, Preprocessing, Source, Subset
from hadaptive.data.cache import REDUCED, Final, Kept, PixelStore, Reduce, kind_of
from hadaptive.engine.config import Execution
from hadaptive.engine.processes import on_main
from hadaptive.errors import UserError

ASPECT = 1.4  # of a typical image, for an estimate


class Caching:
    """What a run keeps, and where.

    Args:
        data: opened.
        how: preprocessing of the run.
        execution: which says where.
        accelerator: whose main process opens the folder.

    Raises:
        UserError: there is nothing to gain, or the folder cannot be used.
    """

    def __init__(
        self, data: ImageData, how: Preprocessing, execution: Execution, accelerator: Accelerator
    ) -> None:
        assert execution.cache is not None
        check_cache(execution.cache, data.location.data, data.in_memory)
        self.data, self.how = data, how
        self.store = PixelStore(execution.cache, execution.cache_size * 1e9)
        self.kinds = {training: kind_of(how, training) for training in (True, False)}
        self.note = on_main(accelerator, self._open)

    def training(self, source: Source) -> Kept:
        """Images to learn from: those of the training part, or some of them."""
        chosen = np.arange(len(self.data.train))
        inner, subsets = source, []
        while isinstance(inner, Subset):
            subsets.append(inner.indices)
            inner = inner.source
        for indices in reversed(subsets):
            chosen = chosen[indices]
        digests = self._digests("train")
        return Kept(source, [digests[i] for i in chosen.tolist()], Reduce(self.how), self.kinds[True], self.store)

    def validation(self) -> Kept:
        """Images to choose the best weights by, as evaluation takes them without a cache, to the last bit."""
        digests = self._digests("validation")
        return Kept(self.data.validation, digests, Final(self.how), self.kinds[False], self.store)

    def _digests(self, part: str) -> list[str]:
        manifest = self.data.manifest
        return [manifest.digests[i] for i in manifest.in_part(part).tolist()]

    def _open(self) -> str:
        store, how = self.store, self.how
        store.open()
        wanted = {
            self.kinds[part == "train"]: {d for d in self._digests(part) if d} for part in ("train", "validation")
        }
        there = {kind: _there(store, kind) & digests for kind, digests in wanted.items()}
        sides = {self.kinds[True]: REDUCED * how.image_size, self.kinds[False]: how.image_size}
        needed = sum(
            (len(digests) - len(there[kind])) * how.in_chans * sides[kind] ** 2 * ASPECT
            for kind, digests in wanted.items()
        )
        store.make_room(wanted, needed)
        all_of_them, found = (sum(map(len, sets.values())) for sets in (wanted, there))
        note = f"pixels are kept in {store.folder}: {found:,} of {all_of_them:,} images are there already"
        if (room := store.room()) < needed:
            note += (
                f", and of the others {room / needed:.0%} may find room in the {room / 1e9:.1f} GB that "
                "--cache-size and the disk leave"
            )
        return note


def _there(store: PixelStore, kind: str) -> set[str]:
    """The digests of a kind's entries."""
    return {Path(file.name).stem for file in store.files() if Path(file.path).parent.parent.name == kind}


def check_cache(folder: Path, data: str, in_memory: bool) -> None:
    """Raise one clear UserError where nothing is gained, or what is kept would lie among the images."""
    if in_memory:
        raise UserError(f"--cache has no effect here, for the images of {data} are in memory: leave it out")
    images = Path(data).expanduser()
    if images.is_dir() and folder.resolve().is_relative_to(images.resolve()):
        raise UserError(f"--cache {folder} lies among the images of {images}: choose a folder elsewhere")
