"""Evolution on a trained supernet: the networks that no other beats in both accuracy and cost.

First the shared weights are trained, one network a step, each candidate in its turn; then NSGA-II (Deb et al.,
2002, by pymoo) looks for the front: the order of Once-for-All (arXiv 1908.09791). All networks are judged on the
validation part, with running statistics of the same batches, so that they differ in their architecture alone.

What was judged stands in the folder's evolution.csv: a search that was cut off there judges nothing twice.
"""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from hadaptive.engine.loop import Rows
from hadaptive.engine.processes import on_main
from hadaptive.errors import TrainingInterruptedError, UserError
from hadaptive.files import append_csv, drop_torn, read_csv, write_atomically, write_csv
from hadaptive.metrics import Evaluation, share_text
from hadaptive.models import NetSpec
from hadaptive.packages import EXTRAS, require
from hadaptive.runs import save_tensors
from hadaptive.search.base import SearchEngine
from hadaptive.search.doubts import collapsed, few_turns, misses, no_better_than_chance, no_better_than_random
from hadaptive.search.folder import SearchFolder
from hadaptive.search.front import Judged, front_of, generations, limits_of
from hadaptive.search.plots import draw_network, plot_front, plot_weights
from hadaptive.search.shared import SharedSupernet
from hadaptive.search.space import Choice
from hadaptive.search.turns import fair_choice, most_turns

JUDGING_BATCHES = 8  # for the running statistics of a network that is judged
MEASURED = 8  # networks of the front that are timed whole, from the most accurate on


