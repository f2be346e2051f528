"""The network that a training starts from: new, or that of a run or file."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from hadaptive.cards import ModelCard
from hadaptive.errors import UserError, first_line
from hadaptive.models import check_image_size, create_model, spec_of
from hadaptive.models.variants import variant_of
from hadaptive.runs import RunFolder
from hadaptive.train.config import DEFAULT_MODEL, NetworkConfig, TrainConfig
from hadaptive.train.weights import (
    Started,
    absolute,
    from_init,
    from_timm,
    located_init,
    named_network,
    pretrained_identity,
)


def starting_network(config: TrainConfig, classes: list[str]) -> Started:
    """The network in training mode that a new run starts from, seeded, its card, and what is to be said of it.

    Raises:
        UserError: there is no such network, or it does not fit the data.
    """
    how = config.network
    network, card, notes = (from_timm if how.pretrained else from_init if how.init else _new)(config, classes)
    if how.init is not None:
        card = replace(card, started_from=identity_of(config))
    torch.manual_seed(config.execution.seed)
    shape = config.preprocessing.input_size
    hint = " or stem_strides 1 1" if card.model.startswith("hadaptive_net") and not config.network.init else ""
    check_image_size(network, shape, config.model_name, hint)
    return network.train(), card, notes


def _new(config: TrainConfig, classes: list[str]) -> Started:
    return *named_network(config, config.network.model or DEFAULT_MODEL, classes), []


def begun_network(run: RunFolder, config: TrainConfig) -> tuple[nn.Module, ModelCard]:
    """The network in training mode of a run that is resumed, as its folder describes it, and its card.

    A spec file that it was made from, or the run that it started from, may be gone.
    """
    card = run.read_card()
    network = card.create_model()
    try:  # fixed selections are part of the structure, and known from the weights only
        network.load_state_dict(run.load_checkpoint()["model"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{run.checkpoint} does not fit {run.card}: {first_line(error)}") from None
    torch.manual_seed(config.execution.seed)
    return network.train(), card


def identity_of(config: TrainConfig) -> str:
    """What tells the network that these settings start from: its spec, its name, or the weights it has already.

    Raises:
        UserError: its file is missing.
    """
    how, name = config.network, config.network.model or DEFAULT_MODEL
    if how.pretrained:
        return pretrained_identity(name)
    init = located_init(how.init)
    if init is not None:
        weights = RunFolder.open(init) if init.is_dir() else None
        path = init if weights is None else weights.weights(weights.choice())
        of_model = "" if how.model is None else f":{how.model}"
        return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}{of_model}" if path.is_file() else str(init)
    network = create_model(name, num_classes=1, stem_strides=how.stem_strides) if _is_ours(name) else None
    spec = None if network is None else spec_of(network)
    return name if spec is None else spec.fingerprint


def _is_ours(name: str) -> bool:
    return name.endswith(".json") or name.startswith("hadaptive") or variant_of(name) is not None


def as_done(how: NetworkConfig, card: ModelCard) -> NetworkConfig:
    """The settings as they turned out, for the run folder: nothing left to a default, files by absolute paths."""
    rates = {"drop_rate": card.drop_rate, "drop_path_rate": card.drop_path_rate}
    if how.init is not None:
        how = replace(how, init=how.init.resolve())
        if how.model is None:
            return replace(how, **rates)
    model = how.model or DEFAULT_MODEL
    base, colon, variant = model.rpartition(":") if variant_of(model) is not None else (model, "", "")
    resolved = str(Path(base).resolve()) if base.endswith(".json") else absolute(base)
    return replace(how, model=f"{resolved}{colon}{variant}", **rates)
