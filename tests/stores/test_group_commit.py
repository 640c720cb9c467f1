"""Under load, operations share a commit; nothing urgent waits, and nothing waits for longer than it is told."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from metergate.ports import Commit
from metergate.stores import group_commit
from metergate.stores.group_commit import (
    BATCH_OPERATIONS_MAX,
    SHARED_OPERATIONS_MIN,
    WAIT_S_EACH,
    WAIT_S_MAX,
    GroupCommit,
    wait_s,
)

# Longer than any test may take: what waits, waits for ever.
FOR_EVER_S = 3600.0
SECONDS_MAX = 20.0


class Batches:
    """What was committed together."""

    def __init__(self) -> None:
        self.committed: list[list[str]] = []

    def commit(self, operations: Sequence[str]) -> list[object]:
        self.committed.append(list(operations))
        return list(operations)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    for bound in ("WAIT_S_EACH", "WAIT_S_MAX"):
        monkeypatch.setattr(group_commit, bound, FOR_EVER_S)
    return Batches()


@pytest.fixture
async def commits(batches: Batches) -> AsyncIterator[GroupCommit[str]]:
    def observe(commit: Commit) -> None:
        assert not commit.has_failed

    group: GroupCommit[str] = GroupCommit(
        batches.commit, is_open=lambda: True, reopen=lambda: None, observe=observe, take_expired=lambda: 0
    )
    yield group
    async with asyncio.timeout(SECONDS_MAX):
        await group.close()


async def commit_together(commits: GroupCommit[str], count: int) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        await asyncio.gather(*(commits.submit(f"before-{number}", is_new_work=False) for number in range(count)))


async def put_off(commits: GroupCommit[str], operation: str) -> "asyncio.Future[object]":
    """Submit, and return when the writer waits for others: it then does until something tells it not to."""
    outcome = commits.submit(operation, is_new_work=False, is_urgent=False)
    async with asyncio.timeout(SECONDS_MAX):
        while commits._waiting is None:
            assert not outcome.done(), f"{operation} did not wait"
            await asyncio.sleep(0)
    return outcome


async def test_after_a_shared_batch_operations_wait_for_something_urgent(
    commits: GroupCommit[str], batches: Batches
) -> None:
    await commit_together(commits, SHARED_OPERATIONS_MIN)
    captures = [await put_off(commits, f"capture-{number}") for number in range(3)]
    assert len(batches.committed) == 1
    async with asyncio.timeout(SECONDS_MAX):
        await asyncio.gather(*captures, commits.submit("reserve", is_new_work=False))
    assert batches.committed[1:] == [["capture-0", "capture-1", "capture-2", "reserve"]]


async def test_after_a_batch_of_few_an_operation_is_committed_at_once(
    commits: GroupCommit[str], batches: Batches
) -> None:
    await commit_together(commits, SHARED_OPERATIONS_MIN - 1)
    async with asyncio.timeout(SECONDS_MAX):
        await commits.submit("capture", is_new_work=False, is_urgent=False)
    assert batches.committed[1:] == [["capture"]]


async def test_operations_that_wait_are_committed_when_their_time_is_over(
    commits: GroupCommit[str], batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "WAIT_S_MAX", 0.5)
    await commit_together(commits, SHARED_OPERATIONS_MIN)
    capture = await put_off(commits, "capture")
    assert len(batches.committed) == 1
    async with asyncio.timeout(SECONDS_MAX):
        await capture
    assert batches.committed[1:] == [["capture"]]


def test_operations_wait_the_longer_the_more_share_a_commit_and_the_longer_it_takes() -> None:
    assert wait_s(SHARED_OPERATIONS_MIN - 1, seconds=1.0) == 0.0
    waits_s = [wait_s(operations, seconds=0.0) for operations in (SHARED_OPERATIONS_MIN, 40, BATCH_OPERATIONS_MAX)]
    assert waits_s == pytest.approx([SHARED_OPERATIONS_MIN * WAIT_S_EACH, 40 * WAIT_S_EACH, WAIT_S_MAX])
    assert 0.0 < waits_s[0] < waits_s[1] < waits_s[2]
    # Of a commit that was slow, most of the time until the next one is rest all the same.
    assert wait_s(SHARED_OPERATIONS_MIN, seconds=0.005) == pytest.approx(0.025)
    assert wait_s(SHARED_OPERATIONS_MIN, seconds=1.0) == WAIT_S_MAX


async def test_a_queue_that_fills_does_not_wait(
    commits: GroupCommit[str], batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "WAITING_OPERATIONS_MAX", 3)
    await commit_together(commits, SHARED_OPERATIONS_MIN)
    captures = [await put_off(commits, f"capture-{number}") for number in range(2)]
    async with asyncio.timeout(SECONDS_MAX):
        await asyncio.gather(*captures, commits.submit("capture-2", is_new_work=False, is_urgent=False))
    assert batches.committed[1:] == [["capture-0", "capture-1", "capture-2"]]


async def test_closing_commits_what_waits(commits: GroupCommit[str], batches: Batches) -> None:
    await commit_together(commits, SHARED_OPERATIONS_MIN)
    capture = await put_off(commits, "capture")
    async with asyncio.timeout(SECONDS_MAX):
        await commits.close()
        assert await capture == "capture"
    assert batches.committed[1:] == [["capture"]]
