"""A network is data: the three published networks, the JSON round trip, and what junk is answered with."""

import dataclasses
import json
import re

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadaptive.models import BlockSpec, ConvSpec, HadaptiveNet, NetSpec
from hadaptive.models.published import HADAPTIVE_NET_L, HADAPTIVE_NET_M, HADAPTIVE_NET_S
from hadaptive.nn import NORMS, AdaptiveBottleneck, AdaptiveCrossHadamard, BatchNorm, DySoft

PUBLISHED = {"s": HADAPTIVE_NET_S, "m": HADAPTIVE_NET_M, "l": HADAPTIVE_NET_L}
published = pytest.mark.parametrize("spec", PUBLISHED.values(), ids=PUBLISHED)

# Copied by hand from the table of the method: C<kernel>/<stride>-><channels>, "*" for a Hardswish after it;
# G<ratio>/<kernel>/<stride>-><channels>; A<k>/<kernel>, "b" for BatchNorm in place of DySoft.
TABLE = {
    "s": """C2/2->32  C2/2->48* C1/1->32*  G4/2/2->64 G2/3
            G4/2/2->96 A16/5 A16/5 G2/5 A16/5 A16/5  G6/2/2->128 A32/7 A32/7  C1/1->960*""",
    "m": """C2/2->32  C2/2->128* C1/1->48*  G4/2/2->80 G2/3
            G6/2/2->128 A24/5 A24/5b G4/5 A24/5 A24/5b G4/5 A24/5 A24/5b
            G6/2/2->192 A36/7 A36/7b  C1/1->960*""",
    "l": """C2/2->24  C2/2->96* C1/1->48*  G4/2/2->96 G4/3
            G4/2/2->192 A32/5 A32/5b G4/5 A32/5 A32/5b G4/5 A32/5 A32/5b G4/5 A32/5 A32/5b
            G4/2/2->256 A36/7 A36/7b  G4/2/2->256 A36/7 A36/7b  C1/1->960*""",
}
STAGE_DEPTHS = {"s": [2, 6, 3], "m": [2, 9, 3], "l": [2, 12, 3, 3]}


def describe_spec(spec):
    convs = [f"C{c.kernel}/{c.stride}->{c.channels}{'*' * c.act}" for c in spec.convs]
    channels, blocks = spec.stage1_channels, []
    for block in (block for stage in spec.stages for block in stage):
        kind = f"G{block.ratio:g}" if block.kind == "ghost" else f"A{block.k}"
        same = block.stride == 1 and block.channels == channels
        tail = "" if same else f"/{block.stride}->{block.channels}"
        blocks.append(f"{kind}/{block.kernel}{tail}{'b' * (block.norm == 'batchnorm')}")
        channels = block.channels
    return [*convs, *blocks, f"C1/1->{spec.last_channels}*"]


def describe_model(model):
    """The same, read off the layers that were built; takes no word from the spec."""
    result = []
    for name, module in model.named_modules():
        if isinstance(module, AdaptiveBottleneck):
            result.append(describe_bottleneck(module))
        elif isinstance(module, torch.nn.Conv2d) and name.startswith(("stem", "stages.0", "last")):
            layers = model.get_submodule(name.rpartition(".")[0])
            act = len(layers) == 3 and isinstance(layers[2], torch.nn.Hardswish)
            result.append(f"C{module.kernel_size[0]}/{module.stride[0]}->{module.out_channels}{'*' * act}")
    return result


