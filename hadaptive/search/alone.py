"""Evolution without shared weights: every network is judged by a short training of its own."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from hadaptive.console import say
from hadaptive.engine.finite import NonFiniteLossError
from hadaptive.files import append_csv, drop_torn, read_csv
from hadaptive.jobs.job import Job
from hadaptive.jobs.run import run_jobs
from hadaptive.models import HadaptiveNet
from hadaptive.search.config import StudyConfig
from hadaptive.search.front import Judged, generations, limits_of
from hadaptive.search.latency import LatencyTable
from hadaptive.search.space import Choice, SearchSpace
from hadaptive.train import train_or_resume

LONGEST = 20  # generations for each network that is trained: most of late ones are known already


class Alone:
    """NSGA-II over a space, whose trainings are together as long as the search's.

    What is not within the limits is known before any training, and is not trained.

    Args:
        folder: of the study; what was judged stands in its baseline-evolution.csv, and is not trained again.
        config, space, table: of the study.
        classes: of the images.
        split: the division of the images.
        quiet: say nothing.
    """

    def __init__(
        self,
        folder: Path,
        config: StudyConfig,
        space: SearchSpace,
        table: LatencyTable | None,
        classes: int,
        split: Path | None,
        quiet: bool,
    ) -> None:
        self.folder, self.config, self.space, self.table = folder, config, space, table
        self.classes, self.split, self.quiet = classes, split, quiet
        self.path, self.specs = folder / "baseline-evolution.csv", folder / "networks"
        self.number = config.rivals["evolution"]
        goal = config.search.latency
        target = None if table is None or goal.latency_target is None else table.target(goal.latency_target)
        self.limits = limits_of(goal, target)
        self.trained: dict[str, Judged] = {}  # by fingerprint, in the order in which they were met

    def best(self, draw: Callable[[], Choice]) -> Choice:
        """The most accurate network on the validation part; of equals the cheapest.

        Args:
            draw: gives networks within the limits, which are the first generation.
        """
        if not self.quiet:
            say(f"== evolution without shared weights: {self.number} networks")
        self.specs.mkdir(exist_ok=True)
        drop_torn(self.path)
        known = {one.fingerprint: one for one in map(Judged.from_row, read_csv(self.path))}
        first = [draw() for _ in range(max(2, round(math.sqrt(self.number))))]
        seed, how = self.config.search.execution.seed, self.config.search.preprocessing
        breeding = generations(self.space.counts, first, LONGEST * self.number, seed)
        choices, generation = next(breeding), 0
        while choices and len(self.trained) < self.number:
            met = [Judged.of(self._network(c), c, generation, how, self.table) for c in choices]
            fresh = {one.fingerprint: one for one in met if one.within(self.limits)}
            fresh = [one for key, one in fresh.items() if key not in self.trained]
            fresh = fresh[: self.number - len(self.trained)]
            for one in fresh:
                self.trained[one.fingerprint] = known.get(one.fingerprint, one)
            self._train([one for one in fresh if one.fingerprint not in known])
            scores = [self.trained.get(one.fingerprint, one).score(self.limits) for one in met]
            choices, generation = breeding.send(scores), generation + 1
        return max(self.trained.values(), key=lambda one: (one.accuracy, -one.cost, one.choice)).choice

    def _network(self, choice: Choice) -> HadaptiveNet:
        return HadaptiveNet(self.space.build(choice), self.classes, self.config.search.preprocessing.in_chans)

    def _train(self, ones: list[Judged]) -> None:
        single, order = self.config.search, list(self.trained)
        whole, rest = divmod(single.optimisation.epochs, self.number)
        trainings = {}
        for one in ones:
            model = self.specs / f"alone-{one.fingerprint}.json"
            self.space.build(one.choice).save(model)
            training = single.training(
                model=str(model),
                seed=single.execution.seed,
                output=self.folder / "runs" / model.stem,
                epochs=whole + (order.index(one.fingerprint) < rest),
                split=self.split,
            )
            trainings[Job(f"training {model.stem}", partial(train_or_resume, training, test=False))] = one
        cpu = single.execution.cpu
        for outcome in run_jobs(list(trainings), self.config.sharing, quiet=self.quiet, cpu=cpu):
            one = trainings[outcome.job]
            if not isinstance(outcome.error, NonFiniteLossError):  # which is worth nothing
                accuracy = outcome.result()["validation_accuracy"]
                one = replace(one, accuracy=accuracy)
                self.trained[one.fingerprint] = one
            append_csv(self.path, [one.row()])
