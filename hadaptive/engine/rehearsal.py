"""Steps of a training or search that has not begun and leaves nothing behind: what they take."""

import time
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from hadaptive.engine.loop import Engine

LEAST, SECONDS, MOST_SECONDS = 5, 5.0, 60.0  # of the steps that are timed; all of them


def batches_of(engine: Engine) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of training images where and as the network takes them, from epoch to epoch without an end."""
    for epoch in count():
        engine.batches.train.set_epoch(epoch)
        for images, targets, _ in engine.batches.train.loader:
            yield engine.ready(images, targets)


def wait_for(engine: Engine) -> None:
    """Wait until the device has done what it was given."""
    if engine.accelerator.device.type == "cuda":
        torch.cuda.synchronize(engine.accelerator.device)


def seconds_per_step(engine: Engine) -> tuple[float, int]:
    """Take real steps, images and all, and return their seconds and how many were timed.

    What loader processes have ready before anybody asks is used up first, and so are steps that compile kernels.
    """
    engine.model.train()
    engine.begin_epoch()
    workers = getattr(engine.batches.train.loader, "num_workers", 0)
    before = max(2, -(-2 * workers // engine.accumulate))
    images = batches_of(engine)
    began = started = time.monotonic()
    steps = 0
    while True:
        for part in range(engine.accumulate):
            engine.micro_step(*next(images), part)
        engine.between_steps()
        engine.after_step()
        wait_for(engine)
        now = time.monotonic()
        steps += 1
        timed = steps - before
        if engine.accelerator.num_processes > 1:  # which must all take the same number
            enough = timed >= LEAST
        else:
            enough = (timed >= LEAST and now - started >= SECONDS) or (timed > 0 and now - began > MOST_SECONDS)
        if enough:
            return (now - started) / timed, timed
        if timed == 0:
            started = now


@torch.no_grad()
def seconds_of_evaluation(engine: Engine) -> float:
    """What going over the validation part takes, by its first batches."""
    engine.model.eval()
    total = len(engine.batches.parts.get("validation", ()))
    began = started = time.monotonic()
    seen = before = 0
    for number, (images, targets, _) in enumerate(engine.batches.validation):
        with engine.accelerator.autocast():
            engine.model(engine.ready(images, targets)[0])
        wait_for(engine)
        seen += len(images) * engine.accelerator.num_processes
        if number == 0 and seen < total:  # the first waits for its loader
            started, before = time.monotonic(), seen
        elif engine.accelerator.num_processes > 1 or time.monotonic() - began > SECONDS:
            break
    seconds = time.monotonic() - started
    return seconds * max(total, seen) / max(1, seen - before)