def describe_bottleneck(block):
    depthwise, project = block.depthwise[0], block.project[0]
    expansion = block.expansion
    if isinstance(expansion, AdaptiveCrossHadamard):
        channels, norm = expansion.mix.in_channels, expansion.cross_hadamard.norm
        pairs = depthwise.in_channels - channels
        k = next(k for k in range(2, channels + 1) if k * (k - 1) // 2 == pairs)
        assert isinstance(norm, DySoft | BatchNorm)
        kind, suffix = f"A{k}", "b" * isinstance(norm, BatchNorm)
    else:
        channels = expansion.primary[0].in_channels
        kind, suffix = f"G{depthwise.in_channels / channels:g}", ""
    assert depthwise.groups == depthwise.in_channels
    assert block.residual == (depthwise.stride[0] == 1 and channels == project.out_channels)
    tail = "" if block.residual else f"/{depthwise.stride[0]}->{project.out_channels}"
    return f"{kind}/{depthwise.kernel_size[0]}{tail}{suffix}"


@pytest.mark.parametrize("size", TABLE)
def test_published_networks_match_the_table(size):
    spec = PUBLISHED[size]
    assert describe_spec(spec) == TABLE[size].split()
    assert [len(stage) for stage in spec.stages] == STAGE_DEPTHS[size]
    assert (spec.head_channels, spec.order, spec.surrogate) == (1280, "rank", "softmax")


@pytest.mark.parametrize("size", TABLE)
def test_built_networks_match_the_table(size):
    model = timm.create_model(f"hadaptive_net_{size}")
    assert model.spec == PUBLISHED[size]
    assert describe_model(model) == TABLE[size].split()
    assert (model.conv_head.in_channels, model.classifier.in_features) == (960, 1280)


@pytest.mark.parametrize(("size", "reduction"), [("s", 32), ("m", 32), ("l", 64)])
def test_reduction(size, reduction):
    assert PUBLISHED[size].reduction == reduction
    assert PUBLISHED[size].with_stem_strides(1, 1).reduction == reduction // 4


# ---------------------------------------------------------------- round trips


@st.composite
def conv_specs(draw):
    stride = draw(st.sampled_from([1, 2]))
    kernel = draw(st.sampled_from([1, 3] if stride == 1 else [1, 2, 3, 4]))
    return ConvSpec(draw(st.integers(2, 12)), kernel, stride, draw(st.booleans()))


@st.composite
def block_specs(draw, channels):
    out, stride = draw(st.integers(2, 12)), draw(st.sampled_from([1, 2]))
    kernel = draw(st.sampled_from([1, 3, 5] if stride == 1 else [2, 3, 5]))
    kind = draw(st.sampled_from(["ach", "ghost", "inverted"]))
    if kind != "ach":
        return BlockSpec(kind, out, kernel, stride, ratio=draw(st.floats(0.5, 6)))
    return BlockSpec(
        "ach", out, kernel, stride, k=draw(st.integers(2, channels)), norm=draw(st.sampled_from(list(NORMS)))
    )


@st.composite
def net_specs(draw):
    stem, stage1 = draw(conv_specs()), tuple(draw(st.lists(conv_specs(), max_size=2)))
    channels, stages = (stem, *stage1)[-1].channels, []
    for depth in draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)):
        stage = []
        for _ in range(depth):
            stage.append(draw(block_specs(channels)))
            channels = stage[-1].channels
        stages.append(tuple(stage))
    return NetSpec(
        name=draw(st.text(max_size=8)),
        stem=stem,
        stage1=stage1,
        stages=tuple(stages),
        last_channels=draw(st.integers(1, 16)),
        head_channels=draw(st.integers(1, 16)),
        order=draw(st.sampled_from(["rank", "index"])),
        surrogate=draw(st.sampled_from(["softmax", "softmax_k"])),
    )


def assert_round_trips(spec):
    text = json.dumps(spec.to_dict())
    back = NetSpec.from_dict(json.loads(text))
    assert back == spec
    assert hash(back) == hash(spec)
    assert json.dumps(back.to_dict()) == text


@published
def test_published_specs_round_trip(spec):
    assert_round_trips(spec)


@published
def test_file_round_trip(spec, tmp_path):
    path = tmp_path / "net.json"
    spec.save(path)
    assert NetSpec.load(path) == NetSpec.load(str(path)) == spec
    assert path.read_text().endswith("}\n")


def test_file_is_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "net.json"
    data = dataclasses.replace(HADAPTIVE_NET_S, name="réseau").to_dict()
    path.write_bytes(json.dumps(data, ensure_ascii=False).encode())
    assert NetSpec.load(path).name == "réseau"


