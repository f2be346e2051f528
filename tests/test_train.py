"""The training loop: what it leaves behind, and that nothing changes when it is interrupted."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import dying
import pytest
import torch
from folders import fill
from processes import forked, launch, launch_work
from safetensors.torch import load_file
from tiny import TINY, stopped_after, tiny_config, trainer_of
from torch import nn

from hadaptive.engine.finite import first_non_finite
from hadaptive.files import read_csv
from hadaptive.runs import RunFolder
from hadaptive.train import (
    NonFiniteLossError,
    TrainConfig,
    Trainer,
    TrainingInterruptedError,
    resume,
    train,
    train_or_resume,
)


def assert_same_weights(a: Path, b: Path, which: str = "last") -> None:
    first, second = load_file(RunFolder(a).weights(which)), load_file(RunFolder(b).weights(which))
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def rows_without_times(run: Path) -> list[dict[str, str]]:
    rows = read_csv(RunFolder(run).metrics) + read_csv(RunFolder(run).selection)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run that several tests look at and compare with."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny_config(folder, ema=0.9), quiet=True)
    return folder / "run"


def test_a_run_folder_holds_everything(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "model.json",
        "split.csv",
        "metrics.csv",
        "selection.csv",
        "best.safetensors",
        "last.safetensors",
        "checkpoint.pt",
        "model.safetensors",
        "curves.png",
        "calibration.json",
        "summary.json",
    }
    metrics = read_csv(finished / "metrics.csv")
    assert [row["epoch"] for row in metrics] == ["0", "1"]
    assert all(math.isfinite(float(row["train_loss"])) for row in metrics)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["test"]["images"] == 360
    assert summary["train_images"] == 200


def test_selection_stats_rows_per_epoch_and_layer(finished: Path) -> None:
    rows = read_csv(finished / "selection.csv")
    assert len(rows) == 2 * 2
    for row in rows:
        assert 0 <= float(row["agreement"]) <= 1
        assert 0.01 <= float(row["temperature"]) <= 4.0
    batchnorm = [row for row in rows if math.isnan(float(row["alpha"]))]
    assert len(batchnorm) == 2


def test_temperature_moves_and_is_saved(finished: Path) -> None:
    weights = load_file(finished / "last.safetensors")
    checkpointed = [v.item() for k, v in weights.items() if k.endswith("select.temperature")]
    assert len(checkpointed) == 2
    assert all(t < 4.0 for t in checkpointed)


def test_config_round_trip_runs_again_to_the_same_weights(finished: Path, tmp_path: Path) -> None:
    config = TrainConfig.from_dict(json.loads((finished / "config.json").read_text()))
    again = config.changed(output=tmp_path / "again")
    train(again, quiet=True)
    assert_same_weights(finished, tmp_path / "again")
    assert_same_weights(finished, tmp_path / "again", "best")


def test_seed_changes_the_weights(finished: Path, tmp_path: Path) -> None:
    train(tiny_config(tmp_path, seed=1, ema=0.9), quiet=True)
    with pytest.raises(AssertionError):
        assert_same_weights(finished, tmp_path / "run")


def test_existing_folder_is_never_overwritten(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="never overwritten"):
        train(tiny_config(tmp_path, "mine"), quiet=True)
    assert [p.name for p in target.iterdir()] == ["precious.txt"]


def test_mistakes_leave_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model"):
        train(tiny_config(tmp_path, model="resnet_nope"), quiet=True)
    assert not (tmp_path / "run").exists()


def run_and_die(folder: Path, name: str, sent: int, at: int, **changes: object) -> int:
    """Train in a process of its own that sends itself a signal in step `at`; return its exit status."""
    done = forked(dying.train_and_die, folder, name, sent, at, changes)
    assert done.returncode < 0, done.stderr
    return done.returncode


@pytest.mark.parametrize("checkpoint_every", [0, 4], ids=["last-epoch", "mid-epoch"])
def test_kill_9_then_resume_gives_the_uninterrupted_weights(
    finished: Path, tmp_path: Path, checkpoint_every: int
) -> None:
    # 6 steps an epoch: step 11 is the fifth of the second epoch.
    status = run_and_die(tmp_path, "run", signal.SIGKILL, at=11, checkpoint_every=checkpoint_every, ema=0.9)
    assert status == -signal.SIGKILL
    saved = RunFolder(tmp_path / "run").load_checkpoint()
    assert (saved["epoch"], saved["step"]) == (1, 4 if checkpoint_every else 0)
    resume(tmp_path / "run", quiet=True)
    assert_same_weights(finished, tmp_path / "run")
    assert_same_weights(finished, tmp_path / "run", "best")
    assert rows_without_times(finished) == rows_without_times(tmp_path / "run")


def test_kill_9_before_the_first_checkpoint_starts_again(finished: Path, tmp_path: Path) -> None:
    assert run_and_die(tmp_path, "run", signal.SIGKILL, at=2, ema=0.9) == -signal.SIGKILL
    resume(tmp_path / "run", quiet=True)
    assert_same_weights(finished, tmp_path / "run")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_interrupt_leaves_a_resumable_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_number: int
) -> None:
    step, count = Trainer.micro_step, [0]

    def interrupted(self, *args):
        count[0] += 1
        if count[0] == 8:
            os.kill(os.getpid(), signal_number)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "micro_step", interrupted)
    before = signal.getsignal(signal_number)
    with pytest.raises(TrainingInterruptedError):
        train(tiny_config(tmp_path, ema=0.9), quiet=True)
    assert signal.getsignal(signal_number) is before
    saved = RunFolder(tmp_path / "run").load_checkpoint()
    assert (saved["epoch"], saved["step"]) == (1, 2)
    resume(tmp_path / "run", quiet=True)
    assert_same_weights(finished, tmp_path / "run")
    assert rows_without_times(finished) == rows_without_times(tmp_path / "run")


def test_resume_of_a_finished_run_says_so(finished: Path) -> None:
    with pytest.raises(ValueError, match="finished"):
        resume(finished)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"], ids=["empty", "garbage"])
def test_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    assert run_and_die(tmp_path, "run", signal.SIGKILL, at=8) == -signal.SIGKILL
    (tmp_path / "run" / "checkpoint.pt").write_bytes(damage)
    with pytest.raises(ValueError, match="damaged"):
        resume(tmp_path / "run", quiet=True)


def test_a_pickle_in_place_of_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "trapped",))

    run = RunFolder.create(tmp_path / "run")
    torch.save({"epoch": Trap()}, run.checkpoint)
    with pytest.raises(ValueError, match="damaged"):
        run.load_checkpoint()
    assert not (tmp_path / "trapped").exists()


def test_loader_processes_do_not_change_the_weights(finished: Path, tmp_path: Path) -> None:
    train(tiny_config(tmp_path, workers=2, ema=0.9), quiet=True)
    assert_same_weights(finished, tmp_path / "run")


def test_accumulation_uses_every_image_once(tmp_path: Path) -> None:
    # A network without BatchNorm, so that the parts of a batch add up exactly.
    options = {"model": "test_vit", "image_size": 32, "epochs": 1, "weight_decay": 0.0, "opt": "sgd", "lr": 0.05}
    train(tiny_config(tmp_path, "whole", **options), quiet=True)
    train(tiny_config(tmp_path, "parts", accumulate=4, **options), quiet=True)
    whole, parts = (
        load_file(tmp_path / "whole" / "last.safetensors"),
        load_file(tmp_path / "parts/last.safetensors"),
    )
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-5)


def test_accumulated_run_resumes_exactly(tmp_path: Path) -> None:
    options = {"accumulate": 2, "checkpoint_every": 1, "mixup": 0.2, "label_smoothing": 0.1, "clip_grad": 1.0}
    train(tiny_config(tmp_path, "whole", **options), quiet=True)
    assert run_and_die(tmp_path, "cut", signal.SIGKILL, at=18, **options) == -signal.SIGKILL
    resume(tmp_path / "cut", quiet=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")


def test_rival_from_timm_trains_under_the_same_recipe(tmp_path: Path) -> None:
    summary = train(tiny_config(tmp_path, model="mobilenetv3_small_050", image_size=32, epochs=1), quiet=True)
    assert summary["model"] == "mobilenetv3_small_050"
    assert not (tmp_path / "run" / "selection.csv").exists()


def test_non_finite_loss_names_the_module(tmp_path: Path) -> None:
    trainer = trainer_of(tiny_config(tmp_path))
    with torch.no_grad():
        trainer.network.stages[1][1].project[0].weight[0, 0] = float("nan")
    with pytest.raises(
        NonFiniteLossError, match=r"stages\.1\.1\.project\.0 \(Conv2d\).*stages\.1\.1\.project\.0\."
    ):
        trainer.fit(RunFolder.create(tmp_path / "run"))


@pytest.mark.parametrize(
    ("images", "spoil", "expected"),
    [
        (torch.full((1, 2), float("nan")), None, "input images"),
        (torch.ones(1, 2), "1", "1 (Linear)"),
        (torch.ones(1, 2), None, "loss itself"),
    ],
    ids=["input", "module", "loss"],
)
def test_first_non_finite(images: torch.Tensor, spoil: str | None, expected: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if spoil is not None:
        with torch.no_grad():
            model.get_submodule(spoil).weight.fill_(float("inf"))
    assert expected in first_non_finite(model, images)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"batch_size": 33, "accumulate": 2}, "divisible"),
        ({"batch_size": 1}, "at least 2 images"),
        ({"batch_size": 512}, "fewer than batch_size"),
        ({"opt": "nope"}, "nope"),
        ({"sched": "nope"}, "nope"),
        ({"model": "hadaptive_net_s", "image_size": 8}, "larger image_size or stem_strides"),
        ({"mixup": 0.5, "batch_size": 33}, "even number"),
        ({"mean": (0.5,)}, "mean and std"),
        ({"warmup": 2.0}, "warmup must lie between"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_one_sentence(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        train(tiny_config(tmp_path, **changes), quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_unknown_recipe_and_setting() -> None:
    with pytest.raises(ValueError, match="no recipe 'nope'"):
        TrainConfig.from_recipe("nope")
    with pytest.raises(ValueError, match="no setting learning_rate"):
        TrainConfig.from_recipe("quick", learning_rate=1)


def flags(config: TrainConfig) -> list[str]:
    """The flags that give `config`, as a person would type them."""
    names = ("model", "output", "epochs", "batch_size", "image_size", "train_size", "shift", "opt", "lr", "select")
    typed = [part for name in names for part in (f"--{name.replace('_', '-')}", str(config.flat()[name]))]
    return ["train", *typed, "--cpu"]


@pytest.mark.slow
def test_two_processes_give_the_single_process_weights(tmp_path: Path) -> None:
    # A network without BatchNorm and noise: two halves of each batch must add up to the whole.
    options = {"model": "test_vit", "image_size": 32, "epochs": 2, "opt": "sgd", "lr": 0.05}
    alone, both = tiny_config(tmp_path, "alone", **options), tiny_config(tmp_path, "both", **options)
    train(alone, quiet=True)
    done = launch(2, flags(both))
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = load_file(tmp_path / "alone/last.safetensors"), load_file(tmp_path / "both/last.safetensors")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
    single, double = (read_csv(tmp_path / name / "metrics.csv") for name in ("alone", "both"))
    assert [row["val_accuracy"] for row in single] == [row["val_accuracy"] for row in double]
    assert json.loads((tmp_path / "both/summary.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_two_processes_train_a_hadaptive_net(tmp_path: Path) -> None:
    """BatchNorm sees half batches and each process its own noise, so only the outcome can agree."""
    config = tiny_config(tmp_path, "both", epochs=12, train_size=1200, lr=5e-3)
    done = launch(2, flags(config))
    assert done.returncode == 0, done.stderr[-2000:]
    alone = train(config.changed(output=tmp_path / "alone"), quiet=True)
    both = json.loads((tmp_path / "both/summary.json").read_text())
    assert min(alone["test"]["accuracy"], both["test"]["accuracy"]) > 0.7


def test_a_run_is_known_by_its_network_never_by_a_files_name(tmp_path: Path) -> None:
    first, second = tmp_path / "a/net.json", tmp_path / "b/net.json"
    for path, channels in ((first, 12), (second, 16)):
        path.parent.mkdir()
        dataclasses.replace(TINY, last_channels=2 * channels).save(path)
    config = tiny_config(tmp_path, model=str(first), epochs=1)
    summary = train_or_resume(config, quiet=True)
    assert train_or_resume(config, quiet=True) == summary
    with pytest.raises(ValueError, match=r"other settings \(network\)"):
        train_or_resume(config.changed(model=str(second)), quiet=True)
    moved = tmp_path / "elsewhere.json"  # the same network under another name is the same network
    first.rename(moved)
    assert train_or_resume(config.changed(model=str(moved)), quiet=True) == summary
    dataclasses.replace(TINY, last_channels=40).save(moved)  # and another one under the same name is another
    with pytest.raises(ValueError, match=r"other settings \(network\)"):
        train_or_resume(config.changed(model=str(moved)), quiet=True)
    with pytest.raises(ValueError, match=r"other settings \(lr\)"):
        train_or_resume(config.changed(model=str(moved), lr=1.0), quiet=True) if not TINY.save(moved) else None


@pytest.mark.slow
def test_two_processes_need_no_word_about_a_missing_gpu(tmp_path: Path) -> None:
    """Without --cpu, both took themselves for the only one. Under torchrun itself: test_documented."""
    typed = [flag for flag in flags(tiny_config(tmp_path, "both", epochs=1)) if flag != "--cpu"]
    done = launch(2, typed)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "both/summary.json").read_text())["processes"] == 2
    done = launch(2, ["evaluate", str(tmp_path / "both")])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("classes, hardest first") == 1
    assert done.stdout.count("95% interval") == 1


@pytest.mark.slow
def test_whatever_fails_in_the_main_process_ends_the_others(tmp_path: Path) -> None:
    done = launch_work(2, dying.fail_in_the_main_process, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no space left" in (tmp_path / "main").read_text()
    assert "no space left" in (tmp_path / "other").read_text()


def test_the_name_of_a_new_folder_is_one_processs_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that looked at their clocks in different seconds wrote into different folders."""
    chosen = []
    monkeypatch.setattr(
        "hadaptive.train.launch.on_main", lambda accelerator, action: chosen.append(action()) or chosen[0]
    )
    monkeypatch.chdir(tmp_path)
    summary = train(tiny_config(tmp_path, epochs=1, output=None), quiet=True)
    assert summary["run"] == str(chosen[0])


