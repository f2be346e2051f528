"""The one table of tolerances by dtype, and the one comparison that uses it.

Operators compute in float32 and round once (a gradient that adds two paths: twice), so the half-precision
rows are two units in the last place; float32 leaves room for another order of summation.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1.6e-2},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-10, "atol": 1e-12},
}
DTYPES = tuple(TOLERANCES)


def dtype_id(dtype: torch.dtype) -> str:
    """ "float16" rather than "torch.float16" in test ids."""
    return str(dtype).removeprefix("torch.")


def assert_close(actual: Tensor, expected: Any, dtype: torch.dtype | None = None) -> None:
    """Compare in float64 within the tolerance of `dtype` (default: `actual`'s). NaN never equals NaN."""
    if not isinstance(expected, Tensor):
        expected = torch.as_tensor(np.asarray(expected))
    tolerance = TOLERANCES[dtype or actual.dtype]
    torch.testing.assert_close(actual.detach().double(), expected.detach().double(), **tolerance)
