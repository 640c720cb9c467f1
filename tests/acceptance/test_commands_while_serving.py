"""Commands of an operator while a gateway serves the store: they write through it, and a revocation bites at once."""

import asyncio
import re
import sqlite3
import stat
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from app_client import App, cause, finish, inference, tokens
from gateway_process import GatewayProcess, cost, open_wallets, openai_backend, verify, write_config
from word_model import WordModel, speaking

from metergate.core.keys import is_key
from metergate.v1 import account_pb2

Run = Callable[..., Awaitable[tuple[int, str, str]]]


async def spendable(app: App) -> int:
    response = await app.account.GetWallet(account_pb2.GetWalletRequest(), metadata=app.metadata, timeout=20)
    return response.wallet.spendable_microcredits


async def refusal_code(app: App) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await spendable(app)
    return caught.value.code()


async def test_a_subscriber_is_set_up_served_and_shut_out_while_the_gateway_serves(tmp_path: Path, run: Run) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    async with speaking(WordModel(words=3)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            socket = tmp_path / "ledger.db.admin"
            mode = socket.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600

            assert await run("subscriber", "create", "bob") == (0, "bob\n", "")
            grant = ("grant", "add", "bob", "--credits", "2", "--expires-in", "31d", "--id", "june")
            for _ in range(2):
                code, out, err = await run(*grant)
                assert (code, out) == (0, "june\n"), err
            code, out, err = await run("grant", "add", "bob", "--credits", "3", "--id", "june")
            assert (code, out) == (2, "")
            assert "refused: The id june was used for another grant.\n" in err

            code, secret, err = await run("key", "issue", "bob", "--app", "notes", "--cap-credits", "1.5")
            assert code == 0, err
            assert is_key(secret.strip())
            key_id = re.search(r"key (\w+) of", err)
            assert key_id is not None
            async with App(gateway.port, secret.strip()) as app, App(gateway.port, keys["alice"]) as other:
                assert await spendable(app) == 1_500_000
                await app.complete(inference("first"))
                code, _, err = await run("key", "revoke", key_id[1])
                assert code == 0, err
                assert await refusal_code(app) is grpc.StatusCode.PERMISSION_DENIED
                assert await spendable(other) == 1_000_000
            code, again, _ = await run("key", "revoke", key_id[1])
            assert (code, again) == (0, "")

            code, _, err = await run("key", "revoke", "unknown")
            assert code == 2
            assert "There is no keys/unknown." in err
            code, _, err = await run("key", "issue", "nobody")
            assert code == 2
            assert "There is no subscribers/nobody." in err
        assert not socket.exists()
        assert secret.strip() not in "".join(gateway.lines())
    # When the key was used was written on the way out at the latest.
    code, out, err = await run("key", "list", "bob")
    assert code == 0, err
    flat = "".join(out.split())
    assert key_id[1][:8] in flat
    assert secret.strip() not in flat
    verify(tmp_path)


async def test_a_revoked_authorization_shuts_out_all_its_keys_and_ends_what_runs(tmp_path: Path, run: Run) -> None:
    words = 1_000
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 100_000_000})
    async with speaking(WordModel(words=words, hold_after=20)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            secrets = []
            for _ in range(2):
                code, secret, err = await run("key", "issue", "alice", "--app", "notes", "--authorization", "notes-1")
                assert code == 0, err
                secrets.append(secret.strip())
            async with (
                App(gateway.port, secrets[0]) as app,
                App(gateway.port, secrets[1]) as second,
                App(gateway.port, keys["alice"]) as other,
            ):
                assert await spendable(second) == 100_000_000
                running = app.stream(inference("running"))
                await running.until_characters(len(model.text(20)))
                code, _, err = await run("authorization", "revoke", "notes-1")
                assert code == 0, err
                for shut_out in (app, second):
                    assert await refusal_code(shut_out) is grpc.StatusCode.PERMISSION_DENIED
                model.go_on.set()
                await running.ended()
                assert await spendable(other) == 100_000_000 - running.receipted.charged_microcredits
    verify(tmp_path)
    assert model.text(words).startswith(running.text)
    assert (cause(running.receipted), finish(running.receipted)) == ("CAP_REACHED", "CREDIT_EXHAUSTED")
    assert running.receipted.charged_microcredits == cost(running.admitted.prompt_tokens, running.text)
    # What it had set aside, a slice of 64 tokens ahead, was still its own.
    assert tokens(running.receipted.usage_counted)["COMPLETION"] <= 20 * 2 + 64


async def test_a_wallet_is_corrected_while_the_gateway_serves(tmp_path: Path, run: Run) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    why = ("--reason", "the answer was cut")
    async with speaking(WordModel(words=3)) as model:
        write_config(tmp_path, openai_backend(model.url))
        with GatewayProcess(tmp_path) as gateway:
            async with App(gateway.port, keys["alice"]) as app:
                await app.complete(inference("first"))
                charges = await app.account.ListCharges(account_pb2.ListChargesRequest(), metadata=app.metadata)
                (charge,) = charges.charges
                amount = f"{charge.charged_microcredits / 1_000_000:f}"
                refund = ("charge", "refund", "alice", charge.name.rpartition("/")[2], "--credits", amount, *why)
                for _ in range(2):
                    assert await run(*refund, "--id", "case-1") == (
                        0,
                        "case-1\n",
                        f"{amount} credits of charge {charge.name.rpartition('/')[2]} went back to alice\n",
                    )
                assert await spendable(app) == 1_000_000
                code, out, err = await run(*refund, "--id", "case-2")
                assert (code, out) == (2, "")
                assert "is too much" in err

                assert (await run("wallet", "adjust", "alice", "--credits=-0.5", *why))[0] == 0
                assert await spendable(app) == 500_000
                assert (await run("wallet", "suspend", "alice", *why))[0] == 0
                with pytest.raises(grpc.aio.AioRpcError, match="suspended"):
                    await app.complete(inference("second"))
                assert (await run("wallet", "resume", "alice", *why))[0] == 0
                await app.complete(inference("second"))
                grant = (await app.account.ListGrants(account_pb2.ListGrantsRequest(), metadata=app.metadata)).grants[0]
                code, _, err = await run("grant", "reverse", "alice", grant.name.rpartition("/")[2], *why)
                assert code == 0, err
                assert "the wallet is suspended for the" in err
    verify(tmp_path)


async def test_a_grant_that_expires_rolls_over_though_nobody_uses_the_wallet(tmp_path: Path, run: Run) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    write_config(tmp_path, openai_backend("http://127.0.0.1:9/v1"), expiry_sweep_seconds=0.05)
    rule = ("--rollover-max-credits", "2", "--rollover-for", "31d")
    with GatewayProcess(tmp_path) as gateway:
        end = datetime.now(UTC) + timedelta(seconds=1)
        assert (await run("grant", "add", "alice", "--credits", "5", "--expire-time", end.isoformat(), *rule))[0] == 0
        async with App(gateway.port, keys["alice"]) as app, asyncio.timeout(30):
            request = account_pb2.ListTransfersRequest(page_size=2)
            kinds: list[int] = []
            while kinds != [account_pb2.TRANSFER_KIND_EXPIRY, account_pb2.TRANSFER_KIND_ROLLOVER]:
                response = await app.account.ListTransfers(request, metadata=app.metadata)
                kinds = [transfer.kind for transfer in response.transfers]
                await asyncio.sleep(0.05)
            assert await spendable(app) == 3_000_000
    verify(tmp_path)


async def test_without_a_gateway_the_same_commands_write_the_store_themselves(tmp_path: Path, run: Run) -> None:
    keys = await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    write_config(tmp_path, openai_backend("http://127.0.0.1:9/v1"))
    with GatewayProcess(tmp_path) as gateway:
        async with App(gateway.port, keys["alice"]) as app:
            assert await spendable(app) == 1_000_000
        gateway.kill()
        assert (tmp_path / "ledger.db.admin").exists(), "a gateway that is killed leaves its socket"
        assert (await run("grant", "add", "alice", "--credits", "1", "--id", "june"))[0] == 0
        gateway.start()
        assert (await run("grant", "add", "alice", "--credits", "1", "--id", "july"))[0] == 0
        async with App(gateway.port, keys["alice"]) as app:
            assert await spendable(app) == 3_000_000


async def test_a_key_that_expired_is_refused_with_its_own_words(tmp_path: Path, run: Run) -> None:
    await open_wallets(tmp_path / "ledger.db", {"alice": 1_000_000})
    write_config(tmp_path, openai_backend("http://127.0.0.1:9/v1"))
    code, secret, err = await run("key", "issue", "alice", "--expires-in", "90d")
    assert code == 0
    assert re.search(r"expiring: \d{4}-", err)
    with GatewayProcess(tmp_path) as gateway:
        async with App(gateway.port, secret.strip()) as app:
            assert await spendable(app) == 1_000_000
    expire_now(tmp_path / "ledger.db")
    with GatewayProcess(tmp_path) as gateway:
        async with App(gateway.port, secret.strip()) as app:
            with pytest.raises(grpc.aio.AioRpcError, match="the key has expired"):
                await spendable(app)
            assert await refusal_code(app) is grpc.StatusCode.UNAUTHENTICATED


def expire_now(store: Path) -> None:
    """Let time pass for all keys that expire."""
    connection = sqlite3.connect(store)
    with connection:
        connection.execute("UPDATE keys SET expire_time_us = create_time_us + 1 WHERE expire_time_us IS NOT NULL")
    connection.close()
