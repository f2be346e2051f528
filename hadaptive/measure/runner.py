"""Any network, or layers of one of ours in a row, as a setting runs it: what latency tables time."""

import tempfile
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hadaptive.measure.executorch import set_threads
from hadaptive.measure.formats import SUFFIXES
from hadaptive.measure.lowering import lower_each
from hadaptive.measure.passes import prepare
from hadaptive.measure.sessions import open_file
from hadaptive.measure.setting import LOWERED, Setting
from hadaptive.measure.untrained import fix_selections, liven
from hadaptive.models import HadaptiveNet
from hadaptive.nn.reparam import reparameterized
from hadaptive.packages import quiet

TOGETHER = 24  # graphs that are exported in one call
IMAGES = 8  # of noise, that give an untrained network its statistics


def runner(network: nn.Module, setting: Setting, size: tuple[int, int, int]) -> Callable[[], Any]:
    """A function that runs an untrained network on one batch of noise, as the setting says.

    Args:
        network: the whole, or layers in a row; changed in place (constants, selections, device).
        setting: the runtime, and all it depends on.
        size: of what the first layer reads, (C, H, W).
    """
    return runners([(network, size)], setting)[0]


def runners(
    networks: Sequence[tuple[nn.Module, tuple[int, int, int]]], setting: Setting
) -> list[Callable[[], Any]]:
    """As :func:`runner` of each; what is exported is made ready together, which takes far less time."""
    for network, size in networks:
        liven(network, torch.randn(IMAGES, *size))
        if setting.frozen:
            fix_selections(network)
    if setting.runtime not in LOWERED:
        return [_in_pytorch(network, setting, size) for network, size in networks]
    found: list[Callable[[], Any]] = []
    for start in range(0, len(networks), TOGETHER):
        found += _exported(networks[start : start + TOGETHER], setting)
    return found


def _exported(
    networks: Sequence[tuple[nn.Module, tuple[int, int, int]]], setting: Setting
) -> list[Callable[[], Any]]:
    form = LOWERED[setting.runtime]
    if form == "executorch":
        set_threads(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"net{number}{SUFFIXES[form]}" for number in range(len(networks))]
        nets = [_deployed(network) for network, _ in networks]
        lower_each(nets, paths, form, [size for _, size in networks])
        sessions = [open_file(path, setting.threads, in_turns=True)[0] for path in paths]
    images = [torch.randn(setting.batch, *size).numpy() for _, size in networks]
    return [partial(session, x) for session, x in zip(sessions, images, strict=True)]


def _deployed(network: nn.Module) -> nn.Module:
    if isinstance(network, HadaptiveNet) or type(network) is nn.Sequential:
        return prepare(network)[0]
    return reparameterized(network)


def _in_pytorch(network: nn.Module, setting: Setting, size: tuple[int, int, int]) -> Callable[[], Any]:
    x = torch.randn(setting.batch, *size)
    network = reparameterized(network)
    memory_format = torch.channels_last if setting.channels_last else torch.contiguous_format
    network.to(setting.device, memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    x = x.to(setting.device, memory_format=memory_format)
    call = _compiled(network) if setting.runtime == "compile" else network

    def run() -> None:
        with torch.inference_mode():
            call(x)

    if setting.runtime == "compile":
        with quiet():
            run()
    return run


def _compiled(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network under torch.compile, whatever was compiled before.

    PyTorch keeps the programs of one code object together: it would try all of them at each call, compile for any
    shape after the second, and give up after the eighth.
    """

    def call(x: Tensor) -> Tensor:
        return network(x)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)
