"""Which channels are multiplied with which, in the order of the products.

Source: arXiv 2505.22226, section 5, for single channels; whole blocks are ours.
"""

import torch
from torch import Tensor


def num_pairs(k: int, block: int = 1) -> int:
    """Number of products of k channels: k(k-1)/2, or, of g = k / block whole blocks, block * g(g-1)/2."""
    groups = k // block
    return block * (groups * (groups - 1) // 2)


def pair_indices(k: int, device: torch.device | None = None, block: int = 1) -> Tensor:
    """The pairs of channels (i, j) in the order of the products. int64, (2, P).

    Those of single channels are all i < j < k in lexicographic order. Of whole blocks, each pair of blocks in that
    order gives `block` pairs, of the channels at the same place in both.
    """
    groups = k // block
    if torch.jit.is_tracing():  # the older exporter to ONNX does not know triu_indices
        numbers = torch.arange(groups, device=device)
        pairs = (numbers.unsqueeze(1) < numbers).nonzero().t()
    else:
        pairs = torch.triu_indices(groups, groups, 1, device=device)
    if block == 1:
        return pairs
    return (pairs.unsqueeze(2) * block + torch.arange(block, device=device)).flatten(1)
