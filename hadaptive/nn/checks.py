"""What a selection can be, and one clear ValueError for what it cannot."""

import math

SELECTIONS = ("sample", "static", "grouped", "random")
ORDERS = ("rank", "index")
JOINS = ("concat", "add")
SURROGATES = ("softmax", "softmax_k", "simple", "sfess")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise one clear ValueError unless `value` is among `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_noise(noise: float) -> None:
    """Raise one clear ValueError unless `noise` is a finite number that is not negative."""
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < math.inf:
        raise ValueError(f"noise must be a number from 0 on, got {noise!r}")


def check_temperature(temperature: float | None) -> None:
    """Raise one clear ValueError unless `temperature` is None or a finite positive number."""
    if temperature is None:
        return
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not number or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a positive number, or None to adapt it, got {temperature!r}")


def check_score_kernel(width: int) -> None:
    """Raise one clear ValueError unless `width` is 0, or odd and positive."""
    if isinstance(width, bool) or not isinstance(width, int) or width < 0 or (width and width % 2 == 0):
        raise ValueError(f"score_kernel must be odd and positive, or 0 for none, got {width!r}")


def check_selection(
    selection: str,
    order: str,
    surrogate: str,
    noise: float,
    temperature: float | None,
    score_kernel: int = 5,
    seed: int | None = None,
) -> None:
    """Raise one clear ValueError unless these fit each other: what would have no effect is refused."""
    check_choice("selection", selection, SELECTIONS)
    check_choice("order", order, ORDERS)
    check_choice("surrogate", surrogate, SURROGATES)
    check_noise(noise)
    check_temperature(temperature)
    check_score_kernel(score_kernel)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    if surrogate == "sfess" and noise == 0:
        raise ValueError("surrogate='sfess' learns from what chance selects: it needs noise above 0")
    if surrogate == "sfess" and temperature is not None:
        raise ValueError("temperature has no effect on surrogate='sfess', which has no gates: leave it out")
    if selection != "sample" and (order, surrogate) != ("rank", "softmax"):
        raise ValueError(f"order and surrogate are for selection='sample', not for {selection!r}")
    if selection in ("static", "random") and (noise, temperature) != (1.0, None):
        raise ValueError(
            f"noise and temperature have no effect on selection={selection!r}, which is always the same"
        )
    if selection in ("static", "random") and score_kernel != 5:
        raise ValueError(f"score_kernel has no effect on selection={selection!r}, which has no score")
    if selection != "random" and seed:
        raise ValueError(f"seed is for selection='random', not for {selection!r}")


def check_k(k: int, channels: int) -> None:
    """Raise one clear ValueError unless 2 <= k <= channels."""
    if k < 2:
        raise ValueError(f"k must be at least 2, because products are of channel pairs; got {k}")
    if k > channels:
        raise ValueError(f"k = {k} channels cannot be selected out of only {channels}")
