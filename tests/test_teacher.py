"""Training with a teacher: what it says reaches the right image, whatever it is and whenever it is asked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from folders import fill
from processes import launch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from timm.task import LogitDistillationTask
from tiny import TINY, stopped_after, tiny_config
from torch import Tensor, nn

from hadaptive.cli import main
from hadaptive.data import Numbered, open_data
from hadaptive.errors import UserError
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, Trainer, resume, train, train_or_resume
from hadaptive.train.features import relations
from hadaptive.train.teacher import Lessons, Said, Teacher, open_teacher

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows the digits somewhat, of images of 12 pixels on another scale."""
    folder = tmp_path_factory.mktemp("teacher")
    scale = {"mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.4), "image_size": 12}
    train(tiny_config(folder, epochs=2, train_size=400, **scale), quiet=True)
    return folder / "run"


def taught(folder: Path, teacher: object, name: str = "taught", **changes: Any) -> TrainConfig:
    return tiny_config(folder, name, teacher=str(teacher), **changes)


def test_the_loss_is_timms(tmp_path: Path) -> None:
    student, other = (timm.create_model("test_resnet", num_classes=10).eval() for _ in range(2))
    config = taught(tmp_path, "x", teacher_weight=0.3, teacher_temperature=3.0, teacher_sees="batch")
    how = config.preprocessing
    for network in (student, other):  # on one scale
        network.pretrained_cfg = {**network.pretrained_cfg, "mean": how.mean, "std": how.std}
    x, y = torch.randn(6, 3, 32, 32), torch.randint(10, (6,))
    task = LogitDistillationTask(
        student,
        other,
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=0.3,
        task_loss_weight=0.7,
        temperature=3.0,
    )
    asked = Teacher("x", other, how, torch.arange(10), [])
    logits = student(x)
    lessons = Lessons(config, asked, student)
    own = lessons.loss(nn.functional.cross_entropy(logits, y), logits, lessons.said(x, None))
    torch.testing.assert_close(own, task(x, y)["loss"])


@pytest.mark.parametrize("sees", ["image", "batch"])
def test_what_it_says_is_of_the_image_that_is_seen(
    sees: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    real = Lessons.said

    def said_of(self: Lessons, images: Tensor, numbers: Tensor | None) -> Said:
        said = real(self, images, numbers)
        seen.append((images.clone(), said.logits))
        return said

    monkeypatch.setattr(Lessons, "said", said_of)
    size = {} if sees == "image" else {"image_size": 12}
    config = taught(tmp_path, teacher, teacher_sees=sees, epochs=1, shift=0, **size)
    how = config.preprocessing
    train(config, quiet=True)
    network, card = RunFolder(teacher).load_model()
    source = open_data(config.data).train
    told = (
        open_teacher(config, card.classes)
        .answers(source, in_memory=True, device=torch.device("cpu"))["logits"]
        .float()
    )
    if sees == "image":
        from hadaptive.data import eval_transform

        see = eval_transform(config.preprocessing)
        known = {see(source.read(i)[0]).numpy().tobytes(): told[i] for i in range(len(source))}
        for images, said in seen:
            for image, row in zip(images, said, strict=True):
                torch.testing.assert_close(row, known[image.contiguous().numpy().tobytes()])
    else:
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.preprocessing.mean, card.preprocessing.std))
        for images, said in seen:
            pixels = images * torch.tensor(how.std).view(1, 3, 1, 1) + torch.tensor(how.mean).view(1, 3, 1, 1)
            torch.testing.assert_close(said, network((pixels - mean) / std), rtol=1e-3, atol=1e-4)
    assert len(seen) == 200 // 32


