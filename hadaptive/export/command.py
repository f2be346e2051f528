"""`hadaptive export`: from a run, a spec or a name to a file that runs elsewhere, and the proof beside it."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hadaptive.cards import ModelCard, card_for, open_weights
from hadaptive.console import console, say
from hadaptive.data import Preprocessing
from hadaptive.errors import UserError, first_line
from hadaptive.export.config import ExportConfig
from hadaptive.export.finetune import NAME, finetune
from hadaptive.export.freeze import calibrate, freeze
from hadaptive.export.images import ExportImages, open_images
from hadaptive.export.int8 import BATCH, quantise, quantise_within
from hadaptive.export.proof import TRAINED, UNTRAINED, accuracy_of, prove, unproved, write_table
from hadaptive.export.readme import of_proof, of_training, readme
from hadaptive.export.sensitivity import LayerCost, sensitivity
from hadaptive.files import append_csv, write_json
from hadaptive.measure.deploy import DeployNet, DeployProducts
from hadaptive.measure.formats import SUFFIXES, WEIGHTS, beside, cannot_run, check_format, named_format
from hadaptive.measure.lowering import write, write_metadata
from hadaptive.measure.passes import prepare
from hadaptive.measure.sessions import load
from hadaptive.measure.untrained import liven
from hadaptive.models import HadaptiveNet, check_image_size, create_model
from hadaptive.models.shipped import shipped_weights
from hadaptive.nn import FixedSelection, expansions
from hadaptive.nn.reparam import reparameterized
from hadaptive.provenance import provenance
from hadaptive.runs import RunFolder

LIVEN = 64 * 224**2  # pixels of the training images that give a network without a run its statistics


def export_command(config: ExportConfig) -> dict[str, Any]:
    """Export, prove, print, and write the proof beside the file.

    Raises:
        UserError: something is missing or exists already, freezing costs too much, or the file computes
            something else (it is left for inspection).
    """
    check_format(config.format, int8=config.int8)
    network, card, run = _open(config)
    output = config.output or _default_output(config)
    if named_format(output) != config.format:
        raise UserError(f"a file of format {config.format} ends in {SUFFIXES[config.format]}, got {output.name}")
    names = [output.name, *(f"{output.name}.{ending}" for ending in ("proof.json", "proof.md", "layers.csv"))]
    names += [weights.name for weights in beside(output)]
    for name in names:
        if output.with_name(name).exists():
            raise UserError(
                f"{output.with_name(name)} exists already and is never overwritten: choose another --output"
            )
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent} to write {output.name} into")
    if config.freeze and (not isinstance(network, HadaptiveNet) or _selects_nothing(network)):
        raise UserError(
            f"{config.source} has no selections to freeze, or they are fixed already: leave out --freeze"
        )
    card.with_thresholds(config.reject_below)  # a mistake shows before the work
    if config.format == "ncnn" and not config.freeze and not _selects_nothing(network):
        raise UserError("ncnn has no operators that select channels for each image: pass --freeze")
    if config.format == "timm":
        _ = card.timm_config  # timm cannot build everything
    images = open_images(run, card, config.data, config.data_dir)
    for note in images.data.notes if config.is_run else ():
        say(note)
    trained = config.is_run or config.source in shipped_weights()
    if not trained:
        count = min(max(LIVEN // math.prod(card.preprocessing.input_size[1:]), 8), 256)
        liven(network, torch.cat(list(images.images(count, "train"))))
    about: dict[str, Any] = {"source": config.source, "format": config.format}
    if config.freeze:
        assert isinstance(network, HadaptiveNet)
        network = _frozen(network, card, images, config, about)
        if config.finetune:
            card = RunFolder.open(Path(config.source) / NAME).calibrated(card, "last")
        elif config.is_run:
            card = replace(card, **images.calibration(network))
    card = card.with_thresholds(config.reject_below)
    about["frozen"] = bool(expansions(network)) and _selects_nothing(network)
    deployed, about["passes"] = network, []
    if config.format not in WEIGHTS and isinstance(network, HadaptiveNet):
        deployed, about["passes"] = prepare(network, config.align)
    elif config.format not in WEIGHTS:
        deployed = reparameterized(network)
    for said in about["passes"]:
        say(said)
    about |= provenance("cpu")
    # Whatever goes wrong, what lies beside the output is whole files only.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
        staged = Path(folder) / output.name
        if config.int8:
            _write_int8(deployed, staged, card, images, config, about)
        else:
            _write(deployed, staged, card, images, config, about)
        try:
            limits = TRAINED if trained else UNTRAINED
            if (why := cannot_run(config.format)) is None:
                agreement, figures = prove(network, staged, images.images(config.images), limits)
            else:
                agreement, figures = None, unproved(staged, why)
        except RuntimeError as error:
            raise UserError(f"{config.source} does not run as {config.format}: {first_line(error)}") from None
        if config.int8:
            lost = about["int8"]["lost"]
            figures |= {"holds": None if lost is None else lost <= config.max_loss, "tolerance": None}
        if config.format == "timm":
            known = [("weights", f"{config.source}, as it comes with hadaptive" if trained else "random")]
            if run is not None:
                # What was tested had the selections of each image.
                known = of_training(run, None if config.freeze else config.weights or run.choice())
            measured, at = known + of_proof(about, figures), f"local-dir:{output.name}"
            text = readme(Path(config.source).name, network, card, measured, at=at)
            (staged / "README.md").write_text(text, encoding="utf-8")
        write_json(staged.with_name(f"{output.name}.proof.json"), {**about, **figures})
        write_table(staged.with_name(f"{output.name}.proof.md"), {**about, **figures})
        if config.int8 and figures["holds"] is False and not config.force:
            raise UserError(
                f"int8 costs {about['int8']['lost']:.2f} points of accuracy, more than --max-loss "
                f"{config.max_loss:g}, whatever stays in float: export without --int8, or pass --force"
            )
        for name in reversed(names):
            if staged.with_name(name).exists():
                staged.with_name(name).replace(output.with_name(name))
    proof = output.with_name(f"{output.name}.proof.json")
    _print(output, proof, figures)
    if not config.int8 and agreement is not None and not agreement.holds:
        assert agreement.output is not None
        ties = f", {agreement.near_ties} images at near ties, too many for chance" if agreement.near_ties else ""
        raise UserError(
            f"{output} computes something else than the network: image {agreement.first} is the first to differ, "
            f"most in output {card.classes[agreement.output]!r} (relative error {agreement.relative_error:.1e}"
            f"{ties}); see {proof}"
        )
    return {**about, **figures, "file": str(output)}


def _selects_nothing(network: nn.Module) -> bool:
    return all(isinstance(layer.select, FixedSelection) for layer in expansions(network).values())


def _write(
    net: nn.Module, path: Path, card: ModelCard, images: ExportImages, config: ExportConfig, about: dict[str, Any]
) -> None:
    """Write a network, of which exporters may know some operator no better than by a long message."""
    try:
        # Weights may be trained on, so that they carry along which images they have seen.
        carries = config.is_run and config.format == "safetensors"
        split = images.data.manifest.dumps() if carries else None
        write(net, path, config.format, card, about, split=split)
    except UserError:
        raise
    except Exception as error:  # each exporter has its own classes of errors
        raise UserError(f"{config.source} cannot be written as {config.format}: {first_line(error)}") from None


def _default_output(config: ExportConfig) -> Path:
    kind = ("frozen" if config.freeze else "network") + ("-finetuned" if config.finetune else "")
    name = kind + ("-int8" if config.int8 else "") + SUFFIXES[config.format]
    source = Path(config.source)
    return source / name if source.is_dir() else Path(f"{source.stem.replace(':', '-')}-{name}")


def _open(config: ExportConfig) -> tuple[nn.Module, ModelCard, RunFolder | None]:
    """The network in eval mode, its card, and its run where it has one."""
    if config.is_run:
        run = RunFolder.open(config.source)
        return *run.load_model(config.weights), run
    path = Path(config.source)
    if named_format(path) is not None:
        raise UserError(f"{path} would be an exported file: export the run or the specification it is of")
    if len(path.parts) > 1 and path.suffix != ".json" and not config.source.startswith("hf-hub:"):
        raise UserError(f"there is no run folder {path}")
    if config.source in shipped_weights():
        for name in ("num_classes", "image_size", "seed", "int8", "freeze"):
            if getattr(config, name) not in (None, False):
                raise UserError(
                    f"{config.source} has weights, classes and a size of its own, and no images to judge by: "
                    f"leave --{name.replace('_', '-')} out"
                )
        network, card = open_weights(shipped_weights()[config.source])
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return network, card, None
    number = config.num_classes or 1000
    torch.manual_seed(config.seed or 0)
    preprocessing = Preprocessing(image_size=config.image_size or 224, fit="stretch")
    network = create_model(config.source, num_classes=number, image_size=preprocessing.image_size)
    check_image_size(network, preprocessing.input_size, config.source)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network, card_for(config.source, network, [str(n) for n in range(number)], preprocessing), None


def _frozen(
    network: nn.Module, card: ModelCard, images: ExportImages, config: ExportConfig, about: dict[str, Any]
) -> nn.Module:
    """The network with fixed selections, if they cost little enough."""
    calibration = calibrate(network, images.images(config.calibration, "train"))
    frozen = freeze(network, calibration)
    about["layers"] = {name: layer.summary() for name, layer in calibration.items()}
    for name, layer in calibration.items():
        say(f"{name}: {layer.agreement:.0%} of a dynamic choice is in the fixed one, entropy {layer.entropy:.2f}")
    if not config.is_run:
        return frozen  # random weights have no accuracy

    number = len(images.data.validation)
    before, after = images.accuracy(network), images.accuracy(frozen)
    about |= {"accuracy_dynamic": before, "accuracy_frozen": after}
    say(f"validation accuracy: {before:.2%} with dynamic selections, {after:.2%} with fixed ones")
    if config.finetune:
        run = RunFolder.open(config.source)
        frozen = finetune(frozen, card, run, images.data, config.finetune, config.finetune_lr)
        after = about["accuracy_finetuned"] = images.accuracy(frozen)
        say(f"validation accuracy: {after:.2%} after {config.finetune} epochs with the fixed selections")
    lost = round((before - after) * number)  # of few images, one may be more than the limit
    if lost > 1 and 100 * (before - after) > config.max_loss and not config.force:
        way = "" if config.finetune else "train on with --finetune, "
        raise UserError(
            f"fixed selections cost {100 * (before - after):.2f} points of validation accuracy ({lost} of {number}"
            f" images), more than --max-loss {config.max_loss:g}: {way}export without --freeze, or pass --force"
        )
    return frozen


def _write_int8(
    deployed: nn.Module,
    output: Path,
    card: ModelCard,
    images: ExportImages,
    config: ExportConfig,
    about: dict[str, Any],
) -> None:
    """Quantise, with a report for each layer beside the file where there is an accuracy to lose."""
    calibration = torch.cat(list(images.images(config.calibration, "train"))).numpy()
    # What chooses channels stays exact: a selection is no matter of rounding.
    keep = [n for n, m in deployed.named_modules() if isinstance(m, DeployProducts) and m.score is not None]
    found: dict[str, Any] = {"float": keep, "lost": None}
    plain = output.with_stem(f"{output.stem}-float32")
    _write(deployed, plain, card, images, config, about)
    if not config.is_run:
        quantise(plain, output, config.format, calibration, keep)  # random weights have no accuracy
    else:
        costs: list[LayerCost] = []
        if isinstance(deployed, DeployNet):
            some = list(images.samples(config.sensitivity))
            targets = torch.cat([targets for _, targets in some])
            say(f"int8: what each layer costs alone, on {len(targets)} images")
            ranges = torch.from_numpy(calibration).split(BATCH)
            costs = sensitivity(deployed, ranges, [batch for batch, _ in some], targets, images.right)
            append_csv(output.with_name(f"{output.name}.layers.csv"), [cost.to_dict() for cost in costs])
        keep += [cost.layer for cost in costs if cost.lost > config.max_loss and cost.layer not in keep]
        samples = list(images.samples(config.images))
        before = accuracy_of(load(plain)[0], samples, images.right)
        found["float"], found["lost"] = quantise_within(
            plain,
            output,
            config.format,
            calibration,
            order=[cost.layer for cost in sorted(costs, key=_noise, reverse=True)],
            keep=keep,
            lost=lambda run: 100 * (before - accuracy_of(run, samples, images.right)),
            max_loss=config.max_loss,
        )
        found["accuracy_float32"] = before
        say(
            f"int8: {found['lost']:.2f} points of accuracy lost on {sum(len(t) for _, t in samples)} images, "
            f"{len(found['float'])} layers stay in float"
        )
        for cost in sorted(costs, key=lambda cost: -cost.lost)[:3]:
            say(f"int8: {cost.layer} alone costs {cost.lost:.2f} points, range {cost.low:.3g} to {cost.high:.3g}")
    about["int8"] = found
    write_metadata(output, config.format, card, about)


def _noise(cost: LayerCost) -> float:
    """What a layer's rounding does; whatever is no number is worse than any."""
    return math.inf if math.isnan(cost.noise) else cost.noise


def _print(output: Path, proof: Path, figures: dict[str, Any]) -> None:
    out = console()
    if "not_proved" in figures:
        out.print(f"{output}: {figures['bytes'] / 2**20:.1f} MiB; {figures['not_proved']}", soft_wrap=True)
        return
    tolerance = "" if figures["tolerance"] is None else f" (tolerance {figures['tolerance']:g})"
    out.print(
        f"{figures['images']:,} images: the same class on {figures['top1']:.2%}, largest relative error "
        f"{figures['relative_error']:.1e}{tolerance}"
    )
    if figures["near_ties"] and figures["tolerance"] is not None:
        out.print(f"{figures['near_ties']} of them select otherwise, where two scores are equal up to rounding")
    for threads, times in figures["latency"].items():
        out.print(f"{threads}: {times['p50_ms']:.2f} ms, 95% within {times['p95_ms']:.2f} ms")
    out.print(f"{output}: {figures['bytes'] / 2**20:.1f} MiB; proof in {proof}", soft_wrap=True)
