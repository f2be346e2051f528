"""The scripts of docs/recipes.md: other libraries train our networks, and what comes out is looked at."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from documented import recipes
from torch import nn
from torchvision.ops import box_iou

from hadaptive.nn import AdaptiveCrossHadamard

# Their own.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]


def ran(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a recipe's script leaves behind."""
    monkeypatch.chdir(folder)
    (script,) = recipes()[name]
    path = folder / "script.py"
    path.write_text(script, encoding="utf-8")
    return runpy.run_path(str(path), run_name="__main__")


def temperatures_of(network: nn.Module) -> list[float]:
    """Those of its selections, which begin at 4."""
    return [float(buffer) for name, buffer in network.named_buffers() if name.endswith("temperature")]


def test_each_recipe_is_run_here() -> None:
    assert set(recipes()) == {"Lightning", "fastai", "Detection with torchvision"}


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    left = ran("Lightning", tmp_path, monkeypatch)
    assert left["trainer"].state.finished
    assert 0 <= left["trainer"].callback_metrics["accuracy"] <= 1
    temperatures = temperatures_of(left["model"])
    assert len(temperatures) == 6
    assert max(temperatures) < 4, "the hook has adapted none"


def test_fastai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastai")
    left = ran("fastai", tmp_path, monkeypatch)
    assert left["right"] > 0.6
    assert left["name"] in left["data"].vocab
    assert left["probabilities"].sum().item() == pytest.approx(1)
    # And the hook is called by fastai's loop, where there is something to adapt.
    network = nn.Sequential(
        AdaptiveCrossHadamard(3, k=2, selection="sample"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )
    learner = left["Learner"](
        left["data"], network, opt_func=left["partial"](left["OptimWrapper"], opt=torch.optim.SGD)
    )
    learner.create_opt()
    left["adapt_temperatures"](learner.opt.opt, network)
    learner.fit(1, 1e-3)
    assert temperatures_of(network)[0] < 4


def test_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = ran("Detection with torchvision", tmp_path, monkeypatch)
    losses, model, scene = left["losses"], left["model"], left["scene"]
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx", providers=["CPUExecutionProvider"])
    scripted = torch.jit.script(model)
    right = 0
    for seed in range(2_000_000, 2_000_006):
        image, target = scene(seed)
        with torch.no_grad():
            found = model([image])[0]
            again = scripted([image])[1][0]
        boxes, scores, labels = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        for name, exported in (("boxes", boxes), ("scores", scores), ("labels", labels)):
            torch.testing.assert_close(again[name], found[name])
            torch.testing.assert_close(torch.from_numpy(exported), found[name], rtol=1e-4, atol=1e-3)
        overlap = box_iou(target["boxes"], found["boxes"][:4]) * (target["labels"][:, None] == found["labels"][:4])
        right += int((overlap.amax(1) > 0.5).sum())
    assert right >= 9, "of 12 digits, by the four surest boxes of each canvas"