@pytest.mark.slow
def test_two_processes_resume_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"epochs": 2, "checkpoint_every": 1}
    whole, cut = (tiny_config(tmp_path, name, **settings) for name in ("whole", "cut"))
    typed = {c: [*flags(c), "--checkpoint-every", "1", "--epochs", "2"] for c in (whole, cut)}
    assert launch(2, typed[whole]).returncode == 0
    done = launch(2, typed[cut], die_at=9)
    assert done.returncode != 0
    assert not (tmp_path / "cut/summary.json").exists()
    saved = RunFolder(tmp_path / "cut").load_checkpoint()
    assert (saved["epoch"], saved["step"]) == (1, 2)
    done = launch(2, ["train", "--resume", str(tmp_path / "cut")])
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    assert rows_without_times(tmp_path / "whole") == rows_without_times(tmp_path / "cut")


def test_patience_ends_a_run_early_and_a_resumed_one_alike(tmp_path: Path, monkeypatch, capsys) -> None:
    config = tiny_config(tmp_path, "whole", epochs=9, lr=0.05, select="last")
    train(config, quiet=True)
    summary = train(config.changed(output=tmp_path / "early", patience=1))
    rows, early = (read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "early"))
    scores = [(float(row["val_accuracy"]), -float(row["val_loss"])) for row in rows]
    best, expected = -1, len(rows)
    for epoch, score in enumerate(scores):
        if best < 0 or score > scores[best]:
            best = epoch
        if epoch - best >= 1:
            expected = epoch + 1
            break
    assert expected < len(rows)  # else this shows nothing
    assert summary["epochs"] == len(early) == expected
    assert f"ended after {expected} epochs of 9: for 1 validation was not better" in capsys.readouterr().out
    assert [row["val_loss"] for row in early] == [row["val_loss"] for row in rows[:expected]]
    stopped_after(3, config.changed(output=tmp_path / "cut", patience=1), monkeypatch)
    assert resume(tmp_path / "cut", quiet=True)["epochs"] == expected
    assert_same_weights(tmp_path / "early", tmp_path / "cut")


