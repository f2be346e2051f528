"""The published formulation of ACH, kept as a rival: dense mask, two gathers, separate passes.

It has what the library puts right, each behind its own switch: the reversed sign of the straight-through gradient
and the bias before BatchNorm. Nothing outside the benchmarks uses it.
"""

from typing import Any

import torch
from timm.models import build_model_with_cfg, register_model
from torch import Tensor, nn

from hadaptive.models import HadaptiveNet, NetSpec
from hadaptive.models.published import HADAPTIVE_NET_L, HADAPTIVE_NET_M, HADAPTIVE_NET_S
from hadaptive.nn import AdaptiveCrossHadamard, CrossHadamardExpansion, DySoft, gumbel_noise, top_k_channels


class TextbookExpansion(CrossHadamardExpansion):
    """Cross-Hadamard expansion as published: (B, C, H, W) -> (B, C + k(k-1)/2, H, W).

    Args:
        channels, k, norm: as in :class:`hadaptive.nn.CrossHadamardExpansion`.
        reversed_sign: hard + stop_grad(soft) - soft, as the published code has it.
    """

    first: Tensor
    second: Tensor

    def __init__(self, channels: int, k: int, reversed_sign: bool = False, norm: str = "dysoft") -> None:
        super().__init__(channels, k, norm, selection="sample")
        self.sign = -1.0 if reversed_sign else 1.0
        pairs = torch.triu_indices(k, k, 1)
        self.register_buffer("first", pairs[0], persistent=False)
        self.register_buffer("second", pairs[1], persistent=False)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        scores = self.score(x)
        if self.training:
            logits = (scores.float() + gumbel_noise(scores, generator)) / self.select.temperature
            soft = torch.softmax(logits, dim=1)
            index = top_k_channels(soft.detach(), self.k)
            soft = soft[:, None].expand(-1, self.k, -1)
        else:
            index = scores.topk(self.k, dim=1).indices
            soft = torch.zeros_like(scores)[:, None].expand(-1, self.k, -1)
        hard = torch.zeros_like(soft).scatter_(2, index[:, :, None], 1.0)
        mask = hard * (1 + self.sign * (soft - soft.detach()))
        z = torch.einsum("bkc,bcn->bkn", mask.to(x.dtype), x.flatten(2)).unflatten(2, x.shape[2:])
        q = z[:, self.first] * z[:, self.second]
        if not isinstance(self.norm, DySoft):
            return torch.cat([x, self.norm(q)], dim=1)
        alpha, weight, bias = self.norm.parameters()
        u = alpha * q
        d = weight[:, None, None] * (u / (1 + u.abs())) + bias[:, None, None]
        return torch.cat([x, d], dim=1)


class PublishedNet(HadaptiveNet):
    """A Hadaptive-Net as its authors published it: textbook ACH, reversed gradient sign, a bias before BatchNorm.

    Takes the arguments of :class:`hadaptive.models.HadaptiveNet`.
    """

    def __init__(self, spec: NetSpec = HADAPTIVE_NET_S, **kwargs: Any) -> None:
        super().__init__(spec, **kwargs)
        for module in self.modules():
            if isinstance(module, AdaptiveCrossHadamard):
                module.mix = nn.Conv2d(module.channels, module.channels, 1)
                norm = "dysoft" if isinstance(module.cross_hadamard.norm, DySoft) else "batchnorm"
                module.cross_hadamard = TextbookExpansion(module.channels, module.cross_hadamard.k, True, norm)


@register_model
def hadaptive_net_s_published(pretrained: bool = False, **kwargs: Any) -> PublishedNet:
    """S as published, 3.26 M parameters at 1000 classes."""
    return build_model_with_cfg(PublishedNet, "hadaptive_net_s", pretrained, **kwargs)


@register_model
def hadaptive_net_m_published(pretrained: bool = False, **kwargs: Any) -> PublishedNet:
    """M as published."""
    return build_model_with_cfg(PublishedNet, "hadaptive_net_m", pretrained, **{"spec": HADAPTIVE_NET_M, **kwargs})


@register_model
def hadaptive_net_l_published(pretrained: bool = False, **kwargs: Any) -> PublishedNet:
    """L as published."""
    return build_model_with_cfg(PublishedNet, "hadaptive_net_l", pretrained, **{"spec": HADAPTIVE_NET_L, **kwargs})
