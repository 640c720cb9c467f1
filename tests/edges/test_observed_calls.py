"""Every call is counted by its method and what it came to, those too that are refused at the door."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from edge_harness import APP_KEY, MODEL, add_key
from fakes import FakeClock, MemoryLedgerStore
from prometheus_client.parser import text_string_to_metric_families

from metergate.core.catalog import Catalog
from metergate.edges.auth import Authenticator
from metergate.edges.catalog import CatalogServicer
from metergate.edges.pages import PageTokens
from metergate.edges.server import ServerLimits, start_server
from metergate.telemetry.metrics import Metrics
from metergate.v1 import catalog_pb2, catalog_pb2_grpc


@asynccontextmanager
async def catalog_service(metrics: Metrics) -> AsyncIterator["catalog_pb2_grpc.CatalogServiceAsyncStub"]:
    clock, catalog = FakeClock(), Catalog({"small": MODEL})
    store = MemoryLedgerStore(clock=clock)
    await add_key(store, APP_KEY, "zhang", "workbuddy")
    handle = await start_server(
        address="127.0.0.1:0",
        servicers=[CatalogServicer(lambda: catalog, clock, PageTokens(store.content_key))],
        authenticator=Authenticator(store, time.monotonic, clock),
        limits=ServerLimits(),
        observe=metrics.called,
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{handle.port}") as channel:
        yield catalog_pb2_grpc.CatalogServiceStub(channel)
    await handle.server.stop(None)


async def test_calls_are_counted_by_method_and_outcome() -> None:
    metrics = Metrics(Catalog({}), time.monotonic)
    metadata = (("authorization", f"Bearer {APP_KEY}"),)
    async with catalog_service(metrics) as service:
        await service.ListModels(catalog_pb2.ListModelsRequest(), metadata=metadata)
        for request, asked in (
            (catalog_pb2.ListModelsRequest(), ()),
            (catalog_pb2.ListModelsRequest(page_token="none of ours"), metadata),
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await service.ListModels(request, metadata=asked)
    families = text_string_to_metric_families(metrics.render("")[0].decode())
    counted = {
        (sample.labels["method"], sample.labels["outcome"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "metergate_calls_total"
    }
    method = "metergate.v1.CatalogService.ListModels"
    assert counted == {(method, outcome): 1 for outcome in ("OK", "UNAUTHENTICATED", "INVALID_REQUEST")}
