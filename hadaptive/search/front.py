"""Networks that were judged, those of them that no other beats, and how evolution breeds the next."""

import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hadaptive.data import Preprocessing
from hadaptive.info import inspect_network
from hadaptive.models import HadaptiveNet
from hadaptive.search.config import LatencyGoal
from hadaptive.search.space import Choice
from hadaptive.search.table import LatencyTable


@dataclass(frozen=True)
class Judged:
    """A network and what it is worth, with the supernet's weights or after a training of its own.

    Attributes:
        generation: in which it was met first; 0 was drawn at random.
        choice: a number for each place of the space.
        fingerprint: of its NetSpec.
        accuracy, loss: on the validation part; loss in nats, NaN where it is not known.
        parameters, macs: of the network.
        latency_ms: predicted; None where there is no table.
    """

    generation: int
    choice: Choice
    fingerprint: str
    accuracy: float
    loss: float
    parameters: int
    macs: int
    latency_ms: float | None

    @classmethod
    def of(
        cls, network: HadaptiveNet, choice: Choice, generation: int, how: Preprocessing, table: LatencyTable | None
    ) -> "Judged":
        """What is known of a network before it is judged: its accuracy is 0.

        Args:
            network: that `choice` builds.
            choice, generation: as above.
            how: the size and the channels of its images.
            table: that latency is predicted by.
        """
        info = inspect_network(network, (how.in_chans, how.image_size, how.image_size))
        return cls(
            generation=generation,
            choice=choice,
            fingerprint=network.spec.fingerprint,
            accuracy=0.0,
            loss=math.nan,
            parameters=info.parameters,
            macs=info.macs,
            latency_ms=None if table is None else table.predict(choice),
        )

    def row(self) -> dict[str, Any]:
        """Its row in evolution.csv."""
        row = {**asdict(self), "choice": " ".join(map(str, self.choice))}
        return row | {"latency_ms": "" if self.latency_ms is None else self.latency_ms}

    @classmethod
    def from_row(cls, row: dict[str, str]) -> "Judged":
        """The inverse of :meth:`row`."""
        return cls(
            int(row["generation"]),
            tuple(map(int, row["choice"].split())),
            row["fingerprint"],
            float(row["accuracy"]),
            float(row["loss"]),
            int(row["parameters"]),
            int(row["macs"]),
            float(row["latency_ms"]) if row["latency_ms"] else None,
        )

    @property
    def cost(self) -> float:
        """What it is compared by: latency, or multiply-accumulates where there is none."""
        return self.macs if self.latency_ms is None else self.latency_ms

    def within(self, limits: dict[str, float]) -> bool:
        """Whether it is within every limit, by the name of what is limited."""
        return all(getattr(self, name) <= limit for name, limit in limits.items())

    def score(self, limits: dict[str, float]) -> tuple[tuple[float, float], float]:
        """What evolution makes smaller, error and cost; and by how much limits are exceeded, relative to them."""
        over = (getattr(self, name) / limit - 1 for name, limit in limits.items())
        return (1 - self.accuracy, self.cost), max(0.0, *over)


def limits_of(goal: LatencyGoal, target: float | None) -> dict[str, float]:
    """What :meth:`Judged.within` takes: most parameters, and the target in ms where there is one."""
    limits = {"parameters": goal.most_parameters}
    return limits if target is None else {**limits, "latency_ms": target}


def front_of(judged: Sequence[Judged]) -> list[Judged]:
    """Those that no other beats in both accuracy and cost, from the cheapest to the most accurate."""
    front: list[Judged] = []
    for one in sorted(judged, key=lambda one: (one.cost, -one.accuracy)):
        if not front or one.accuracy > front[-1].accuracy:
            front.append(one)
    return front


Score = tuple[tuple[float, float], float]


def generations(
    counts: Sequence[int], first: Sequence[Choice], number: int, seed: int
) -> Generator[list[Choice], list[Score], None]:
    """NSGA-II: yields the choices of each generation and is sent their scores.

    Args:
        counts: how many numbers there are at each place of a choice.
        first: the first generation.
        number: of generations.
        seed: of all that is drawn.
    """
    import numpy as np
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.problems.static import StaticProblem

    class Redraw(Mutation):
        """Each place with a choice anew, once in a choice on average."""

        def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:
            free = sum(count > 1 for count in counts)
            drawn = np.stack([random_state.integers(count, size=len(X)) for count in counts], axis=1)
            return np.where(random_state.random(X.shape) < 1 / max(1, free), drawn, X)

    high = np.array(counts) - 1
    problem = Problem(n_var=len(counts), n_obj=2, n_ieq_constr=1, xl=np.zeros_like(high), xu=high, vtype=int)
    how: Any = {"sampling": np.array(first), "crossover": UniformCrossover(), "mutation": Redraw()}
    algorithm = NSGA2(pop_size=len(first), **how)
    algorithm.setup(problem, termination=("n_gen", number), seed=seed, verbose=False)
    while algorithm.has_next():
        population = algorithm.ask()
        if population is None or not len(population):
            break
        scores = yield [tuple(int(n) for n in x) for x in population.get("X")]  # pyright: ignore
        values = {"F": np.array([s for s, _ in scores]), "G": np.array([[over] for _, over in scores])}
        Evaluator().eval(StaticProblem(problem, **values), population)
        algorithm.tell(infills=population)
    yield []
