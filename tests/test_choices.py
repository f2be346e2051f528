"""Every choice a configuration offers is made at least once by a command as a person types it.

The choices are read from the configurations themselves, so that a new one without a command fails here.
"""

import dataclasses
import itertools
import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import test_bench_accuracy
import test_bench_trial
import test_dry_run
import test_fitting
import test_latency_table
import test_plug
import test_stability
import test_tracking
import timm
from folders import picture
from hub import standing_in
from PIL import Image
from timm.models import save_for_hf
from tiny import WIDE_CHOICE, WIDE_SPACE

from hadaptive.bench.config import (
    AblationConfig,
    AccuracyConfig,
    LatencyBenchConfig,
    NetworksConfig,
    PluginConfig,
    StabilityConfig,
)
from hadaptive.cli import COMMANDS, main
from hadaptive.commands import (
    DataCommand,
    DemoCommand,
    DoctorCommand,
    EvaluateCommand,
    InfoCommand,
    LatencyCommand,
    PredictCommand,
    PushCommand,
    ReportCommand,
    RunsCommand,
    SearchCommand,
    SpacesCommand,
    TrainCommand,
)
from hadaptive.engine.recipes import RECIPES
from hadaptive.export.config import ExportConfig
from hadaptive.models import ConvSpec, NetSpec
from hadaptive.models.layer_spec import KINDS, ach, conv, ghost, inverted, poly, products
from hadaptive.models.variants import PLUGS, VARIANTS
from hadaptive.nn import ACTIVATIONS, NORMS
from hadaptive.nn.ach import PAIRINGS
from hadaptive.nn.checks import JOINS, ORDERS, SELECTIONS, SURROGATES
from hadaptive.runs import RunFolder
from hadaptive.search import LatencyTable, SearchSpace, Setting, latency
from hadaptive.search.config import SearchConfig, StudyConfig
from hadaptive.search.spaces import names as spaces

# Libraries' own, while they export.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

Choice = tuple[str, str, Any]  # command or part, setting, value

CONFIGURATIONS: dict[str, type] = {
    "train": TrainCommand,
    "search": SearchCommand,
    "latency": LatencyCommand,
    "spaces": SpacesCommand,
    "data": DataCommand,
    "evaluate": EvaluateCommand,
    "report": ReportCommand,
    "predict": PredictCommand,
    "info": InfoCommand,
    "runs": RunsCommand,
    "export": ExportConfig,
    "push": PushCommand,
    "demo": DemoCommand,
    "doctor": DoctorCommand,
    "bench accuracy": AccuracyConfig,
    "bench latency": LatencyBenchConfig,
    "bench networks": NetworksConfig,
    "bench ablation": AblationConfig,
    "bench plugin": PluginConfig,
    "bench stability": StabilityConfig,
}
# Names that are no type: those of registries.
REGISTERED: dict[tuple[str, str], tuple[str, ...]] = {
    ("train", "recipe"): tuple(RECIPES),
    ("search", "space"): tuple(spaces()),
    ("latency", "space"): tuple(spaces()),
    ("spaces", "space"): tuple(spaces()),
    ("network", "norm"): tuple(NORMS),
    ("network", "kind"): tuple(KINDS),
    ("network", "activation"): tuple(ACTIVATIONS),
    ("network", "order"): ORDERS,
    ("network", "surrogate"): SURROGATES,
    ("network", "selection"): SELECTIONS,
    ("network", "pairing"): PAIRINGS,
    ("network", "join"): JOINS,
    ("network", "reparam"): (True, False),
    ("network", "layer_scale"): (1.0, None),
    ("network", "variant"): tuple(VARIANTS),
    ("network", "plug"): tuple(PLUGS),
}


# ---------------------------------------------------------------- what there is to choose


def values(hint: Any) -> set[Any]:
    """The values of a choice: of a Literal, alone or within another type, and of a switch."""
    if hint is bool:
        return {True, False}
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    return {value for part in get_args(hint) for value in values(part)}


