"""Where a non-finite number came from."""

import torch
from torch import Tensor, nn

from hadaptive.errors import UserError


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""

    of_one_process = True


def _finite(value: object) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, (tuple, list)):
        return all(_finite(item) for item in value)
    return True


@torch.no_grad()
def first_non_finite(model: nn.Module, images: Tensor) -> str:
    """Run `model` once more and name the first module whose output is not finite, in one clause.

    The network is left as it was, apart from the statistics of its BatchNorms.
    """
    if not _finite(images):
        return "the input images themselves are not finite"
    found: list[str] = []

    def watch(name: str):
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            if not found and not _finite(output):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    # Only leaves: a container's output is that of its last leaf, and it is reported after it.
    leaves = [(n, m) for n, m in model.named_modules() if n and not any(True for _ in m.children())]
    others = [(n, m) for n, m in model.named_modules() if n and any(True for _ in m.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves + others]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        return "every module's output is finite, so it is the loss itself that overflowed"
    bad = [n for n, p in model.named_parameters() if not _finite(p)]
    extra = f"; its cause may be earlier, for {bad[0]} holds non-finite weights" if bad else ""
    return f"the first module whose output is not finite is {found[0]}{extra}"
