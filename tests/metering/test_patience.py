"""Patience: who is waited for, and how long."""

import asyncio

import pytest

from metergate.metering.patience import Patience


async def something_comes_again_and_again(*, limit_seconds: float) -> None:
    async with Patience(first_seconds=600.0, between_seconds=600.0) as patience:
        patience.limit(limit_seconds)
        while True:
            await asyncio.sleep(0.005)
            patience.renew()


async def test_what_comes_does_not_put_off_a_limit() -> None:
    async with asyncio.timeout(10) as all_of_it:
        with pytest.raises(TimeoutError):
            await something_comes_again_and_again(limit_seconds=0.05)
    assert not all_of_it.expired()
