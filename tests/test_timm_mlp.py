"""The cross-Hadamard MLP wherever timm's networks take an MLP of one's choice."""

import ast
import inspect
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import LayerNorm, Mlp, SwiGLU
from torch import Tensor, nn

from hadaptive.nn import CrossHadamardMlp, adapt_temperatures, expansions


def calls() -> dict[str, ast.Call]:
    """Every place in timm's networks that makes an MLP of a class it was given, by file and line."""
    found = {}
    for path in sorted(Path(timm.__file__).parent.glob("*/*.py")):
        text = path.read_text(encoding="utf-8")
        if "mlp_layer(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "mlp_layer":
                found[f"{path.name}:{node.lineno}"] = node
    return found


CALLS = calls()


@pytest.mark.parametrize("where", CALLS)
def test_every_call_of_timms_can_be_answered(where: str) -> None:
    call = CALLS[where]
    assert all(keyword.arg or ast.unparse(keyword.value) == "dd" for keyword in call.keywords)
    names = [keyword.arg for keyword in call.keywords if keyword.arg] + ["device", "dtype"]
    if "gate_layer" in names:  # for an MLP with a gate, which timm's Mlp is not
        return
    for kind in (Mlp, CrossHadamardMlp):
        inspect.signature(kind).bind(*[None] * len(call.args), **dict.fromkeys(names))


def test_there_are_calls() -> None:
    assert len(CALLS) > 9
    assert any(where.startswith("vision_transformer.py") for where in CALLS)


def test_what_swiglu_is_given() -> None:
    """Where timm's transformers choose it for its gate: all but how it aligns its width."""
    given = inspect.signature(SwiGLU).parameters.keys() - {"limit", "align_to"}
    assert given <= inspect.signature(CrossHadamardMlp).parameters.keys()


NETWORKS = {
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2},
    ),
    "vit with a norm in it": ("test_vit", {"img_size": 32, "scale_mlp_norm": True, "proj_drop_rate": 0.1}),
    "vit, parallel branches": (
        "vit_small_patch16_18x2_224",
        {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2},
    ),
    "tokens in two dims": (
        "samvit_base_patch16",
        {
            "img_size": 64,
            "depth": 2,
            "embed_dim": 24,
            "num_heads": 2,
            "global_attn_indexes": (1,),
            "window_size": 2,
        },
    ),
}


@pytest.mark.parametrize("selection", ["static", "sample"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_timms_networks_train_with_it(kind: str, selection: str) -> None:
    name, options = NETWORKS[kind]
    torch.manual_seed(0)
    layer = CrossHadamardMlp if selection == "static" else partial(CrossHadamardMlp, selection=selection)
    network = timm.create_model(name, mlp_layer=layer, num_classes=4, **options)
    assert len(expansions(network)) >= 2
    side = options["img_size"]
    x, targets = torch.randn(8, 3, side, side), torch.arange(8) % 4
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    adapt_temperatures(optimizer, network)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(network(x), targets)

    first = loss()
    first.backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert not unused
    assert all(parameter.grad.abs().max() > 0 for name, parameter in network.named_parameters() if "mlp" in name)
    for _ in range(4):
        optimizer.step()
        optimizer.zero_grad()
        loss().backward()
    assert loss() < first
    if selection == "sample":
        assert {float(layer.select.gradient_norm) > 0 for layer in expansions(network).values()} == {True}


def test_a_transformer_of_timms_on_meta_and_in_another_precision() -> None:
    options = {"mlp_layer": CrossHadamardMlp, "img_size": 32, "scale_mlp_norm": True, "num_classes": 2}
    empty = timm.create_model("test_vit", device="meta", **options)
    assert {t.device.type for t in [*empty.parameters(), *empty.buffers()]} == {"meta"}
    full = timm.create_model("test_vit", **options).eval()
    empty.to_empty(device="cpu").load_state_dict(full.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(empty.eval()(x), full(x), rtol=0, atol=0)
    double = timm.create_model("test_vit", dtype=torch.float64, **options)
    assert double(x.double()).dtype == torch.float64


def test_timm_may_scale_its_weights() -> None:
    network = timm.create_model("test_vit", mlp_layer=CrossHadamardMlp)
    before = [block.mlp.fc2.weight.clone() for block in network.blocks]
    network.fix_init_weight()
    for weight, block in zip(before, network.blocks, strict=True):
        assert not torch.equal(weight, block.mlp.fc2.weight)


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 4, 6), (2, 3, 1, 2, 6)], ids=str)
def test_any_number_of_token_dims(shape: tuple[int, ...]) -> None:
    mlp = CrossHadamardMlp(6, k=3, out_features=5, norm_layer=LayerNorm, selection="sample").eval()
    x = torch.randn(shape)
    flat = mlp(x.reshape(2, -1, 6)).reshape(*shape[:-1], 5)
    torch.testing.assert_close(mlp(x), flat)
