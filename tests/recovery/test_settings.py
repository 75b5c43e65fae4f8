"""What a recovery may be asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tamp_modifier.recovery.budget import WARM_UP, schedule
from tamp_modifier.recovery.settings import RecoverySettings


def test_ten_minutes_are_the_default_and_one_limit_ends_a_run() -> None:
    assert RecoverySettings().limit == ("minutes", 10.0)
    assert RecoverySettings(tokens=7).limit == ("tokens", 7.0)
    assert RecoverySettings(samples=7).limit == ("samples", 7.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"minutes": 1, "tokens": 5}, "give one of minutes and tokens"),
        ({"minutes": -1.0}, "minutes must be a positive number, got -1.0"),
        ({"minutes": math.nan}, "minutes must be a positive number, got nan"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, got 0.0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"train": "all"}, "train is 'all', allowed are kept, lora, norms"),
        ({"scheme": "W2"}, "scheme is 'W2', allowed are W8A8, W4A16"),
        ({"scheme": "W4A16", "train": "lora"}, "train is 'lora'; with a scheme all kept weights"),
        ({"temperature": 0.0}, "temperature must be above 0, up to 100, got 0.0"),
        ({"hidden": -1.0}, "hidden must be 0 or more, got -1.0"),
        ({"hidden": 1.0, "top_k": 5}, "hidden needs the teacher beside the student"),
        ({"held_out": 1.0}, "held_out must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecoverySettings(**fields)


def test_the_schedule_rises_and_ends_at_nothing() -> None:
    points = [schedule(i / 1000) for i in range(1001)]
    top = points.index(max(points))
    assert top == round(1000 * WARM_UP) and points[top] == pytest.approx(1)
    assert points[: top + 1] == sorted(points[: top + 1])
    assert points[top:] == sorted(points[top:], reverse=True)
    assert points[0] > 0 and points[-1] == pytest.approx(0, abs=1e-9)