def test_classes_of_few_images_count_as_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets = fill(tmp_path / "pets", {"cat": 80, "dog": 16, "fox": 8})
    config = tiny_config(tmp_path, data=str(pets), train_size=None, epochs=1, test_fraction=0.1, batch_size=8)
    seen: list[int] = []
    real = Trainer.ready
    monkeypatch.setattr(Trainer, "ready", lambda self, x, y: seen.extend(y.tolist()) or real(self, x, y))
    for balanced in (False, True):
        seen.clear()
        train(config.changed(balanced=balanced, output=tmp_path / str(balanced)), quiet=True)
        counts = [seen.count(c) for c in range(3)]
        assert (max(counts) - min(counts) <= 1) is balanced
    trainer = trainer_of(config.changed(class_weights=True, label_smoothing=0.1))
    counts = trainer.batches.counts
    weights = trainer.criterion.weights
    assert (weights * torch.from_numpy(counts)).tolist() == pytest.approx([counts.sum() / 3] * 3)
    trainer.criterion.smoothing = 0.0
    logits = torch.randn(counts.sum(), 3)
    targets = torch.repeat_interleave(torch.arange(3), torch.from_numpy(counts))
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    by_class = torch.stack([losses[targets == c].mean() for c in range(3)])
    torch.testing.assert_close(trainer.criterion(logits, targets), by_class.mean())
    torch.testing.assert_close(trainer.criterion.each(logits, targets).mean(), by_class.mean())
