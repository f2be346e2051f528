"""How candidates are called in tables and pictures."""

from hadaptive.models.layer_spec import ConvSpec
from hadaptive.search.position import Candidate, Skip


def label(candidate: Candidate) -> str:
    """A candidate in the notation of the paper's tables: A16/5b is ACH of k 16, kernel 5, with BatchNorm.

    B is ACH of whole blocks, G Ghost and I the inverted bottleneck, with their ratios (I4g2 in two groups); a +
    behind A, B or G says that channels are added in place of appended. C is a plain convolution; P4x32 products of
    four blocks of 32 channels, with a + where a second depthwise convolution follows; D7 the product of a 7x7 and
    a 3x3 depthwise convolution.
    """
    if isinstance(candidate, Skip):
        return "skip"
    stride = f"/{candidate.stride}" if candidate.stride > 1 else ""
    if isinstance(candidate, ConvSpec) or candidate.kind == "conv":
        rim = "" if candidate.rim == (candidate.kernel - 1) // 2 else f"p{candidate.rim}"
        return f"C{candidate.kernel}{stride}{rim}{'' if candidate.act else '-linear'}→{candidate.channels}"
    if candidate.kind == "products":
        norm = "" if candidate.norm == "identity" else f"-{candidate.norm}"
        act = "" if candidate.act else "-linear"
        return f"P{candidate.k}x{candidate.width}{act}/{candidate.kernel}{'+' * candidate.after}{norm}"
    if candidate.kind == "poly":
        return f"D{candidate.kernel}{'' if candidate.act else '-linear'}"
    pairs = "B" if candidate.pairing == "blocks" else "A"
    wide = (
        f"{pairs}{candidate.k}" if candidate.kind == "ach" else f"{candidate.kind[0].upper()}{candidate.ratio:g}"
    )
    wide += f"g{candidate.groups}" if candidate.groups > 1 else ""
    wide += "" if candidate.act else "-linear"
    wide += "+" if candidate.join == "add" else ""
    end = "b" if candidate.kind == "ach" and candidate.norm == "batchnorm" else ""
    end = end or (f"-{candidate.norm}" if candidate.kind == "ach" and candidate.norm != "dysoft" else "")
    return f"{wide}/{candidate.kernel}{stride}{end}"
