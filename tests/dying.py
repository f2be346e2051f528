"""`hadaptive`, killed in its step number argv[1]: what torchrun starts in a test."""

import os
import signal
import sys

from hadaptive.cli import main
from hadaptive.engine.loop import Engine
from hadaptive.search.searcher import Searcher
from hadaptive.train.trainer import Trainer


def die_in(kind: type[Engine], at: int) -> None:
    step, count = kind.micro_step, [0]

    def dying(self, *args):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args)

    kind.micro_step = dying


for kind in (Trainer, Searcher):
    die_in(kind, int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