@given(net_specs())
@settings(max_examples=60, deadline=None)
def test_any_spec_round_trips(spec):
    assert_round_trips(spec)


@given(net_specs())
@settings(max_examples=15, deadline=None)
def test_any_spec_builds_a_network(spec):
    with torch.device("meta"):
        model = HadaptiveNet(spec, num_classes=3).eval()
        side = 2 * spec.reduction
        assert model.forward_features(torch.empty(1, 3, side, side)).shape == (1, spec.last_channels, 2, 2)
        assert model(torch.empty(1, 3, side, side)).shape == (1, 3)
    assert model.feature_info[-1]["reduction"] == spec.reduction
    assert [info["num_chs"] for info in model.feature_info[-len(spec.stages) :]] == [
        stage[-1].channels for stage in spec.stages
    ]


def test_to_dict_leaves_out_what_does_not_apply():
    ghost, ach = HADAPTIVE_NET_S.to_dict()["stages"][1][:2]
    assert set(ghost) == {"kind", "channels", "kernel", "stride", "ratio"}
    assert set(ach) == {"kind", "channels", "kernel", "stride", "k", "norm"}


def test_to_dict_shares_nothing_with_the_spec():
    HADAPTIVE_NET_S.to_dict()["stages"][0][0]["channels"] = 1
    assert HADAPTIVE_NET_S.stages[0][0].channels == 64


