"""The distribution of k-subsets: exact samples and exact marginals.

A subset's probability is the product of its elements' weights, up to a factor that all subsets share: independent
coins, on condition that k of them show heads. Source: arXiv 2210.01941 (SIMPLE).
"""

import torch
from torch import Tensor


def _log_ways(logits: Tensor, k: int) -> Tensor:
    """Log of the summed weights of the j-subsets of the first n elements: (B, C) -> (C + 1, B, k + 1)."""
    none, batch = -1e30, logits.shape[0]  # the log of no way at all: infinity has no gradient
    row = torch.full((batch, k + 1), none, dtype=logits.dtype, device=logits.device)
    row[:, 0] = 0
    rows = [row]
    outside = torch.full_like(row[:, :1], none)  # no subset has fewer than no elements
    for column in logits.unbind(1):
        without = rows[-1]
        within = torch.cat([outside, without[:, :-1] + column.unsqueeze(1)], dim=1)
        rows.append(torch.logaddexp(without, within))
    return torch.stack(rows)


def _exact(logits: Tensor) -> Tensor:
    """Logits of mean 0, which changes no probability, in float64: what counts are differences of large sums."""
    wide = logits if logits.device.type == "mps" else logits.double()  # Metal has none
    return wide - wide.detach().mean(1, keepdim=True)


def k_subset_marginals(logits: Tensor, k: int) -> Tensor:
    """The probability of each element to be in the subset: (B, C) -> (B, C), which sums to k.

    From the sums over subsets of the elements before and of those after each one, in O(B k C) operations;
    differentiable. Where k is C every marginal is 1.
    """
    channels, dtype = logits.shape[1], logits.dtype
    logits = _exact(logits)
    before = _log_ways(logits, k - 1)[:channels]
    after = _log_ways(logits.flip(1), k - 1)[:channels].flip(0)
    # Of the other k - 1 elements j stand before this one and the rest after it. Each (C, B, k).
    others = torch.logsumexp(before + after.flip(2), dim=2).T
    # Every element of a subset is counted once, so that a softmax of these weights sums to 1, and marginals to k.
    return (k * torch.softmax(logits + others, dim=1)).to(dtype)


def log_probability(logits: Tensor, index: Tensor) -> Tensor:
    """Log of the probability of the subsets `index` (B, k) in the distribution of `logits` (B, C): (B,)."""
    logits = _exact(logits)
    k = index.shape[1]
    return logits.gather(1, index).sum(1) - _log_ways(logits, k)[-1][:, k]


def sample_k_subset(logits: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """One subset of k elements for each row, exactly: (B, C) -> (B, C) bool.

    Elements are decided from the last to the first, each in the light of how many are still wanted.
    """
    logits = _exact(logits.detach())
    ways = _log_ways(logits, k)
    batch, channels = logits.shape
    drawn = torch.rand(batch, channels, generator=generator, device=logits.device, dtype=logits.dtype)
    wanted = torch.full((batch, 1), k, device=logits.device)
    taken = []
    for n in range(channels - 1, -1, -1):
        without = ways[n].gather(1, wanted)
        within = logits[:, n : n + 1] + ways[n].gather(1, (wanted - 1).clamp(min=0))
        chance = torch.sigmoid(within - without).squeeze(1)  # 1 where no subset is left without it
        yes = (drawn[:, n] < chance) & (wanted.squeeze(1) > 0)
        taken.append(yes)
        wanted = wanted - yes.unsqueeze(1).to(wanted.dtype)
    return torch.stack(taken[::-1], dim=1)
