"""Where a request goes: to the least loaded for its weight, of those that can take it."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metergate.core.choosing import AllOut, Candidate, Take, Wait, choose, is_last
from metergate.core.standing import RETURN_SECONDS, Standing, State

NOW = 100.0
EJECTED = Standing(state=State.EJECTED, until_seconds=NOW + 3.0, episode=1)
ON_TRIAL = Standing(state=State.EJECTED, until_seconds=NOW, episode=1)
RETURNING = Standing(state=State.RETURNING, until_seconds=NOW + RETURN_SECONDS / 2, episode=1)


def candidate(backend_id: str, outstanding: int = 0, **fields: Any) -> Candidate:
    values: dict[str, Any] = {
        "weight": 1,
        "requests_max": 8,
        "trials": 0,
        "standing": Standing(),
        "is_up": True,
    }
    return Candidate(backend_id=backend_id, outstanding=outstanding, **(values | fields))


def chosen(*candidates: Candidate, chance: float = 0.0) -> Take | Wait | AllOut:
    return choose(candidates, now_seconds=NOW, chance=chance)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], True),
        ([candidate("b")], False),
        ([candidate("b", 8)], False),  # full, but there
        ([candidate("b", weight=0)], False),
        ([candidate("b", standing=ON_TRIAL)], False),
        ([candidate("b", standing=RETURNING)], False),
        ([candidate("b", standing=EJECTED)], True),
        ([candidate("b", is_up=False)], True),
        ([candidate("b", standing=EJECTED), candidate("c", is_up=False)], True),
        ([candidate("b", standing=EJECTED), candidate("c")], False),
    ],
)
@pytest.mark.parametrize("own", [candidate("a"), candidate("a", is_up=False), candidate("a", standing=ON_TRIAL)])
def test_a_backend_is_the_last_if_all_others_are_left_out_or_down(
    own: Candidate, others: list[Candidate], expected: bool
) -> None:
    assert is_last("a", [own, *others], NOW) is expected


@pytest.mark.parametrize(
    ("candidates", "choice"),
    [
        ([candidate("a", 2), candidate("b", 1)], Take("b")),
        ([candidate("a", 3, weight=4), candidate("b", 1)], Take("a")),
        ([candidate("a", 5, weight=4), candidate("b", 1)], Take("b")),
        ([candidate("a", 8), candidate("b", 7)], Take("b")),
        ([candidate("a", 8), candidate("b", 8)], Wait(("a", "b"))),
        # Standing by: for when no other can.
        ([candidate("a", 7), candidate("b", 0, weight=0)], Take("a")),
        ([candidate("a", 8), candidate("b", 0, weight=0)], Take("b")),
        ([candidate("a", standing=EJECTED), candidate("b", 0, weight=0)], Take("b")),
        # Left out.
        ([candidate("a", standing=EJECTED), candidate("b", 5)], Take("b")),
        ([candidate("a", standing=EJECTED), candidate("b", 8)], Wait(("b",))),
        ([candidate("a", standing=EJECTED)], AllOut(3.0)),
        # On trial: one request, whatever still runs there from before.
        ([candidate("a", 2, standing=ON_TRIAL)], Take("a")),
        ([candidate("a", 3, trials=1, standing=ON_TRIAL), candidate("b", 7)], Take("b")),
        ([candidate("a", 3, trials=1, standing=ON_TRIAL)], Wait(("a",))),
        # Returning, at half of its share.
        ([candidate("a", 1, standing=RETURNING), candidate("b", 1)], Take("b")),
        ([candidate("a", 1, standing=RETURNING), candidate("b", 3)], Take("a")),
        # Seen down: tried where no other is left.
        ([candidate("a", is_up=False), candidate("b", 7)], Take("b")),
        ([candidate("a", is_up=False), candidate("b", 8)], Wait(("b",))),
        ([candidate("a", is_up=False), candidate("b", standing=EJECTED)], Take("a")),
        ([candidate("a", is_up=False), candidate("b", is_up=False, weight=0)], Take("a")),
    ],
)
def test_the_choice_is(candidates: list[Candidate], choice: Take | Wait | AllOut) -> None:
    assert chosen(*candidates) == choice


def test_idle_backends_are_drawn_by_weight() -> None:
    draw = random.Random(1)
    idle = (candidate("a", weight=3), candidate("b", weight=1), candidate("c", weight=0))
    drawn = Counter(str(chosen(*idle, chance=draw.random())) for _ in range(4_000))
    assert drawn.keys() == {str(Take("a")), str(Take("b"))}
    assert 2_850 < drawn[str(Take("a"))] < 3_150


def test_under_load_the_outstanding_requests_are_as_the_weights() -> None:
    outstanding = {"a": 0, "b": 0, "c": 0}
    weights = {"a": 1, "b": 2, "c": 5}
    draw = random.Random(1)
    for _ in range(800):
        choice = chosen(
            *(candidate(name, outstanding[name], weight=weights[name], requests_max=1_000) for name in weights),
            chance=draw.random(),
        )
        assert isinstance(choice, Take)
        outstanding[choice.backend_id] += 1
    assert outstanding == {"a": 100, "b": 200, "c": 500}


candidates = st.builds(
    candidate,
    st.uuids().map(str),
    st.integers(0, 9),
    weight=st.integers(0, 3),
    trials=st.integers(0, 1),
    standing=st.sampled_from([Standing(), EJECTED, ON_TRIAL, RETURNING]),
    is_up=st.booleans(),
)


@given(st.lists(candidates, min_size=1, max_size=8), st.floats(0, 1, exclude_max=True))
def test_nothing_goes_to_a_backend_that_is_full_or_left_out(offered: list[Candidate], chance: float) -> None:
    choice = chosen(*offered, chance=chance)
    by_id = {one.backend_id: one for one in offered}
    if isinstance(choice, Take):
        taken = by_id[choice.backend_id]
        assert taken.standing is not EJECTED
        assert taken.outstanding < taken.requests_max
        assert not (taken.standing is ON_TRIAL and taken.trials)
    elif isinstance(choice, AllOut):
        assert all(one.standing is EJECTED for one in offered)
    else:
        assert choice.backend_ids
        assert all(by_id[backend_id].standing is not EJECTED for backend_id in choice.backend_ids)
