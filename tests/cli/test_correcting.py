"""Correcting a wallet by hand: what the commands do, print and refuse, and with which exit code."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from ledger_rows import CARD, a_capture, a_consent, a_reserve, a_settle

from metergate.cli import charges as cli_charges
from metergate.cli.main import main
from metergate.clock import SystemClock
from metergate.stores.sqlite import SqliteLedgerStore

Run = Callable[..., tuple[int, str, str]]

STORE = ("--store", "ledger.db")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a command in a folder in which alice was charged 0.000040 of 5 credits: its exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main((*arguments, *STORE))
        captured = capfd.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    assert run_command("subscriber", "create", "alice")[0] == 0
    assert run_command("grant", "add", "alice", "--credits", "5", "--id", "june")[0] == 0
    asyncio.run(charge(tmp_path / "ledger.db"))
    return run_command


async def charge(path: Path) -> None:
    store = await SqliteLedgerStore.open(path, clock=SystemClock(), owner_id="test", create=False)
    now_us = SystemClock().now_us()
    await store.add_rate_cards([CARD])
    await store.add_authorization(a_consent())
    await store.reserve(a_reserve(owner=store.owner, now_us=now_us))
    await store.settle(a_settle(40, owner=store.owner, captured=40, charge_id="c1", now_us=now_us))
    await store.close()


REFUND = ("charge", "refund", "alice", "c1", "--credits", "0.00003", "--reason", "it was cut", "--id", "case-17")


def available(run: Run) -> str:
    match = re.search(r"available\W+([0-9.]+)", run("wallet", "show", "alice")[1])
    assert match
    return match[1]


def test_a_refund_prints_its_id_and_twice_is_once(run: Run) -> None:
    for _ in range(2):
        code, out, err = run(*REFUND)
        assert (code, out) == (0, "case-17\n")
        assert "0.000030 credits of charge c1 went back to alice" in err
    assert available(run) == "4.999990"
    code, out, _ = run("ledger", "verify")
    assert (code, "No differences." in out) == (0, True)


def test_a_refund_above_the_charge_is_refused_with_both_amounts(run: Run) -> None:
    run(*REFUND)
    code, out, err = run(*REFUND[:-1], "case-18")
    assert (code, out) == (2, "")
    assert "30 of 40 microcredits is too much: 30 went back." in err


def test_a_refund_of_other_content_under_the_same_id_is_refused(run: Run) -> None:
    run(*REFUND)
    code, out, err = run(*REFUND, "--actor", "somebody else")
    assert (code, out) == (2, "")
    assert "The id case-17 was used for another correction." in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("bob", "c1", "--credits", "1", "--reason", "r"), "There is no subscribers/bob."),
        (("alice", "c2", "--credits", "1", "--reason", "r"), "There is no subscribers/alice/charges/c2."),
        (("alice", "c1", "--credits", "0", "--reason", "r"), "amount_microcredits"),
        (("alice", "c1", "--credits=-1", "--reason", "r"), "amount_microcredits"),
        (("alice", "c1", "--credits", "1", "--reason", ""), "reason"),
        (("alice", "c1", "--credits", "1"), "reason"),
        (("alice", "c1", "--credits", "1", "--reason", "r", "--expires-in", "0d"), "must be a number and m, h or d"),
    ],
)
def test_a_refund_that_cannot_be_is_refused_with_the_reason(run: Run, arguments: tuple[str, ...], reason: str) -> None:
    code, out, err = run("charge", "refund", *arguments)
    assert (code, out) == (2, "")
    assert reason in re.sub(r"[\s│]+", " ", err)
    assert "Traceback" not in err


def test_credits_are_given_and_taken_and_the_wallet_shows_why_and_by_whom(run: Run) -> None:
    give = (
        "wallet",
        "adjust",
        "alice",
        "--credits",
        "2",
        "--reason",
        "[b]the outage",
        "--actor",
        "zhang",
        "--id",
        "a1",
    )
    code, out, err = run(*give)
    assert (code, out) == (0, "a1\n")
    assert "2.000000 credits given to alice" in err
    code, _, err = run("wallet", "adjust", "alice", "--credits", "-1.5", "--reason", "a mistake")
    assert code == 0
    assert "1.500000 credits taken from alice" in err
    assert available(run) == "5.499960"
    shown = "".join(run("wallet", "show", "alice")[1].split())
    for text in ("adjustment", "ADJUS", "-1.500000", "[b]the", "zhang"):
        assert text in shown
    code, out, err = run("wallet", "adjust", "alice", "--credits=-6", "--reason", "too much")
    assert (code, out) == (2, "")
    assert "microcredits available" in err


def test_a_reversed_grant_suspends_the_wallet_until_it_is_resumed(run: Run) -> None:
    code, out, err = run("grant", "reverse", "alice", "june", "--reason", "chargeback", "--id", "cb-1")
    assert (code, out) == (0, "cb-1\n")
    assert "4.999960 credits of grant june taken back from alice; the wallet is suspended for the 0.000040" in err
    shown = run("wallet", "show", "alice")[1]
    assert "(SUSPENDED)" in shown
    assert re.search(r"june .*reversed", shown)
    code, out, err = run("grant", "reverse", "alice", "june", "--reason", "chargeback", "--id", "cb-2")
    assert (code, out) == (2, "")
    assert "The grant june was reversed before." in err
    code, _, err = run("wallet", "resume", "alice", "--reason", "paid in cash")
    assert code == 0
    assert "the wallet of alice may be spent from again" in err
    assert "(ACTIVE)" in run("wallet", "show", "alice")[1]
    code, _, err = run("wallet", "suspend", "alice", "--reason", "reported stolen")
    assert code == 0
    assert "the wallet of alice is suspended" in err
    assert run("ledger", "verify")[0] == 0


def test_a_grant_that_rolls_over_shows_its_rule(run: Run) -> None:
    rule = ("--expires-in", "31d", "--rollover-max-credits", "2", "--rollover-for", "31d")
    add = ("grant", "add", "alice", "--credits", "5", "--source", "PLAN_CYCLE", *rule, "--id", "july")
    for _ in range(2):
        code, out, err = run(*add)
        assert (code, out) == (0, "july\n")
        assert "2.000000 credits of it roll over" in err
    assert "2.000000" in run("wallet", "show", "alice")[1]


async def crash(path: Path) -> None:
    """A request of which 90 were captured and 60 are known to be delivered, when its gateway died."""
    store = await SqliteLedgerStore.open(path, clock=SystemClock(), owner_id="dies", create=False)
    now_us = SystemClock().now_us()
    await store.reserve(a_reserve("cut", owner=store.owner, now_us=now_us))
    await store.capture(a_capture(90, "cut", owner=store.owner, now_us=now_us, delivered_microcredits=60))
    await store.close()
    await (await SqliteLedgerStore.open(path, clock=SystemClock(), owner_id="next", create=False)).close()


def charges(run: Run, *arguments: str) -> list[str]:
    """The lines of the list that have numbers."""
    code, out, _ = run("charge", "list", "alice", *arguments)
    assert code == 0
    return [line for line in out.splitlines() if "0.0000" in line]


def test_what_a_dead_gateway_did_not_deliver_can_be_seen_and_refunded_and_no_more(run: Run, tmp_path: Path) -> None:
    asyncio.run(crash(tmp_path / "ledger.db"))
    (cut, finished) = charges(run)
    assert re.search(r"c1 .*FINISHED +0\.000040 +0\.000040$", finished.rstrip())
    assert re.search(r"CRASH +0\.000090 +0\.000060 +0\.000030$", cut.rstrip()), "claim at most"
    assert charges(run, "--crashed") == charges(run)[:1]
    charge_id = cut.split()[2]
    refund = ("charge", "refund", "alice", charge_id, "--reason", "the gateway died", "--id")
    assert run(*refund, "claim-1", "--credits", "0.00002")[0] == 0
    (cut,) = charges(run, "--crashed")
    assert re.search(r"CRASH +0\.000090 +0\.000060 +0\.000020 +0\.000010$", cut.rstrip()), "refunded, still to claim"
    assert run(*refund, "claim-2", "--credits", "0.00001")[0] == 0
    (cut,) = charges(run, "--crashed")
    assert re.search(r"CRASH +0\.000090 +0\.000060 +0\.000030$", cut.rstrip()), "nothing is left to claim"
    code, out, err = run(*refund, "claim-3", "--credits", "0.000061")
    assert (code, out) == (2, "")
    assert "too much" in err


def test_charges_of_nobody_are_refused_and_of_many_the_newest_are_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run("charge", "list", "bob")
    assert (code, out) == (2, "")
    assert "subscribers/bob" in err
    monkeypatch.setattr(cli_charges, "CHARGES_SHOWN_MAX", 0)
    code, _, err = run("charge", "list", "alice")
    assert (code, "only the newest 0 are shown" in err) == (0, True)
