import grpc
import pytest
from edge_harness import APP_KEY, OWN_KEY, Edge, bearer, refused

from metergate.edges.responses import timestamp
from metergate.v1 import catalog_pb2, usage_pb2

APP, OWN = bearer(APP_KEY), bearer(OWN_KEY)


async def test_a_model_is_shown_with_its_current_and_coming_prices(edge: Edge) -> None:
    response = await edge.catalog.GetModel(catalog_pb2.GetModelRequest(name="models/small"), metadata=APP)
    model = response.model
    assert (model.name, model.provider, model.context_tokens) == ("models/small", "providers/lab", 2048)
    assert model.counting_source == usage_pb2.COUNTING_SOURCE_TOKENIZER
    assert model.current_rate_card.name == "models/small/rateCards/card-1"
    assert len(model.current_rate_card.token_prices) == 4
    assert {price.microcredits_per_million_tokens for price in model.current_rate_card.token_prices} == {2_000_000}
    assert [card.name for card in model.coming_rate_cards] == ["models/small/rateCards/card-2"]
    assert model.coming_rate_cards[0].effective_time == timestamp(4_000_000_000_000_000)


async def test_a_model_says_what_it_does_and_what_a_request_may_set(edge: Edge) -> None:
    chat = (await edge.catalog.GetModel(catalog_pb2.GetModelRequest(name="models/small"), metadata=APP)).model
    assert (chat.task, chat.dimensions, chat.dimensions_selectable) == (catalog_pb2.MODEL_TASK_CHAT, 0, False)
    assert list(chat.parameters) == ["sampling.temperature", "tools"]
    vectors = (await edge.catalog.GetModel(catalog_pb2.GetModelRequest(name="models/vectors"), metadata=APP)).model
    assert (vectors.task, vectors.dimensions) == (catalog_pb2.MODEL_TASK_EMBEDDING, 576)
    assert vectors.dimensions_selectable
    assert not vectors.parameters
    assert [price.token_class for price in vectors.current_rate_card.token_prices] == [usage_pb2.TOKEN_CLASS_PROMPT]


async def test_a_coming_price_becomes_current_at_its_time(edge: Edge) -> None:
    edge.clock.time_us = 4_000_000_000_000_000
    response = await edge.catalog.GetModel(catalog_pb2.GetModelRequest(name="models/small"), metadata=APP)
    assert response.model.current_rate_card.name == "models/small/rateCards/card-2"
    assert not response.model.coming_rate_cards


async def test_a_model_without_a_price_at_present_shows_none(edge: Edge) -> None:
    edge.clock.time_us = -1
    response = await edge.catalog.GetModel(catalog_pb2.GetModelRequest(name="models/small"), metadata=APP)
    assert not response.model.HasField("current_rate_card")


async def test_models_are_listed_by_name_and_say_whether_the_caller_may_use_them(edge: Edge) -> None:
    response = await edge.catalog.ListModels(catalog_pb2.ListModelsRequest(), metadata=APP)
    assert [(model.name, model.allowed) for model in response.models] == [
        ("models/another", False),
        ("models/small", True),
        ("models/third", False),
        ("models/vectors", False),
    ]
    response = await edge.catalog.ListModels(catalog_pb2.ListModelsRequest(), metadata=OWN)
    assert all(model.allowed for model in response.models)


async def test_pages_of_models_join_to_the_whole_list(edge: Edge) -> None:
    first = await edge.catalog.ListModels(catalog_pb2.ListModelsRequest(page_size=2), metadata=OWN)
    second = await edge.catalog.ListModels(
        catalog_pb2.ListModelsRequest(page_size=2, page_token=first.next_page_token), metadata=OWN
    )
    names = [model.name for response in (first, second) for model in response.models]
    assert names == ["models/another", "models/small", "models/third", "models/vectors"]
    assert second.next_page_token == ""


@pytest.mark.parametrize(
    ("request_message", "field"),
    [
        (catalog_pb2.ListModelsRequest(page_size=-1), "page_size"),
        (catalog_pb2.ListModelsRequest(page_token="small"), "page_token"),
    ],
)
async def test_a_bad_page_of_models_is_refused(
    edge: Edge, request_message: catalog_pb2.ListModelsRequest, field: str
) -> None:
    refusal = await refused(edge.catalog.ListModels(request_message, metadata=OWN))
    assert (refusal.code, list(refusal.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_an_unknown_model_is_not_found(edge: Edge) -> None:
    refusal = await refused(edge.catalog.GetModel(catalog_pb2.GetModelRequest(name="models/gpt"), metadata=OWN))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert refusal.metadata == {"model_id": "gpt"}


@pytest.mark.parametrize("name", ["", "small"])
async def test_what_is_no_models_name_is_refused(edge: Edge, name: str) -> None:
    refusal = await refused(edge.catalog.GetModel(catalog_pb2.GetModelRequest(name=name), metadata=OWN))
    assert list(refusal.violations) == ["name"]


async def test_the_catalog_needs_a_key(edge: Edge) -> None:
    refusal = await refused(edge.catalog.ListModels(catalog_pb2.ListModelsRequest()))
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
