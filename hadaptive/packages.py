"""Packages that only some need: whether they can be used, what to install for them, how to keep them quiet.

One can be used when it can be imported. Found is not enough: it may not fit another package, or lack a library.
"""

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator

from hadaptive.errors import UserError, first_line

# Of each extra in pyproject.toml, what is imported.
EXTRAS = {
    "cam": ("captum",),
    "evolution": ("pymoo",),
    "wds": ("webdataset",),
    "hfds": ("datasets",),
    "parquet": ("pyarrow",),
    "duplicates": ("imagehash",),
    "heic": ("pillow_heif",),
    "track": ("tensorboard",),
    "ray": ("ray",),
    "onnx": ("onnx", "onnxruntime", "onnxscript", "onnxslim"),
    "executorch": ("executorch.runtime",),
    "coreml": ("coremltools",),
    "ncnn": ("ncnn", "pnnx"),
    "openvino": ("openvino", "onnx", "onnxscript", "onnxslim", "nncf"),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, no library warns or logs below an error: nothing that a person can mend."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """As :func:`quiet`, and without what a library prints of itself: advice, and its progress."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield


def obstacle(module: str, package: str = "") -> str | None:
    """Why a package cannot be used, as in "is not installed", or None where it can.

    Args:
        module: to import.
        package: that it belongs to or stands on; by default the first part of its name.
    """
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a package that does not fit may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name in (module, package or module.split(".")[0]):
            return "is not installed"
        return f"is installed but cannot be imported ({type(error).__name__}: {first_line(error)})"
    return None


def require(modules: tuple[str, ...], what: str, install: str) -> None:
    """Raise one clear UserError unless all modules can be imported.

    Args:
        modules: by their full names.
        what: needs them, as the sentence begins.
        install: what to give pip.
    """
    for module in modules:
        why = obstacle(module)
        if why is not None:
            known = "" if why == "is not installed" else f", which {why}"
            raise UserError(f"{what} needs the package {module.split('.')[0]}{known}: pip install {install}")