@pytest.mark.parametrize(
    ("spec", "field"),
    [(ConvSpec(8), "channels"), (BlockSpec("ach", 8, 3, k=4), "k"), (HADAPTIVE_NET_S, "stages")],
    ids=["conv", "block", "net"],
)
def test_specs_are_frozen(spec, field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(spec, field, 3)


# ---------------------------------------------------------------- stem strides


def test_stem_strides_turn_even_kernels_odd():
    small = HADAPTIVE_NET_S.with_stem_strides(1, 1)
    assert [(c.kernel, c.stride, c.channels) for c in small.convs] == [(3, 1, 32), (3, 1, 48), (1, 1, 32)]
    assert small.stages == HADAPTIVE_NET_S.stages
    assert HADAPTIVE_NET_S.stem.stride == 2


@pytest.mark.parametrize("strides", [(), (2,), (2, 2)])
def test_stem_strides_of_two_change_nothing(strides):
    assert HADAPTIVE_NET_M.with_stem_strides(*strides) == HADAPTIVE_NET_M


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize(("strides", "side"), [((1, 1), 32), ((1,), 64), ((1, 2), 64), ((2, 1), 64)])
def test_stages_see_the_maps_of_a_128_pixel_image(size, strides, side):
    with torch.device("meta"):
        small = timm.create_model(f"hadaptive_net_{size}", stem_strides=strides).eval()
        usual = timm.create_model(f"hadaptive_net_{size}").eval()
        _, maps = small.forward_intermediates(torch.empty(1, 3, side, side))
        _, expected = usual.forward_intermediates(torch.empty(1, 3, 128, 128))
    assert [m.shape for m in maps] == [m.shape for m in expected]
    assert maps[0].shape[-1] == 32
    assert [info["reduction"] for info in small.feature_info] == [side // m.shape[-1] for m in maps]


def test_the_models_spec_includes_its_stem_strides(tmp_path):
    model = timm.create_model("hadaptive_net_s", stem_strides=(1, 1))
    assert model.spec == HADAPTIVE_NET_S.with_stem_strides(1, 1)
    model.spec.save(tmp_path / "net.json")
    again = HadaptiveNet(NetSpec.load(tmp_path / "net.json"))
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("strides", [(3,), (0, 1), (-1,), (1, 1, 1), (True,), (1.0,), ("1",), (None,)], ids=str)
def test_bad_stem_strides(strides):
    with pytest.raises(ValueError, match="stride"):
        HADAPTIVE_NET_S.with_stem_strides(*strides)
    with pytest.raises(ValueError, match="stride"):
        timm.create_model("hadaptive_net_s", stem_strides=strides)


# ---------------------------------------------------------------- junk

DELETED = object()
GHOST, ACH = ("stages", 0, 0), ("stages", 1, 1)

BAD_FIELDS = [
    # path of the field, its value, what the message must say
    (("format",), DELETED, "not a network spec"),
    (("format",), "onnx", "not a network spec"),
    (("format",), None, "not a network spec"),
    (("version",), DELETED, "version None"),
    (("version",), 2, "version 2"),
    (("version",), "1", "version '1'"),
    (("version",), True, "version True"),
    (("version",), [1], "version"),
    (("colour",), "red", "unknown field 'colour'"),
    (("name",), DELETED, "lacks the field 'name'"),
    (("name",), 5, "name must be a text"),
    (("stem",), DELETED, "lacks the field 'stem'"),
    (("stem",), None, "the stem must be an object"),
    (("stem",), 32, "the stem must be an object"),
    (("stem",), [32, 2, 2], "the stem must be an object"),
    (("stem", "channels"), DELETED, "the stem lacks the field 'channels'"),
    (("stem", "channels"), None, "channels must be a positive whole number"),
    (("stem", "channels"), 0, "channels must be"),
    (("stem", "channels"), -32, "channels must be"),
    (("stem", "channels"), 32.0, "channels must be"),
    (("stem", "channels"), True, "channels must be"),
    (("stem", "channels"), "32", "channels must be"),
    (("stem", "channels"), [32], "channels must be"),
    (("stem", "kernel"), 0, "kernel must be"),
    (("stem", "stride"), 1, "odd kernel"),
    (("stem", "stride"), None, "stride must be"),
    (("stem", "act"), "yes", "act must be true or false"),
    (("stem", "act"), 1, "act must be true or false"),
    (("stem", "act"), None, "act must be true or false"),
    (("stem", "groups"), 1, "the stem has an unknown field 'groups'"),
    (("stage1",), DELETED, "lacks the field 'stage1'"),
    (("stage1",), None, "stage1 must be a list"),
    (("stage1",), {"channels": 8}, "stage1 must be a list"),
    (("stage1",), "abc", "stage1 must be a list"),
    (("stage1", 0), 48, "a stage-1 convolution must be an object"),
    (("stage1", 0, "channels"), DELETED, "a stage-1 convolution lacks the field 'channels'"),
    (("stage1", 0, "groups"), 2, "a stage-1 convolution has an unknown field 'groups'"),
    (("stages",), DELETED, "lacks the field 'stages'"),
    (("stages",), None, "stages must be a list"),
    (("stages",), 3, "stages must be a list"),
    (("stages",), "abc", "stages must be a list"),
    (("stages",), {"a": []}, "stages must be a list"),
    (("stages",), [], "at least one stage"),
    (("stages", 0), [], "at least one block"),
    (("stages", 0), None, "a stage must be a list"),
    (("stages", 0), {"kind": "ach"}, "a stage must be a list"),
    (GHOST, None, "a block must be an object"),
    (GHOST, "G4/2/2->64", "a block must be an object"),
    ((*GHOST, "kind"), DELETED, "a block lacks the field 'kind'"),
    ((*GHOST, "kind"), "dense", "kind must be one of ghost, ach"),
    ((*GHOST, "kind"), None, "kind must be one of"),
    ((*GHOST, "kind"), ["ghost"], "kind must be one of"),
    ((*GHOST, "kind"), {}, "kind must be one of"),
    ((*GHOST, "channels"), DELETED, "a block lacks the field 'channels'"),
    ((*GHOST, "channels"), 64.5, "channels must be"),
    ((*GHOST, "kernel"), DELETED, "a block lacks the field 'kernel'"),
    ((*GHOST, "kernel"), True, "kernel must be"),
    ((*GHOST, "stride"), 1, "odd kernel"),
    ((*GHOST, "stride"), 0, "stride must be"),
    ((*GHOST, "ratio"), DELETED, "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), None, "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), 0, "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), -2.0, "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), True, "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), "4", "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), [4], "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), float("nan"), "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), float("inf"), "a block of kind ghost needs a positive ratio"),
    ((*GHOST, "ratio"), 0.01, "leaves no channel"),
    ((*GHOST, "k"), 16, "no k"),
    ((*GHOST, "norm"), "batchnorm", "norm is for ach and products blocks"),
    ((*GHOST, "dilation"), 2, "a block has an unknown field 'dilation'"),
    ((*ACH, "k"), DELETED, "k must be"),
    ((*ACH, "k"), None, "k must be"),
    ((*ACH, "k"), 16.0, "k must be"),
    ((*ACH, "k"), True, "k must be"),
    ((*ACH, "k"), "16", "k must be"),
    ((*ACH, "k"), [16], "k must be"),
    ((*ACH, "k"), 1, "k >= 2"),
    ((*ACH, "k"), 97, "k = 97 of only 96 channels"),
    ((*ACH, "ratio"), 2.0, "no ratio"),
    ((*ACH, "norm"), "layernorm", "norm must be one of"),
    ((*ACH, "norm"), None, "norm must be one of"),
    ((*ACH, "norm"), ["dysoft"], "norm must be one of"),
    ((*ACH, "kernel"), 4, "odd kernel"),
    (("last_channels",), 0, "last_channels must be"),
    (("last_channels",), True, "last_channels must be"),
    (("head_channels",), 1280.0, "head_channels must be"),
    (("order",), "random", "order must be one of"),
    (("order",), 1, "order must be one of"),
    (("surrogate",), {}, "surrogate must be one of"),
]


