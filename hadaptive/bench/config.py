"""The settings of every benchmark for users; also the flags of ``hadaptive bench``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hadaptive.errors import UserError
from hadaptive.jobs.config import Sharing
from hadaptive.measure.formats import ALIGN, source_of

RIVALS = (
    "hadaptive_net_s",
    "mobilenetv4_conv_small",
    "mobilenetv3_small_100",
    "starnet_s1",
)


def different(name: str, values: tuple[float | str, ...]) -> None:
    """Raise one clear UserError if one value is there twice."""
    if len({*values}) < len(values):
        shown = (value if isinstance(value, str) else f"{value:g}" for value in values)
        raise UserError(f"{name} must be different from each other, got {' '.join(shown)}")


Isa = Literal["native", "avx2"]


@dataclass(frozen=True)
class AccuracyConfig:
    """Train several networks under one recipe with several seeds, and compare them on the test part.

    Rows land in the results file one by one; what is there already is not run again, so an interrupted
    comparison goes on where it stopped. Two that are simple, on the pixels of the same images, are the floor:
    logistic regression and the nearest neighbour.

    Attributes:
        recipe: a recipe of ``hadaptive train``.
        models: model names or NetSpec files; a Hadaptive-Net's may end in ":" and one of its variants, such as
            hadaptive_net_s:static.
        seeds: one training per model and seed.
        results: CSV file that the rows are appended to; default benchmarks/results/accuracy-<recipe>.csv, with the
            number of images and that of epochs where they are not the recipe's.
        runs: folder for the run folders.
        train_size: use only so many training images; default is the recipe's.
        rates: learning rates of which each network gets the one with the best validation accuracy in a short
            training with the first seed; default is the recipe's for all. Beside the results, in ...-rates.csv.
        threads: PyTorch threads of each training; default one where several run at once, else as PyTorch chooses.
        epochs: more or fewer than the recipe's.
        rate_epochs: epochs of the short trainings that rates are chosen by; default a quarter.
        sharing: which trainings run at once, and where.
    """

    recipe: str = "fmnist-small"
    models: tuple[str, ...] = RIVALS
    seeds: tuple[int, ...] = (0, 1, 2)
    results: Path | None = None
    runs: Path = Path("runs/accuracy")
    train_size: int | None = None
    rates: tuple[float, ...] = ()
    threads: int | None = None
    epochs: int | None = None
    rate_epochs: int | None = None
    sharing: Sharing = field(default_factory=Sharing)

    def __post_init__(self) -> None:
        different("seeds", self.seeds)
        different("rates", self.rates)
        if self.rate_epochs is not None and not self.rates:
            raise UserError("rate_epochs has no effect without rates to choose from")
        if self.rate_epochs is not None and self.rate_epochs < 1:
            raise UserError(f"rate_epochs must be at least 1, got {self.rate_epochs}")
        if any(not 0 < rate < float("inf") for rate in self.rates):
            raise UserError(f"rates must be positive, got {self.rates}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class TrialConfig:
    """How networks of a trial are trained and timed.

    Attributes:
        recipe: a recipe of ``hadaptive train``.
        seeds: one training per network and seed.
        train_size: use only so many training images; default is the recipe's.
        rates: learning rates of which each network gets the best on validation, as in ``bench accuracy``.
        results: folder of the result rows; what is there already is not measured again.
        runs: folder for the run folders.
        train: train what has no row yet; without, only networks that have rows are shown.
        measure: time a training step and the exported network, all networks in turns.
        threads: of trainings and timings; default as PyTorch chooses, for exported networks and for trainings of
            which several run at once 1.
        epochs: more or fewer than the recipe's.
        rate_epochs: epochs of the short trainings that rates are chosen by; default a quarter.
        sharing: which trainings run at once, and where.
    """

    recipe: str = "few-50"
    seeds: tuple[int, ...] = (0, 1, 2)
    train_size: int | None = None
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    results: Path = Path("benchmarks/results")
    runs: Path = Path("runs/accuracy")
    train: bool = True
    measure: bool = True
    threads: int | None = None
    epochs: int | None = None
    rate_epochs: int | None = None
    sharing: Sharing = field(default_factory=Sharing)

    def __post_init__(self) -> None:
        different("seeds", self.seeds)
        different("rates", self.rates)


Group = Literal["components", "selection", "pairing", "levers", "controls", "norm", "k"]


@dataclass(frozen=True)
class AblationConfig:
    """A network with each of its ACH blocks' parts changed: accuracy beside what it costs, by one command.

    Attributes:
        model: a Hadaptive-Net or NetSpec file.
        groups: which parts; default all.
        trial: how.
    """

    model: str = "hadaptive_net_s"
    groups: tuple[Group, ...] = ("components", "selection", "pairing", "levers", "controls", "norm", "k")
    trial: TrialConfig = field(default_factory=TrialConfig)


@dataclass(frozen=True)
class PluginConfig:
    """Networks with and without ACH in place of their last two expansions, as the paper's plug-in table has it.

    Attributes:
        models: timm names.
        trial: how.
    """

    models: tuple[str, ...] = (
        "mobilenetv3_small_100",
        "mobilenetv4_conv_small",
        "starnet_s050",
        "starnet_s1",
    )
    trial: TrialConfig = field(default_factory=TrialConfig)


Norm = Literal["dysoft", "dysig", "dyalge", "dyt", "rmsnorm", "batchnorm", "identity"]


@dataclass(frozen=True)
class StabilityConfig:
    """Products and gradients of every ACH layer over a training, under each norm: what DySoft is for.

    Attributes:
        model: a Hadaptive-Net or NetSpec file.
        norms: of the products.
        recipe: a recipe of ``hadaptive train``.
        seeds: one training per norm and seed.
        epochs: fewer than the recipe's.
        results: folder of the rows and the picture; what is there already is not trained again.
        runs: folder for the run folders.
        sharing: which trainings run at once, and where.
    """

    model: str = "hadaptive_net_s"
    norms: tuple[Norm, ...] = ("dysoft", "dysig", "dyalge", "dyt", "rmsnorm", "batchnorm", "identity")
    recipe: str = "few-digits"
    seeds: tuple[int, ...] = (0,)
    epochs: int | None = None
    results: Path = Path("benchmarks/results")
    runs: Path = Path("runs/stability")
    sharing: Sharing = field(default_factory=Sharing)

    def __post_init__(self) -> None:
        different("seeds", self.seeds)
        different("norms", self.norms)


@dataclass(frozen=True)
class LatencyBenchConfig:
    """Time networks with seeded random weights in several runtimes, in turns, after a check of their outputs.

    Each session has a process of its own. A name followed by ":frozen" has fixed selections, one followed by
    ":int8" is quantised as well; another network's ":int8" is the quantised network.

    Attributes:
        models: timm names or NetSpec files; ratios are to the last.
        runtimes: eager, compile (torch.compile), onnxruntime, openvino, executorch.
        threads: numbers of threads to time with.
        batches: images at a time.
        results: CSV file that the rows are appended to.
        accuracy: rows of bench accuracy; networks that have some are drawn against latency, beside the results.
        image_size: height and width.
        align: multiple that expanded widths are filled up to.
        rounds: processes for each network; they take turns.
        calls: timed calls in each process, after half a second of warm-up.
        isa: avx2 forbids AVX-512, to see how a smaller processor fares; for eager, compile and openvino only.
    """

    models: tuple[str, ...] = (
        "hadaptive_net_s",
        "hadaptive_net_s:frozen",
        "mobilenetv3_small_100",
        "mobilenetv4_conv_small",
    )
    runtimes: tuple[Literal["eager", "compile", "onnxruntime", "openvino", "executorch"], ...] = (
        "onnxruntime",
        "openvino",
    )
    threads: tuple[int, ...] = (2,)
    batches: tuple[int, ...] = (1,)
    results: Path = Path("benchmarks/results/latency.csv")
    accuracy: Path | None = None
    image_size: int = 224
    align: int = ALIGN
    rounds: int = 3
    calls: int = 60
    isa: Isa = "native"

    def __post_init__(self) -> None:
        for name in ("image_size", "align", "rounds", "calls"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.calls < 2:
            raise UserError("calls must be at least 2, for a spread")
        for runtime, name in (("onnxruntime", "ONNX Runtime"), ("executorch", "ExecuTorch")):
            if self.isa != "native" and runtime in self.runtimes:
                raise UserError(f"{name} has no setting that forbids AVX-512: leave it out with --isa avx2")
        if self.accuracy is not None and not self.accuracy.is_file():
            raise UserError(f"there is no file {self.accuracy} with accuracies to draw")
        for model in self.models:
            source = source_of(model)[0]
            if (
                ":" in source
                and not source.partition(":")[0].startswith("hadaptive_net")
                and ".json:" not in source
            ):
                raise UserError(f"a network's name may end in :frozen or :int8, got {model!r}")


@dataclass(frozen=True)
class NetworksConfig:
    """Time a training step and the eval latency of networks at the same inputs, in turns.

    Attributes:
        models: timm names; the ratios are to the first.
        results: CSV file that the rows are appended to.
        image_size: height and width.
        batch: images in a training step; latency is of one image.
        rounds: timed training steps; latency takes four times as many.
        device: "cpu" or "cuda".
        threads: PyTorch threads; default as PyTorch chooses.
    """

    models: tuple[str, ...] = ("hadaptive_net_s", "mobilenetv4_conv_small", "starnet_s050")
    results: Path = Path("benchmarks/results/networks.csv")
    image_size: int = 224
    batch: int = 16
    rounds: int = 12
    device: str = "cpu"
    threads: int | None = None
