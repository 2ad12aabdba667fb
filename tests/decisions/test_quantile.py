"""The running estimate of a quantile: where it rests, how fast it follows, what it costs to be wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from sidecar.decisions.quantile import LEAST, SEEDS, Quantile

DISTRIBUTIONS: dict[str, Callable[[random.Random], float]] = {
    "log-normal": lambda chance: 0.05 * math.exp(chance.gauss(0, 0.5)),
    "uniform": lambda chance: chance.uniform(0, 0.1),
    "narrow": lambda chance: chance.uniform(0.050, 0.052),
    "two humps": lambda chance: chance.uniform(0.9, 1.1) * (0.05 if chance.random() > 0.03 else 1.0),
    "minutes": lambda chance: 60 * math.exp(chance.gauss(0, 0.3)),
}


def fed(quantile: Quantile, *seconds: float) -> Quantile:
    for each in seconds:
        quantile.record(each)
    return quantile


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_the_share_above_is_what_was_asked_for(name: str, share: float) -> None:
    """Once it has settled, `share` of the observations are not above the estimate of their moment."""
    chance = random.Random(7)
    quantile = Quantile(share)
    below = 0
    for _ in range(4000):
        quantile.record(DISTRIBUTIONS[name](chance))
    for _ in range(4000):
        seconds = DISTRIBUTIONS[name](chance)
        below += seconds <= quantile.value
        quantile.record(seconds)
    assert below / 4000 == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_share_holds_while_the_upstream_slows_down(share: float) -> None:
    """Latency that grows by a tenth every hundred requests is followed, and few more are taken for slow."""
    chance = random.Random(7)
    quantile = Quantile(share)
    below = 0
    for number in range(4000):
        seconds = 0.05 * 1.1 ** (number / 100) * math.exp(chance.gauss(0, 0.5))
        if number >= SEEDS:
            below += seconds <= quantile.value
        quantile.record(seconds)
    assert below / (4000 - SEEDS) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("share", "true"), [(0.5, 0.05), (0.95, 0.1138)])
def test_the_estimate_is_near_the_quantile(share: float, true: float) -> None:
    """After a thousand observations it is within a third of the true one, whatever the start of chance."""
    for seed in range(20):
        chance = random.Random(seed)
        quantile = Quantile(share)
        for _ in range(1000):
            quantile.record(DISTRIBUTIONS["log-normal"](chance))
        assert quantile.value == pytest.approx(true, rel=0.34)


def test_nothing_is_said_at_first() -> None:
    """Before `SEEDS` observations there is no estimate; then it is their exact quantile."""
    quantile = fed(Quantile(0.95), *(number / 100 for number in range(SEEDS, 1, -1)))
    assert quantile.value == 0.0
    quantile.record(0.01)
    assert quantile.value == 0.19


def test_one_bad_observation_moves_it_by_a_step() -> None:
    """An outlier counts as one that was longer, not by how much."""
    quantile = fed(Quantile(0.5), *[0.1] * SEEDS)
    assert fed(quantile, 3600.0).value == pytest.approx(0.1025, abs=1e-4)


def test_a_jump_is_followed() -> None:
    """Ten times slower from one request to the next: the median is there within a hundred requests."""
    quantile = fed(Quantile(0.5), *[0.1] * SEEDS, *[1.0] * 100)
    assert quantile.value == pytest.approx(1.0, rel=0.05)


def test_there_is_a_way_up_from_zero() -> None:
    """Answers that take no time at all leave an estimate from which it can rise again."""
    quantile = fed(Quantile(0.95), *[0.0] * 100)
    assert quantile.value == LEAST
    assert fed(quantile, *[1.0] * 300).value > 0.9


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 95.0])
def test_nonsense_is_refused(share: float) -> None:
    """A quantile is a share between 0 and 1."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        Quantile(share)