def test_a_run_goes_on_without_its_teacher(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(teacher, tmp_path / "gone")
    config = taught(tmp_path, tmp_path / "gone", ema=0.9)
    train(config, quiet=True)
    assert not RunFolder(config.output).answers.exists()
    stopped_after(3, config.changed(output=tmp_path / "cut"), monkeypatch)
    assert load_file(tmp_path / "cut/teacher.safetensors")["logits"].shape == (200, 10)
    shutil.rmtree(tmp_path / "gone")
    resume(tmp_path / "cut", quiet=True)
    whole, cut = (load_file(tmp_path / name / "last.safetensors") for name in ("taught", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    plain = train(tiny_config(tmp_path, "plain", ema=0.9), quiet=True)
    alone = load_file(Path(plain["run"]) / "last.safetensors")
    assert not torch.equal(alone["classifier.weight"], whole["classifier.weight"])


def test_a_teacher_may_know_more_classes_in_another_order(tmp_path: Path) -> None:
    many = fill(tmp_path / "many", dict.fromkeys("abc", 24))
    train(tiny_config(tmp_path, "many-run", data=str(many), train_size=None, epochs=1), quiet=True)
    card = RunFolder(tmp_path / "many-run").read_card()
    few = fill(tmp_path / "few", dict.fromkeys("ca", 24))
    config = taught(tmp_path, tmp_path / "many-run", data=str(few), train_size=None, epochs=1)
    found = open_teacher(config, ["c", "a"])
    assert [card.classes[n] for n in found.order] == ["c", "a"]
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(found.answer(x, card.preprocessing).logits, found.network(x)[:, [2, 0]])
    train(config, quiet=True)
    with pytest.raises(UserError, match=r"does not know 'd': its classes are a, b, c"):
        open_teacher(config, ["a", "d"])


@pytest.mark.parametrize("kind", ["onnx", "safetensors", "foreign", "one at a time", "timm"])
def test_a_teacher_of_any_kind_says_the_same(kind: str, teacher: Path, tmp_path: Path) -> None:
    config = taught(tmp_path, teacher)
    network, card = RunFolder(teacher).load_model()
    name = tmp_path / "teacher.onnx"
    if kind in ("onnx", "safetensors"):
        name = tmp_path / f"teacher.{kind}"
        assert main(["export", str(teacher), "--format", kind, "--output", str(name), "--images", "8"]) == 0
    elif kind == "timm":
        network = timm.create_model("test_resnet", num_classes=10).eval()
        save_for_hf(network, str(tmp_path / "timm"), safe_serialization=True)
        name = f"local-dir:{tmp_path / 'timm'}"
    else:
        how = {} if kind == "one at a time" else {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)}
        x = torch.randn(1 if kind == "one at a time" else 2, 3, 12, 12)
        torch.onnx.export(network, (x,), str(name), dynamo=True, verbose=False, input_names=["pixels"], **how)
    found = open_teacher(config.changed(teacher=str(name)), card.classes)
    x = torch.randn(5, *found.preprocessing.input_size)
    torch.testing.assert_close(found.network(x), network(x), rtol=1e-3, atol=1e-4)
    assert bool(found.notes) == (kind in ("foreign", "one at a time", "timm"))
    assert (found.preprocessing == card.preprocessing) == (kind in ("onnx", "safetensors"))
    assert found.preprocessing.image_size == (160 if kind == "timm" else 12)


def test_numbers_and_classes_come_back(tmp_path: Path) -> None:
    source = open_data(tiny_config(tmp_path).data).train
    numbered = Numbered(source, 10)
    for index in range(len(numbered)):
        assert divmod(numbered.read(index)[1], 10) == (index, source.read(index)[1])
    assert numbered.name(3) == source.name(3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher": "nothing.onnx"}, "there is no teacher nothing.onnx"),
        ({"teacher": "nothing"}, "there is no model 'nothing'"),
        ({"teacher": "hadaptive_net_s"}, "timm has no weights called hadaptive_net_s"),
        ({"teacher": "OTHER"}, "knows 7 classes and the data have 10: train it on them first"),
        ({"teacher": "TEXT"}, "text.onnx is no ONNX file"),
        (
            {"teacher_sees": "batch"},
            "takes images of 3x12x12, and batches are of 3x8x8: pass --teacher-sees image",
        ),
        ({"mixup": 0.2}, "a teacher that sees each image once knows no mixup: pass teacher_sees batch"),
        ({"teacher_weight": 1.5}, "teacher_weight must lie between 0 and 1"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be positive"),
    ],
    ids=str,
)
def test_mistakes(changes: dict[str, Any], sentence: str, teacher: Path, tmp_path: Path) -> None:
    save_for_hf(timm.create_model("test_resnet", num_classes=7), str(tmp_path / "seven"), safe_serialization=True)
    (tmp_path / "text.onnx").write_text("no network")
    named = {"OTHER": f"local-dir:{tmp_path / 'seven'}", "TEXT": str(tmp_path / "text.onnx")}
    changes = {"teacher": teacher, **changes}
    changes["teacher"] = named.get(changes["teacher"], str(changes["teacher"]))
    with pytest.raises(UserError, match=sentence) as caught:
        train(tiny_config(tmp_path, **changes), quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_damaged_answers_are_said(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(1, taught(tmp_path, teacher), monkeypatch)
    answers = tmp_path / "taught/teacher.safetensors"
    save_file({"logits": torch.zeros(3, 10)}, answers)
    with pytest.raises(UserError, match="is of 3 images, not 200: delete it"):
        resume(tmp_path / "taught", quiet=True)
    answers.write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        resume(tmp_path / "taught", quiet=True)
    answers.unlink()  # asked again
    resume(tmp_path / "taught", quiet=True)


@pytest.mark.slow
def test_commands_and_two_processes(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"model": "test_vit", "image_size": 32, "epochs": 1, "opt": "sgd", "lr": 0.05, "cpu": True}
    config = taught(tmp_path, teacher, **common, teacher_weight=0.9, teacher_temperature=4.0)
    train(config, quiet=True)
    settings = {**config.given(), "output": tmp_path / "both", "cpu": None}
    flags = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)]
    done = launch(2, ["train", *(str(part) for part in flags if part is not None)])
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"asking {teacher} about 200 images, once for all" in " ".join(done.stdout.split())
    alone, both = (load_file(tmp_path / name / "last.safetensors") for name in ("taught", "both"))
    for name in alone:
        torch.testing.assert_close(alone[name], both[name], rtol=1e-3, atol=1e-5)
    assert json.loads((tmp_path / "both/config.json").read_text())["teaching"]["teacher"] == str(teacher)
    train_or_resume(config, quiet=True)
    assert main(["train", "--teacher-weight", "0.3"]) == 1
    assert "--teacher-weight has no effect here, for --teacher is not there" in capsys.readouterr().err


def test_answers_come_to_where_the_images_are(tmp_path: Path) -> None:
    """A runtime of files answers on the CPU, whatever the training's device."""
    how = tiny_config(tmp_path).preprocessing
    asked = Teacher("x", lambda images: torch.ones(len(images), 3, device="cpu"), how, torch.tensor([2, 0]), [])
    said = asked.answer(torch.empty(4, 3, 8, 8, device="meta"), how).logits
    assert (said.device.type, tuple(said.shape)) == ("meta", (4, 2))


def test_a_file_that_ends_in_a_softmax_teaches_the_same(teacher: Path, tmp_path: Path) -> None:
    network, card = RunFolder(teacher).load_model()
    path, x = tmp_path / "shares.onnx", torch.randn(2, 3, 12, 12)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    shares = nn.Sequential(network, nn.Softmax(1)).eval()
    torch.onnx.export(shares, (x,), str(path), dynamo=True, verbose=False, dynamic_shapes=shapes)
    found = open_teacher(taught(tmp_path, path), card.classes)
    torch.testing.assert_close(found.network(x), network(x).log_softmax(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{"teacher_weight": 0.6}, {"class_weights": True}], ids=str)
def test_score_functions_see_the_loss_that_is_trained(
    changes: dict[str, Any], teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(
        "hadaptive.train.trainer.score_function_term", lambda _, losses: seen.append(losses) or 0.0
    )
    values: list[float] = []
    real = Trainer.micro_step
    monkeypatch.setattr(Trainer, "micro_step", lambda *a: values.append(real(*a)) or values[-1])
    spec = replace(TINY, surrogate="sfess")
    spec.save(tmp_path / "sfess.json")
    more = {"teacher": str(teacher)} if "teacher_weight" in changes else {}
    config = tiny_config(tmp_path, epochs=1, **{**changes, **more, "model": str(tmp_path / "sfess.json")})
    train(config, quiet=True)
    assert [float(losses.mean()) for losses in seen] == pytest.approx(values, rel=1e-4)


def test_relations_are_the_papers_and_know_no_scale() -> None:
    one, two = torch.randn(5, 7, dtype=torch.double), torch.randn(5, 3, dtype=torch.double)

    def by_hand(x: Tensor) -> Tensor:
        apart = torch.cdist(x, x)
        return apart / apart[apart > 0].mean()

    expected = nn.functional.smooth_l1_loss(by_hand(one), by_hand(two), reduction="none").mean(1)
    torch.testing.assert_close(relations(one, two), expected)
    torch.testing.assert_close(relations(3 * one + 1, two), expected)
    assert torch.equal(relations(one, one), torch.zeros(5, dtype=torch.double))
    same = torch.ones(4, 3, requires_grad=True)  # images that are all alike
    relations(same, two[:4].float()).sum().backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()
    torch.autograd.gradcheck(lambda x: relations(x, two), one.requires_grad_())


@pytest.mark.parametrize("sees", ["image", "batch"])
def test_features_come_nearer_to_the_teachers(sees: str, teacher: Path, tmp_path: Path) -> None:
    how = {"teacher_sees": sees, "image_size": 12, "epochs": 6, "shift": 0, "teacher_weight": 0.0, "lr": 5e-3}
    told = open_teacher(taught(tmp_path, teacher, "x", teacher_features=1.0), [*"0123456789"])
    gaps = []
    for weight in (0.0, 5.0):
        config = taught(tmp_path, teacher, f"{weight}", teacher_features=weight, **how)
        train(config, quiet=True)
        network, card = RunFolder.open(config.output or "").load_model("last")
        source = RunFolder.open(config.output or "").open_data().validation
        watched = Teacher("x", network, card.preprocessing, torch.arange(10), [])
        watched.watch()
        own, theirs = (
            one.answers(source, in_memory=True, device=torch.device("cpu"))["features"].float()
            for one in (watched, told)
        )
        gaps.append(float(relations(own, theirs).mean()))
    assert gaps[1] < 0.8 * gaps[0]


def test_an_output_for_the_teacher_learns_from_it_and_labels_teach_the_other(tmp_path: Path) -> None:
    student = timm.models.deit.VisionTransformerDistilled(
        img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=10
    )
    other = timm.create_model("test_resnet", num_classes=10).eval()
    config = taught(tmp_path, "x", teacher_sees="batch")
    lessons = Lessons(config, Teacher("x", other, config.preprocessing, torch.arange(10), []), student)
    student.train()
    logits, to_teacher = student(torch.randn(4, 3, 16, 16))
    loss = nn.functional.cross_entropy(logits, torch.arange(4))
    lessons.loss(loss, to_teacher, Said(torch.randn(4, 10), None)).backward()
    by_labels, by_teacher = student.head.bias.grad, student.head_dist.bias.grad
    assert by_labels is not None
    assert by_teacher is not None
    torch.testing.assert_close(by_labels, 0.5 * (logits.softmax(1) - torch.eye(10)[:4]).mean(0))
    assert not torch.allclose(by_teacher, by_labels)


def test_a_network_with_such_an_output_is_trained(teacher: Path, tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    config = taught(tmp_path, teacher, image_size=32, epochs=1, train_size=64, model=name, teacher_features=1.0)
    assert train(config, quiet=True)["test"]["images"]


def test_features_of_files_and_of_compiled_networks_are_refused(teacher: Path, tmp_path: Path) -> None:
    assert main(["export", str(teacher), "--output", str(tmp_path / "teacher.onnx")]) == 0
    with pytest.raises(UserError, match="is a file, which tells nothing but its answer"):
        train(taught(tmp_path, tmp_path / "teacher.onnx", teacher_features=1.0), quiet=True)
    with pytest.raises(UserError, match="which compile hides"):
        taught(tmp_path, teacher, teacher_features=1.0, compile=True)
