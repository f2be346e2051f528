"""Weights that a training starts from: timm's, those of a run, or of a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hadaptive.cards import ModelCard, card_for, open_weights
from hadaptive.errors import UserError, first_line
from hadaptive.models import create_model
from hadaptive.models.factory import SOURCES
from hadaptive.models.shipped import METADATA_KEY, shipped_weights
from hadaptive.runs import RunFolder
from hadaptive.text import alike
from hadaptive.train.config import DEFAULT_MODEL, TrainConfig

Started = tuple[nn.Module, ModelCard, list[str]]  # a network, its card, and what a person should know of it


def named_network(
    config: TrainConfig, name: str, classes: list[str], *, pretrained: bool = False
) -> tuple[Any, ModelCard]:
    """The network of that name as the settings have it, seeded, and its card.

    Raises:
        UserError: there is no such network, or no weights of that name.
    """
    how = config.network
    torch.manual_seed(config.execution.seed)
    network = create_model(
        name,
        num_classes=len(classes),
        in_chans=config.preprocessing.in_chans,
        drop_rate=how.drop_rate,
        drop_path_rate=how.drop_path_rate,
        stem_strides=how.stem_strides,
        image_size=config.preprocessing.image_size,
        pretrained=pretrained,
    )
    card = card_for(name, network, classes, config.preprocessing)
    return network, replace(card, drop_rate=how.drop_rate, drop_path_rate=how.drop_path_rate)


def from_timm(config: TrainConfig, classes: list[str]) -> Started:
    """timm's network of the settings with its weights, and a classifier of these classes.

    Raises:
        UserError: the weights are not to be had, or the network cannot be built again from its name.
    """
    name = config.network.model or DEFAULT_MODEL
    network, card = named_network(config, name, classes, pretrained=True)
    known = network.pretrained_cfg
    card = replace(card, started_from=pretrained_identity(name))
    if name.startswith(SOURCES):  # built again without the Hub or the folder
        card = replace(card, model=known["architecture"])
        _check_rebuilt(network, card, name)
    number, labels = known.get("num_classes"), known.get("label_names")
    notes = [f"{name} does not say which images it has learned from: nothing keeps them out of the test part"]
    if number != len(classes):
        notes.append(f"the classifier is new: {name} knows {number} classes")
    elif labels is not None and not alike(labels, classes):
        network.reset_classifier(len(classes))
        notes.append(f"the classifier is new: {name} knows other classes")
    elif labels is None:
        notes.append(f"the classifier is kept: {name} has as many classes, which are taken to be these")
    return network, card, notes + _other_values(name, config, known.get("mean"), known.get("std"))


def pretrained_identity(name: str) -> str:
    """What tells that a training started from timm's weights of this name."""
    return f"pretrained:{name}"


def from_init(config: TrainConfig, classes: list[str]) -> Started:
    """The network of the run or file that the settings start from, with a classifier of these classes.

    Raises:
        UserError: it is not there, is damaged, or does not fit.
    """
    init = config.network.init
    assert init is not None
    if init.is_file() and not _says_what_it_is(init):
        return _from_other_file(config, init, classes)
    if init.is_dir():
        trained, card = RunFolder.open(init).load_model()
    elif init.is_file():
        trained, card = open_weights(init)
    else:
        raise UserError(f"there is no run folder or file {init} to start from")
    if config.network.model is not None:
        raise UserError(f"{init} has its own network: leave --model out")
    if card.preprocessing.in_chans != config.preprocessing.in_chans:
        raise UserError(
            f"{init} takes {card.preprocessing.in_chans} channels, not {config.preprocessing.in_chans}"
        )
    how = card.preprocessing
    notes = _other_values(str(init), config, how.mean[: how.in_chans], how.std[: how.in_chans])
    torch.manual_seed(config.execution.seed)
    if not alike(card.classes, classes):
        notes.insert(0, f"the classifier is new: {init} knows {len(card.classes)} classes, other than these")
        trained.reset_classifier(len(classes))  # pyright: ignore[reportCallIssue]
        card = replace(card, classes=classes)
    resize: Any = getattr(trained, "set_input_size", None)
    if resize is not None and card.preprocessing.image_size != config.preprocessing.image_size:
        resize(img_size=config.preprocessing.image_size)  # a transformer's positions are interpolated
    card = replace(card, preprocessing=config.preprocessing, temperature=1.0)
    _check_rebuilt(trained, card, str(init))
    rates = config.network.drop_rate, config.network.drop_path_rate
    if rates == (None, None):
        return trained, card, notes
    card = replace(
        card,
        drop_rate=card.drop_rate if rates[0] is None else rates[0],
        drop_path_rate=card.drop_path_rate if rates[1] is None else rates[1],
    )
    network = card.create_model()
    network.load_state_dict(trained.state_dict())
    return network, card, notes


