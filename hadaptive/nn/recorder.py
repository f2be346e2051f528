"""What all that watches a network has in common: it is attached to it, and goes away again."""

from types import TracebackType
from typing import TypeVar

from torch.utils.hooks import RemovableHandle

Own = TypeVar("Own", bound="Recorder")


class Recorder:
    """A context manager whose hooks go when it ends, or when :meth:`close` is called."""

    _handles: list[RemovableHandle]

    def close(self) -> None:
        """Detach from the model; the record stays readable."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
