"""Padding of convolutions: data of a network, which older files do not have."""

import dataclasses

import pytest
import torch

from hadaptive.errors import UserError
from hadaptive.models import ConvSpec, NetSpec
from hadaptive.models.blocks import conv_norm_act
from hadaptive.models.layer_spec import ghost
from hadaptive.models.published import HADAPTIVE_NET_S
from hadaptive.search import SearchSpace


def test_a_convolution_can_cut_patches() -> None:
    """Padded, a stem of 8x8 with stride 8 looked at three rows of the patch above; older networks still do."""
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:, 8:] = 1
    assert conv_norm_act(1, ConvSpec(4, 8, 8))[0].padding == (3, 3)
    stem = conv_norm_act(1, ConvSpec(4, 8, 8, act=False, padding=0)).eval()
    out = stem(image)
    assert out.shape[-2:] == (2, 2)
    assert (out[..., 0, :] == 0).all()
    assert (out[..., 1, 0] == 0).all()
    assert (out[..., 1, 1] != 0).all()


def test_padding_is_data_and_what_older_files_lack_is_as_it_was() -> None:
    patches = dataclasses.replace(HADAPTIVE_NET_S, stem=ConvSpec(32, 4, 4, padding=0))
    padded = dataclasses.replace(HADAPTIVE_NET_S, stem=ConvSpec(32, 4, 4))
    assert NetSpec.from_dict(patches.to_dict()) == patches
    assert "padding" not in padded.to_dict()["stem"]
    assert patches.fingerprint != padded.fingerprint
    assert [spec.stem.rim for spec in (patches, padded)] == [0, 1]
    assert patches.with_stem_strides(1).stem == ConvSpec(32, 5, 1)
    space = SearchSpace("one", (patches.stem,), (), (((ghost(2, 3, 8),),),), 8, 8)
    assert SearchSpace.from_dict(space.to_dict()) == space


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4, "stride": 4, "padding": -1}, "padding must be a whole number from 0 to kernel - 1"),
        ({"kernel": 4, "stride": 4, "padding": 4}, "padding must be a whole number from 0 to kernel - 1"),
        ({"kernel": 4, "stride": 4, "padding": 1.0}, "padding must be a whole number"),
        ({"kernel": 3, "stride": 1, "padding": 0}, "needs its own padding to keep its size"),
    ],
    ids=str,
)
def test_padding_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ConvSpec(8, **options)