def _check_rebuilt(network: nn.Module, card: ModelCard, name: str) -> None:
    """Raise one clear UserError where what a run folder says of a network would build another one."""
    again = card.create_model().eval()
    training = network.training
    try:  # fixed selections are part of the structure, and known from the weights only
        again.load_state_dict(network.state_dict())
        same = True
    except RuntimeError:
        same = False
    if same:
        x = torch.randn(1, *card.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                same = torch.allclose(network.eval()(x), again(x), rtol=1e-3, atol=1e-4, equal_nan=True)
        except (RuntimeError, AssertionError):
            return  # images do not fit it, which is said elsewhere
        finally:
            network.train(training)
    if not same:
        raise UserError(
            f"{name} is not built as {card.model} is for {card.preprocessing.image_size} pixels: a run folder "
            "could not describe it"
        )


def absolute(name: Any) -> Any:
    """A name of timm's whose folder is found from any other."""
    if not str(name).startswith("local-dir:"):
        return name
    return f"local-dir:{Path(str(name).partition(':')[2]).expanduser().resolve()}"


def located_init(init: Path | None) -> Path | None:
    """Where the weights lie that are meant: some come with the package, and are known by their name."""
    return shipped_weights().get(str(init), init) if init is not None and not init.exists() else init


def _says_what_it_is(path: Path) -> bool:
    """Whether a file is one of ours, or damaged, as is said when it is opened; others hold weights alone."""
    try:
        with safe_open(path, "pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except Exception:  # safetensors raises its own class
        return True


def _from_other_file(config: TrainConfig, path: Path, classes: list[str]) -> Started:
    """The network that is named, with weights that do not say what they are of."""
    how = config.network
    if how.model is None:
        raise UserError(f"{path} does not say which network its weights are of: name it with --model")
    network, card = named_network(config, how.model, classes)
    try:
        state = load_file(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    own, head = network.state_dict(), classifier_names(network)
    notes = []
    if any(name in state and state[name].shape != own[name].shape for name in head):
        state = {name: value for name, value in state.items() if name not in head}
    if any(name in state for name in head):
        notes.append(f"the classifier is kept: {path} has as many classes, which are taken to be these")
    else:
        notes.append(f"the classifier is new: that of {path} is of other classes")
    needed = {name: value for name, value in own.items() if name in state or name not in head}
    wrong = sorted({name for name, _ in _shapes(state).items() ^ _shapes(needed).items()})
    if wrong:
        raise UserError(
            f"{path} does not hold the weights of {how.model}: {len(wrong)} tensors differ, first {wrong[0]}"
        )
    network.load_state_dict(state, strict=False)
    return network, card, notes


def classifier_of(network: nn.Module) -> list[nn.Module]:
    """The last layers of a network of timm's: one, or one for each of its heads."""
    found: Any = network.get_classifier()  # pyright: ignore[reportCallIssue]
    return list(found) if isinstance(found, tuple | list) else [found]


def classifier_names(network: nn.Module) -> set[str]:
    """The names of its classifier's tensors among all."""
    last = {id(module) for head in classifier_of(network) for module in head.modules()}
    prefixes = [name for name, module in network.named_modules() if id(module) in last]
    return {key for key in network.state_dict() if any(key.startswith(f"{prefix}.") for prefix in prefixes)}


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def _other_values(name: str, config: TrainConfig, mean: Any, std: Any) -> list[str]:
    """A line where pixels are not scaled as the weights know them."""
    how = config.preprocessing
    if mean is None or std is None or len(mean) != how.in_chans:
        return []
    own = (*how.mean[: how.in_chans], *how.std[: how.in_chans])
    same = all(abs(a - b) < 1e-3 for a, b in zip((*mean, *std), own, strict=True))
    flags = f"--mean {' '.join(f'{x:g}' for x in mean)} --std {' '.join(f'{x:g}' for x in std)}"
    return [] if same else [f"{name} has learned from pixels of another scale: {flags} would give it the same"]
