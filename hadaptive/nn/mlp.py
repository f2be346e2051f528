"""The Adaptive Cross-Hadamard module in place of a transformer's MLP."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.fx
from timm.layers import to_2tuple
from torch import Tensor, nn
from torch.types import Device

from hadaptive.nn.ach import CrossHadamardExpansion, k_for_width
from hadaptive.nn.state import rename_children


@torch.fx.wrap
def _as_input(x: Tensor, features: int, maps: bool) -> Tensor:
    if torch.jit.is_tracing():
        return x
    if maps and (x.dim() != 4 or x.shape[1] != features):
        raise ValueError(f"expected maps (B, {features}, H, W), got {list(x.shape)}")
    if not maps and (x.dim() < 3 or x.shape[-1] != features):
        raise ValueError(f"expected tokens (B, N, {features}), got {list(x.shape)}")
    return x


class CrossHadamardMlp(nn.Module):
    """ACH in place of a transformer's MLP; the signature is that of timm's ``Mlp``.

    Linear C -> C, cross-Hadamard expansion, activation, dropout, norm, Linear C + P -> out, dropout. Scores, where
    the selection has them, pool over the tokens.

    Args:
        in_features: C.
        hidden_features: wanted width of the expansion, default 4 C; k is the largest that fits in it, at most C.
        out_features: default C.
        act_layer: activation between expansion and projection.
        norm_layer: of the activated channels, None for none; given `device` and `dtype` where they are given.
            `norm` is that of the products.
        bias: of both linear layers, or of each.
        drop: dropout before and after the projection, or of each.
        use_conv: take maps, with 1x1 convolutions for the linear layers.
        device, dtype: of parameters and buffers.
        k: set it to override `hidden_features`.
        norm, order, surrogate, score_kernel, selection, noise, temperature, seed, pairing: as in
            :class:`AdaptiveCrossHadamard`.

    Shape:
        (B, N..., C) -> (B, N..., out_features), one or more token dims, or, with `use_conv`,
        (B, C, H, W) -> (B, out_features, H, W).

    Raises:
        ValueError: an argument or the input's shape does not fit.

    Layers are called what timm's are, ``fc1`` to ``drop2``, for some of its networks scale the weights of ``fc2``.
    """

    _version = 2  # 1 had names of its own

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        k: int | None = None,
        norm: str = "dysoft",
        order: str = "rank",
        surrogate: str = "softmax",
        score_kernel: int = 5,
        selection: str | None = None,
        noise: float = 1.0,
        temperature: float | None = None,
        seed: int = 0,
        pairing: str = "triangle",
    ) -> None:
        super().__init__()
        if k is None:
            k = min(k_for_width(in_features, hidden_features or 4 * in_features), in_features)
        self.in_features = in_features
        self.use_conv = use_conv
        layer: Any = partial(nn.Conv2d, kernel_size=1) if use_conv else nn.Linear
        biases: Any = to_2tuple(bias)
        drops: Any = to_2tuple(drop)
        dd: Any = {"device": device, "dtype": dtype}
        given = {name: value for name, value in dd.items() if value is not None}
        self.fc1 = layer(in_features, in_features, bias=biases[0], **dd)
        how: Any = {"selection": selection, "noise": noise, "temperature": temperature, "seed": seed}
        self.cross_hadamard = CrossHadamardExpansion(
            in_features, k, norm, order, surrogate, score_kernel, **dd, **how, pairing=pairing
        )
        width = self.cross_hadamard.out_channels
        self.act = act_layer()
        self.drop1 = nn.Dropout(drops[0])
        self.norm = nn.Identity() if norm_layer is None else norm_layer(width, **given)
        self.fc2 = layer(width, out_features or in_features, bias=biases[1], **dd)
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = self.fc1(_as_input(x, self.in_features, self.use_conv))
        if self.use_conv:
            x = self.cross_hadamard(x, generator)
        else:
            x = self.cross_hadamard(x.movedim(-1, 1), generator).movedim(1, -1)
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(x)))))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("version", 1) < 2:
            names = {"mix": "fc1", "expansion": "cross_hadamard", "project": "fc2"}
            rename_children(self, state_dict, prefix, names)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
