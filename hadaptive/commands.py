"""The flags of every command: one dataclass each, whose docstring is its help."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from hadaptive.errors import UserError
from hadaptive.measure.setting import Setting
from hadaptive.search.config import StudyConfig
from hadaptive.train.config import TrainConfig

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """Train a network on images and leave a run folder.

    Every flag's default comes from the recipe. Beside --resume only --quiet, --epochs, and --data or --data-dir
    where the images have moved, may be given.

    Attributes:
        resume: continue this interrupted run exactly where it stopped; with --epochs train it on, finished or not,
            to so many epochs in all.
        quiet: print nothing.
        dry_run: train nothing: take a few steps, and say how many images, steps and parameters there are and what
            memory and time it takes; nothing is written but --first-batch.
        first_batch: with --dry-run, draw the first batch into this new PNG.
        find_lr: train nothing: take some steps with growing learning rates, draw their losses into this new PNG
            and write them into a CSV beside it, and suggest a rate.
    """

    resume: Path | None = None
    quiet: bool = False
    dry_run: bool = False
    first_batch: Path | None = None
    find_lr: Path | None = None

    def refuse_idle_flags(self, typed: Collection[str]) -> None:
        """Raise one clear UserError if a flag was typed that has no effect beside those that train nothing."""
        idle = {
            "first_batch": ("--dry-run is not there", not self.dry_run),
            "find_lr": ("--dry-run only looks", self.dry_run),
            "lr": ("--find-lr tries all rates", self.find_lr is not None),
            "output": ("--find-lr leaves no run", self.find_lr is not None),
        }
        for name, (why, now) in idle.items():
            if now and name in typed:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} has no effect here, for {why}: leave it out")


@dataclass(frozen=True)
class SearchCommand(StudyConfig):
    """Search a network for your images and your device, and leave a folder with it.

    Every flag's default comes from the recipe. Beside --resume only --quiet, and --data or --data-dir where the
    images have moved, may be given.

    Attributes:
        resume: continue this interrupted search, or this comparison of several, where it stopped.
        quiet: print nothing.
    """

    resume: Path | None = None
    quiet: bool = False


@dataclass(frozen=True)
class LatencyCommand:
    """Time every candidate of a search space on this device, and predict whole networks from the sum.

    Attributes:
        space: published, rich-s, rich-m, rich-l, star, or a .json file.
        output: new JSON file for the table, for ``hadaptive search --latency-table``.
        setting: what the latency is of.
        rounds: timed runs of each candidate.
        networks: whole networks the sum is fitted to; default as many as are ready in minutes in the runtime.
        stem_strides: strides of the first convolutions, as the search will have them.
        references: networks beside S, M and L that a search's target may be relative to, by name.
    """

    space: Positional[str] = "published"
    output: Path | None = None
    setting: tyro.conf.OmitArgPrefixes[Setting] = field(default_factory=Setting)
    rounds: int = 60
    networks: int | None = None
    stem_strides: tuple[int, ...] | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpacesCommand:
    """List the search spaces that ship, or show one position by position.

    Attributes:
        space: published, rich-s, rich-m, rich-l, star, or a .json file; left out, all are listed.
        save: write it to this new .json file, to change it by hand.
    """

    space: Positional[str | None] = None
    save: Path | None = None


@dataclass(frozen=True)
class DataCommand:
    """Show what a data set holds: sizes, kinds, classes, unreadable images, duplicates, and leaks between parts.

    Attributes:
        data: folder, tar file, label file, or any other data that train takes, but streams.
        data_dir: where the data lie or are downloaded to.
        file_column: of a label file, that names the images.
        label_column: of a label file.
        split_column: of a label file, that says train, val or test.
        multi_label: an image has any number of classes, as train has it.
        label_separator: what stands between them.
        split: run folder, or its split.csv, whose parts are searched for duplicates that straddle them.
        json: print JSON instead of tables.
        csv: write a row for each image that looks like another into this new file.
        sheet: draw the pairs that look alike into this new PNG.
    """

    data: Positional[str]
    data_dir: Path | None = None
    file_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    multi_label: bool = False
    label_separator: str = "|"
    split: Path | None = None
    json: bool = False
    csv: Path | None = None
    sheet: Path | None = None


@dataclass(frozen=True)
class EvaluateCommand:
    """Evaluate a run: accuracy with its interval, per class, and the confusion matrix as a picture.

    Attributes:
        run: run folder.
        split: part of the data.
        weights: which weights; default those that the run's own test used.
        data: where the data lie now, if they have moved.
        data_dir: likewise, for named data sets.
        on: other labelled images to measure on, such as a test folder of your own; those that the network has
            learned from are left out.
        file_column: of a label file given to --on; default is the run's own.
        label_column: likewise.
        split_column: likewise.
        sheet: also draw the surest mistakes into this new PNG.
        cpu: stay on the CPU even where there is a GPU.
    """

    run: Positional[Path]
    split: Literal["test", "validation"] = "test"
    weights: Literal["best", "last"] | None = None
    data: str | None = None
    data_dir: Path | None = None
    on: str | None = None
    file_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    sheet: Path | None = None
    cpu: bool = False


@dataclass(frozen=True)
class ReportCommand:
    """Write all that is known of a training or a search into one HTML file, with pictures of its mistakes.

    A run is evaluated first where that was not done with the weights it has.

    Attributes:
        run: folder of a training or a search.
        output: new HTML file; default report.html in the folder, where an older report is replaced.
        split: part of the data to judge a training on; default test, or validation where there is no test part.
        data: where the data lie now, if they have moved.
        data_dir: likewise, for named data sets.
        cpu: evaluate on the CPU even where there is a GPU.
    """

    run: Positional[Path]
    output: Path | None = None
    split: Literal["test", "validation"] | None = None
    data: str | None = None
    data_dir: Path | None = None
    cpu: bool = False


@dataclass(frozen=True)
class PredictCommand:
    """Predict what is on images.

    Attributes:
        run: run folder, a file of ``hadaptive export``, or the name of weights that come with the package.
        images: image files, folders to search for images, and tables that name some.
        file_column: of such tables, that names the images; default as train has it.
        top: how many classes to show.
        weights: which weights of a run; default those that its own test used.
        json: print JSON lines instead of a table.
        sheet: also draw the images with their predictions into this new PNG.
        trust: load a torch.export file (.pt2), which can run code: only one that you made yourself.
        reject_below: call an image unknown where the likeliest class has a lower probability; of a network for any
            number of classes, from which probability one counts. Of single classes: 0.6 cat=0.8.
    """

    run: Positional[Path]
    images: Positional[tuple[Path, ...]]
    file_column: str | None = None
    top: int = 3
    weights: Literal["best", "last"] | None = None
    json: bool = False
    sheet: Path | None = None
    trust: bool = False
    reject_below: tuple[str, ...] = ()


@dataclass(frozen=True)
class PushCommand:
    """Upload a run to the Hugging Face Hub, as timm loads it, with a model card of what was measured.

    Attributes:
        source: run folder, or a folder of ``hadaptive export --format timm``.
        name: of the repository: USER/NAME, or NAME for one of your own.
        weights: which weights of a run; default those that its own test used.
        public: let everyone see a new repository; else it is private.
        overwrite: put it into a repository that has files already, whose history stays.
    """

    source: Positional[Path]
    name: Positional[str]
    weights: Literal["best", "last"] | None = None
    public: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class RunsCommand:
    """List trainings and searches with what came of them, the latest last.

    Attributes:
        folders: folders of runs, or that hold some at any depth; default runs.
        json: print a JSON line for each instead of a table.
        plot: also draw validation accuracy over the epochs into this new PNG.
    """

    folders: Positional[tuple[Path, ...]] = (Path("runs"),)
    json: bool = False
    plot: Path | None = None


@dataclass(frozen=True)
class InfoCommand:
    """Show a network's layers, parameters, multiply-accumulates and element-wise products.

    Attributes:
        model: timm model name, NetSpec file (.json) or run folder.
        image_size: side of the input; default the run's own, or 224.
        num_classes: outputs; default the run's own, or 1000.
        in_chans: image channels; default the run's own, or 3.
        stem_strides: strides of a Hadaptive-Net's first convolutions.
        json: print JSON instead of a table.
        save_spec: write the network's spec to this new .json file, to change it by hand.
    """

    model: Positional[str]
    image_size: int | None = None
    num_classes: int | None = None
    in_chans: int | None = None
    stem_strides: tuple[int, ...] | None = None
    json: bool = False
    save_spec: Path | None = None


@dataclass(frozen=True)
class RecipesCommand:
    """List the named settings that trainings and searches start from.

    Attributes:
        show: "all" also shows what each sets.
    """

    show: Positional[Literal["all"] | None] = None


@dataclass(frozen=True)
class DemoCommand:
    """Train, evaluate and predict on scikit-learn's digits, in a few minutes on two cores.

    Attributes:
        output: run folder to make; default runs/demo-<time>.
        epochs: fewer, to see it work only.
    """

    output: Path | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class DoctorCommand:
    """Print versions, devices, and which backend each operator uses and why; check each against the reference."""