class Evolution(SearchEngine):
    """A search whose supernet is trained fairly and whose networks are found by evolution.

    Args:
        config, space, accelerator, batches, quiet: as of :class:`SearchEngine`.

    Raises:
        UserError: pymoo is missing, the optimiser takes second derivatives, or no network is as small as asked.
    """

    def set_up(self) -> None:
        require(EXTRAS["evolution"], "--method evolution", '"hadaptive[evolution]"')
        config, space = self.config, self.space
        in_chans = config.preprocessing.in_chans
        supernet = SharedSupernet(space, self.num_classes, in_chans, self.drop_rate)
        self.smallest, fewest = supernet.smallest()
        if fewest > config.latency.most_parameters:
            raise UserError(
                f"no network of {space.name} has {config.latency.max_params} parameters or fewer: the smallest "
                f"has {fewest:,}"
            )
        self.supernet = self.learn(supernet, supernet)

    # -- the weights ------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        return {"supernet": self.supernet.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])

    def micro_step(self, images: Tensor, targets: Tensor, number: int) -> float:
        choice = fair_choice(self.space, self.config.execution.seed, self.updates)
        return self.weight_step(images, targets, choice)

    def evaluate(self, choice: Choice) -> Evaluation:
        return self._validate(self.supernet.network(choice), JUDGING_BATCHES)

    def summarise_epoch(self, folder: SearchFolder) -> tuple[Rows, str]:
        usual = fair_choice(self.space, self.config.execution.seed + 1, 0)  # the same one in every epoch
        validation = self.timed(lambda: self.evaluate(usual))
        self.note_unreadable("validation", validation.unreadable)
        self.require_images(validation, "validation", folder)
        row = {
            "epoch": self.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "weight_loss": self.loss_sum / self.steps_per_epoch,
            "val_accuracy": validation.accuracy,
            "seconds": round(self.seconds, 2),
        }
        line = (
            f"epoch {self.epoch + 1}/{self.epochs}: training loss {row['weight_loss']:.4f}, validation accuracy "
            f"of a network drawn at random {share_text(validation.correct, validation.total)}"
        )
        self.scheduler.after_epoch(self.updates, validation.loss)
        return {folder.metrics: [row]}, line

    def draw(self, folder: SearchFolder) -> None:
        plot_weights(folder)
        judged = [Judged.from_row(row) for row in read_csv(folder.evolution)]
        if judged:
            within = [one for one in judged if one.within(self._limits)]
            plot_front(judged, within, self.config, folder.front_picture)

    # -- the networks -----------------------------------------------------------------------------------------

    def conclude(self, folder: SearchFolder) -> dict[str, Any]:
        on_main(self.accelerator, lambda: save_tensors(self.supernet.state_dict(), folder.supernet))
        with self.stopping.listening():
            judged = self._evolve(folder)
        front = front_of([one for one in judged if one.within(self._limits)])
        if not front:
            raise UserError(
                f"of {len(judged)} networks none is within both limits: search again with a higher "
                "--latency-target or --max-params"
            )
        specs = {f"front-{number}": self.space.build(one.choice) for number, one in enumerate(front)}
        number, measured = on_main(self.accelerator, lambda: self._found(specs))
        found = front[number]
        spec = self.space.build(found.choice, f"{self.space.name}-found-seed{self.config.execution.seed}")

        def write() -> None:
            folder.front_networks.mkdir(exist_ok=True)
            for own, network in specs.items():
                network.save(folder.front_networks / f"{own}.json")
            rows = [
                {"network": own, **one.row(), "measured_ms": measured.get(own, "")}
                for own, one in zip(specs, front, strict=True)
            ]
            write_atomically(folder.front, lambda path: write_csv(path, rows, list(rows[0])))
            spec.save(folder.found)
            draw_network(spec, folder.strip)

        on_main(self.accelerator, write)
        known = {name: ms for name, ms in measured.items() if name not in specs}
        ms = {"found": measured[f"front-{number}"], **known} if measured else None
        return {
            **self.describe(found.choice),
            "method": "evolution",
            "networks": len(judged),
            "front": len(front),
            "supernet_accuracy": found.accuracy,
            "parameters": found.parameters,
            "macs": found.macs,
            "measured_ms": ms,
            "warnings": self._doubts(judged, found, ms),
        }

    def _evolve(self, folder: SearchFolder) -> list[Judged]:
        """Every network that was judged, in the order of the generations; the first ones are drawn at random.

        Beside those are the safe ones: evolution needs to begin within its limits.
        """
        how, seed = self.config.architecture, self.config.execution.seed
        on_main(self.accelerator, lambda: drop_torn(folder.evolution))
        known = {one.fingerprint: one for one in map(Judged.from_row, read_csv(folder.evolution))}
        judged: dict[str, Judged] = {}
        count = how.population - len(self._safe)
        drawn = [fair_choice(self.space, seed + 2, number) for number in range(count)]
        breeding = generations(self.space.counts, [*self._safe, *drawn], how.generations, seed)
        choices = next(breeding)
        for generation in range(how.generations):
            if not choices:  # a small space has no others
                break
            scores = []
            for choice in choices:
                spec = self.space.build(choice)
                one = judged.get(spec.fingerprint) or known.get(spec.fingerprint)
                if one is None:
                    one = self._judge(choice, generation, folder)
                judged[spec.fingerprint] = one
                scores.append(one.score(self._limits))
                if self.stopping.agreed():
                    self.checkpoint(folder)
                    raise TrainingInterruptedError(str(folder.path), self.command)
            best = max((one.accuracy for one in judged.values() if one.within(self._limits)), default=math.nan)
            self.progress.say(
                f"generation {generation + 1}/{how.generations}: {len(judged)} networks, best accuracy within the "
                f"limits {best:.2%}"
            )
            choices = breeding.send(scores)
        return list(judged.values())

    @property
    def _safe(self) -> list[Choice]:
        """The smallest network, and the fastest where there is a table."""
        return [self.smallest] if self.table is None else [self.smallest, self.table.fastest()]

    @property
    def _limits(self) -> dict[str, float]:
        return limits_of(self.config.latency, self.target)

    def _judge(self, choice: Choice, generation: int, folder: SearchFolder) -> Judged:
        network = self.supernet.network(choice)
        validation = self.timed(lambda: self._validate(network, JUDGING_BATCHES))
        self.require_images(validation, "validation", folder)
        one = Judged.of(network, choice, generation, self.config.preprocessing, self.table)
        one = replace(one, accuracy=validation.accuracy, loss=validation.loss)
        on_main(self.accelerator, lambda: append_csv(folder.evolution, [one.row()]))
        return one

    def _found(self, specs: dict[str, NetSpec]) -> tuple[int, dict[str, float]]:
        """The number of the most accurate network that is within the target when it is measured, and all that was.

        They are measured from the most accurate on, some at a time; where none is within, the fastest is taken.
        """
        names, measured = list(specs), {}
        for start in range(len(names), 0, -MEASURED):
            own = names[max(0, start - MEASURED) : start]
            found = self._measure({name: specs[name] for name in own})
            if found is None or self.target is None:
                return len(names) - 1, found or {}
            measured |= found
            within = [name for name in own if measured[name] <= self.target]
            if within:
                return names.index(within[-1]), measured
        return names.index(min(names, key=lambda name: measured[name])), measured

    def _doubts(self, judged: list[Judged], found: Judged, measured: dict[str, Any] | None) -> list[str]:
        images = len(self.batches.validation.dataset)  # pyright: ignore[reportArgumentType]
        best = max(judged, key=lambda one: one.accuracy)
        first = [one for one in judged if one.generation == 0 and one.choice not in self._safe]
        drawn = [one for one in first if one.within(self._limits)]
        return [
            *collapsed(self.space, found.choice),
            *no_better_than_chance("the best network", best, images, self.num_classes),
            *no_better_than_random(found, drawn, images),
            *few_turns(most_turns(self.space), self.epochs, self.steps_per_epoch),
            *misses((measured or {}).get("found"), self.target),
        ]