def shown(value):
    return "deleted" if value is DELETED else json.dumps(value)


def changed(data, path, value):
    data = json.loads(json.dumps(data))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is DELETED:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def assert_one_sentence(message):
    assert len(message.splitlines()) == 1
    assert len(message) < 250
    for leak in ("__init__", "NoneType", "argument", "positional", "attribute", "subscriptable", "hadaptive."):
        assert leak not in message


@pytest.mark.parametrize(
    ("path", "value", "says"),
    BAD_FIELDS,
    ids=[f"{'.'.join(map(str, path))}={shown(value)}" for path, value, _ in BAD_FIELDS],
)
def test_bad_field(path, value, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        NetSpec.from_dict(changed(HADAPTIVE_NET_S.to_dict(), path, value))
    assert_one_sentence(str(caught.value))


@pytest.mark.parametrize("data", [None, 3, "net", [], {}, [{"format": "hadaptive-net"}]], ids=repr)
def test_not_a_spec_at_all(data):
    with pytest.raises(ValueError, match="not a network spec"):
        NetSpec.from_dict(data)


def test_k_is_checked_against_the_stem_when_there_is_no_stage_1():
    with pytest.raises(ValueError, match="k = 9 of only 8 channels"):
        NetSpec("net", ConvSpec(8), (), ((BlockSpec("ach", 8, 3, k=9),),))


@pytest.mark.parametrize(
    "content",
    [b"", b"weights", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 5000],
    ids=["empty", "word", "cut", "binary", "deep", "long number"],
)
def test_file_that_is_not_json(content, tmp_path):
    path = tmp_path / "net.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.json is not JSON"):
        NetSpec.load(path)


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"format": "hadaptive-net", "version": 9}'])
def test_file_that_is_another_json(content, tmp_path):
    path = tmp_path / "net.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"net\.json: (not a network spec|this network spec has version 9)"):
        NetSpec.load(path)


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats(allow_nan=True) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted({path for path, _, _ in BAD_FIELDS}, key=str)), junk)
@settings(max_examples=300, deadline=None)
def test_junk_anywhere_is_a_spec_or_a_value_error(path, value):
    try:
        spec = NetSpec.from_dict(changed(HADAPTIVE_NET_S.to_dict(), path, value))
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017  (success is fine too)
    else:
        assert_round_trips(spec)
