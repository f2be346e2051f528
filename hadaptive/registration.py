"""Networks are registered with timm, and operators with PyTorch, once these are imported.

``import hadaptive`` loads neither, and after ``import timm``, whichever comes first, timm knows the networks.
wrapt has such hooks, and takes as long to import as the whole library of the command line.
"""

import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# What is imported after what. The networks need hadaptive.nn, which needs timm: they wait for it.
REGISTERS = {"torch": "hadaptive.ops", "timm": "hadaptive.models", "hadaptive.nn": "hadaptive.models"}
WAIT_FOR = {"hadaptive.nn", "hadaptive.models"}


class AfterImport(MetaPathFinder):
    """Finds what the finders after it find, and imports a module of ours when that has been loaded."""

    def __init__(self) -> None:
        self.asking = threading.local()  # whether this thread asks the others: one of them may ask all again
        self.loading: set[str] = set()  # by any thread

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module as others find it, with a loader that registers what is ours afterwards; None for most."""
        if fullname not in {*REGISTERS, *WAIT_FOR} or getattr(self.asking, "others", False):
            return None
        self.asking.others = True
        try:
            found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self.asking.others = False
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                self.loading.add(fullname)
                try:
                    load(module)
                finally:
                    self.loading.discard(fullname)
                if fullname in REGISTERS:
                    self.register_after(fullname)

            spec.loader.exec_module = exec_module  # the loader stays what it is: others ask it for files
        return spec

    def register_after(self, fullname: str) -> None:
        """Import what is ours, unless a module that is being loaded, here or in another thread, will do so."""
        ours = REGISTERS[fullname]
        if ours == "hadaptive.models" and self.loading & WAIT_FOR:
            return
        try:
            importlib.import_module(ours)
        except RuntimeError as error:
            # Another thread has begun to load it since, and waits for what this one loads.
            if type(error).__name__ != "_DeadlockError":
                raise


def register() -> None:
    """Register now what can be, and the rest when it can; once for all."""
    if any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, AfterImport())
    for theirs, ours in REGISTERS.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