def settings(kind: type, owner: str) -> Iterator[tuple[str, str, Any, Any]]:
    """Owner, name, type and default of every setting: those of a part are the part's, whichever command has it."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            part = owner if hint in (SearchConfig, StudyConfig) else hint.__name__
            yield from settings(hint, part)  # pyright: ignore[reportArgumentType]
        else:
            yield owner, field.name, hint, field.default


def offered() -> set[Choice]:
    """Every choice of every command."""
    found: set[Choice] = {
        (owner, name, value)
        for command, kind in CONFIGURATIONS.items()
        for owner, name, hint, _ in settings(kind, command)
        for value in values(hint)
    }
    return found | {(*where, value) for where, known in REGISTERED.items() for value in known}


# ---------------------------------------------------------------- what is chosen


def network(**options: Any) -> NetSpec:
    """Every kind of block, every norm in a layer of its own, and all that can be added."""
    linear, whole = inverted(2, 3, 12, act=False), ach(3, 3, 12, pairing="blocks")
    others = (conv(12, 3, 1), products(2, 16, 3, 12, after=True), products(4, 1, 3, 12, act=False, norm="dysoft"))
    others += (poly(3, 12), inverted(2, 3, 12, groups=2))
    others += (ghost(2, 3, 12, join="add"), dataclasses.replace(ach(4, 3, 12), join="add"))
    expansions = (ghost(2, 3, 12), inverted(2, 3, 12), linear, whole)
    blocks = (*others, *expansions, *(ach(4, 3, 12, norm=norm) for norm in NORMS))
    return NetSpec("all", ConvSpec(8, 3, 1), (ConvSpec(8, 2, 2),), (blocks,), 16, 16, **options)


SPECS = {
    f"{order}-{s}.json": network(order=order, surrogate=s) for order, s in itertools.product(ORDERS, SURROGATES)
}
SPECS |= {f"{name}.json": network(selection=name) for name in SELECTIONS if name != "sample"}
SPECS |= {"relu6.json": network(activation="relu6", reparam=True)}
SPECS |= {"relu.json": network(activation="relu", layer_scale=1.0)}
ONE = SearchSpace(
    "one", (ConvSpec(8, 2, 2),), (), (((ghost(2, 3, 8), ach(4, 3, 8), products(2, 8, 3, 8)),),), 8, 8
)
TABLE = LatencyTable(
    space=ONE.fingerprint,
    times=[[0.0], [1.0, 2.0, 3.0]],
    rest=1.0,
    slope=1.0,
    offset=0.0,
    references={"S": 2.5},
    where={"device": "another"},
    networks={"number": 3, "median_error": 0.0},
    setting=Setting(image_size=16, num_classes=3),
)

SMALL = "--data pets --image-size 16 --batch-size 8 --epochs 1"
TRAININGS = [
    "--recipe quick --model rank-softmax.json --interpolation nearest --mixed-precision bf16 --strict --cpu",
    "--recipe fmnist --model rank-softmax_k.json --interpolation box --no-channels-last --select last "
    "--mixed-precision fp16 --clip-grad 1",
    "--recipe fmnist-small --train-size 20 --val-fraction 0.2 --model index-softmax.json --interpolation hamming",
    "--recipe paper --model index-softmax_k.json --interpolation lanczos --fit stretch",
    "--recipe quick --model rank-sfess.json",
    "--recipe quick --model one-ach.json --compile --train-size 24 --batch-size 12 --quiet",
    "--recipe folder --model rank-softmax.json --interpolation bilinear --track tensorboard",
    "--recipe imagenet --model rank-simple.json --interpolation bicubic",
    "--recipe few-50 --train-size 20 --val-fraction 0.2 --model static.json",
    "--recipe few-500 --train-size 20 --val-fraction 0.2 --model grouped.json",
    "--recipe few-digits --train-size 24 --model random.json",
    "--recipe fmnist-long --train-size 20 --val-fraction 0.2 --model one-ach.json",
    "--recipe cooccurrence --train-size 24 --model one-ach.json",
    "--recipe quick --model relu6.json --train-size 24 --class-weights --multi-label --label-separator ,",
    "--recipe quick --model relu.json --train-size 24 --balanced",
    "--recipe quick --model local-dir:timm --pretrained --freeze-backbone 1 --layer-decay 0.8",
    "--recipe quick --model one-ach.json --teacher run --teacher-sees batch --teacher-features 1 --mixup 0.2",
]
SEARCHES = [
    "--space one.json --estimator gdas --no-channels-last --quiet --mixed-precision bf16",
    "--space one.json --latency-target 0.8xS --latency-table table.json --foreign-table --strict --cpu",
    "--space wide.json --frozen --latency-target 0.8xS --baseline random 2 --retrain-seeds 1 --fresh-table",
    "--space one.json --method evolution --population 4 --generations 4 --epochs 4 --baseline best 2 evolution 4 "
    "--retrain-seeds 1",
    "--space one.json --latency-target 1.2xS --runtime compile",
    *(f"--space {name} --image-size 32 --train-size 16 --stem-strides 1" for name in spaces() if name != "star"),
    "--space star --method evolution --population 4 --generations 4 --image-size 32 --train-size 16 "
    "--max-params 3M",
]
TABLES = [f"{name} --image-size 32 --stem-strides 1 --rounds 5 --networks 3" for name in spaces()]
TABLES[0] += " --no-channels-last --frozen"
EXPORTS = [
    "run --format onnx",
    "small --format onnx --freeze --force --weights best",
    "small --format openvino --weights last",
    "small --format openvino --freeze --force",
    "small --format executorch",
    "small --format executorch --freeze --force",
    "small --format coreml",
    "small --format coreml --freeze --force",
    "small --format ncnn --freeze --force",
    "small --format torch",
    "run --format torch --freeze --force",
    "run --format safetensors",
    "run --format safetensors --freeze --force",
    "run --format timm",
    "small --format timm --freeze --force",
    "small --format onnx --int8 --force",
    "run --format onnx --freeze --int8 --force",
    "run --format openvino --int8 --force",
    "small --format openvino --freeze --int8 --force",
]
BENCH = "--models one-ach.json --image-size 16 --rounds 1 --calls 2 --threads 1"
COMMAND_LINES = [
    *(f"train {SMALL} {flags}" for flags in TRAININGS),
    *(f"search {SMALL} {flags}" for flags in SEARCHES),
    *(f"latency {flags}" for flags in TABLES),
    *(f"export {flags} --images 8 --calibration 8 --sensitivity 8" for flags in EXPORTS),
    *(f"spaces {name}" for name in spaces()),
    "data pets",
    "data pets --json --multi-label",
    "evaluate run --split validation --weights best --cpu",
    "evaluate run --weights last",
    "report run --split validation --cpu",
    "report run --split test",
    "predict run pets --weights best --json",
    "predict run pets --weights last",
    "predict torch.pt2 pets/cat/0.png --trust",
    "push run mine --weights best --public",
    "push run mine --weights last --overwrite",
    "info run --json",
    "runs . --json",
    "runs run small --plot runs.png",
    *(f"info one-ach.json:{name} --image-size 16" for name in VARIANTS),
    f"bench latency {BENCH} --runtimes eager compile --isa avx2",
    f"bench latency {BENCH} --runtimes onnxruntime openvino executorch",
]
# Choices of commands that are typed in other tests, which say more of them: a parametrised test, and its argument.
ELSEWHERE: dict[tuple[str, str], tuple[Any, str]] = {
    ("train", "dry_run"): (test_dry_run.test_what_it_says_and_that_it_leaves_nothing, "dry_run"),
    ("Optimisation", "batch_size"): (test_fitting.test_it_is_in_the_settings_of_the_run_and_resumed, "batch_size"),
    ("Setting", "runtime"): (test_latency_table.test_a_table_in_each_runtime_and_nothing_else_is_said, "runtime"),
    ("Execution", "track"): (test_tracking.test_other_trackers_are_told_settings_and_figures, "name"),
    ("bench stability", "norms"): (test_stability.test_rows_and_a_picture, "norms"),
    ("bench ablation", "groups"): (test_bench_trial.test_every_variant_of_a_group_is_trained, "group"),
    ("Sharing", "executor"): (test_bench_accuracy.test_several_trainings_at_once_give_the_same_rows, "executor"),
    ("TrialConfig", "train"): (test_bench_trial.test_trained_and_timed_once_as_asked, "train"),
    ("TrialConfig", "measure"): (test_bench_trial.test_trained_and_timed_once_as_asked, "measure"),
    ("network", "plug"): (test_plug.test_a_plugged_network_has_a_name_that_commands_take, "plugged"),
    ("LatencyGoal", "runtime"): (test_latency_table.test_a_search_for_a_runtime_of_exported_files, "runtime"),
}


def chosen(line: str) -> set[Choice]:
    """The choices that a command line makes, by its flags and by leaving them out."""
    words = shlex.split(line)
    command = " ".join(words[: 2 if words[0] == "bench" else 1])
    rest, found = words[len(command.split()) :], set()
    for owner, name, hint, default in settings(CONFIGURATIONS[command], command):
        flag = f"--{name.replace('_', '-')}"
        known = values(hint) | set(REGISTERED.get((owner, name), ()))
        if hint is bool:
            found.add((owner, name, flag in rest or (default is True and f"--no-{flag[2:]}" not in rest)))
        elif flag in rest:
            after = itertools.takewhile(lambda word: not word.startswith("--"), rest[rest.index(flag) + 1 :])
            found |= {(owner, name, word) for word in after if word in known}
        elif isinstance(default, str) and default in known and name != "space":
            found.add((owner, name, default))
        elif rest and rest[0] in known and name == "space":
            found.add((owner, name, rest[0]))
    for name, spec in SPECS.items():
        if name in words and words[0] == "train":
            for name in ("order", "surrogate", "selection", "activation", "reparam", "layer_scale"):
                found.add(("network", name, getattr(spec, name)))
            blocks = [block for stage in spec.stages for block in stage]
            found |= {("network", "kind", block.kind) for block in blocks}
            found |= {("network", "norm", block.norm) for block in blocks}
            found |= {("network", "pairing", block.pairing) for block in blocks}
            found |= {("network", "join", block.join) for block in blocks}
    found |= {("network", "variant", word.rpartition(":")[2]) for word in words if ".json:" in word}
    return found


def chosen_elsewhere() -> set[Choice]:
    return {
        (*where, value)
        for where, (test, argument) in ELSEWHERE.items()
        for mark in test.pytestmark
        if mark.name == "parametrize" and mark.args[0] == argument
        for value in mark.args[1]
    }


def test_every_choice_is_made_by_a_command_that_runs() -> None:
    made = set().union(chosen_elsewhere(), *map(chosen, COMMAND_LINES))
    assert sorted(map(str, offered() - made)) == []
    assert {command.split()[0] for command in CONFIGURATIONS} == set(COMMANDS) - {"recipes"}


def test_no_line_could_be_left_out() -> None:
    """Removing any of them fails the test above, but for exports, which show every two choices together."""
    lines = [line for line in COMMAND_LINES if not line.startswith("export")]
    made, idle = [chosen(line) for line in lines], []
    for i, line in enumerate(lines):
        others = set().union(chosen_elsewhere(), *made[:i], *made[i + 1 :])
        if not made[i] - others:
            idle.append(line)
    assert idle == []


def test_exports_show_any_two_choices_together() -> None:
    """int8 is of two formats, and ncnn takes fixed selections alone. Norms in formats: test_product_block."""
    met = {
        (form, frozen, int8)
        for form, frozen, int8 in itertools.product(
            get_args(get_type_hints(ExportConfig)["format"]), (False, True), (False, True)
        )
        if (not int8 or form in ("onnx", "openvino")) and (frozen or form != "ncnn")
    }
    words = [shlex.split(line) for line in EXPORTS]
    assert {(w[w.index("--format") + 1], "--freeze" in w, "--int8" in w) for w in words} == met


# ---------------------------------------------------------------- they run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, networks, a space and its table of another device, and a trained run."""
    folder = tmp_path_factory.mktemp("choices")
    for target, name in enumerate(("cat", "dog", "fox")):
        (folder / "pets" / name).mkdir(parents=True)
        for number in range(12):
            picture(target, number).resize((20, 18), Image.Resampling.NEAREST).save(
                folder / f"pets/{name}/{number}.png"
            )
    for name, spec in SPECS.items():
        spec.save(folder / name)
    ONE.build((0, 1), "one").save(folder / "one-ach.json")
    ONE.save(folder / "one.json")
    WIDE_SPACE.save(folder / "wide.json")
    TABLE.save(folder / "table.json")
    save_for_hf(
        timm.create_model("test_efficientnet", num_classes=7), str(folder / "timm"), safe_serialization=True
    )
    with pytest.MonkeyPatch.context() as there:
        there.chdir(folder)
        assert main(shlex.split(f"train {SMALL} --model rank-softmax.json --output run --quiet")) == 0
        assert main(shlex.split(f"train {SMALL} --model one-ach.json --output small --quiet")) == 0
        assert main(shlex.split("export run --format torch --output torch.pt2 --images 8")) == 0
    return folder


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_runs(line: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    reference = ONE.build((0, 1), "S") if "one.json" in line else WIDE_SPACE.build(WIDE_CHOICE, "S")
    monkeypatch.setattr(latency, "REFERENCES", {"S": reference})
    if "--space rich" in line:  # checkpoints of hundreds of MB, which test_search goes on from with less
        monkeypatch.setattr(RunFolder, "save_checkpoint", lambda self, state: None)
    outputs = {"train": "--output", "search": "--output", "bench": "--results"}
    words = shlex.split(line)
    if words[0] in outputs:
        words += [outputs[words[0]], str(tmp_path / "output")]
    with standing_in(monkeypatch, tmp_path):
        assert main(words) == 0
    if words[0] == "train":
        assert math.isfinite(
            json.loads((tmp_path / "output/summary.json").read_text(encoding="utf-8"))["test"]["loss"]
        )
