"""CatalogService: the models on sale and their prices."""

from collections.abc import Callable, Mapping

from google.protobuf.descriptor import ServiceDescriptor

from metergate.core.catalog import Catalog, Model, ModelTask
from metergate.core.errors import RequestInvalid, Violation
from metergate.core.rating import current_card
from metergate.core.rows import Authorization
from metergate.edges.calls import Behaviour, Context
from metergate.edges.pages import PageTokens, page_rows
from metergate.edges.resources import model_name, parse_model, provider_name
from metergate.edges.responses import COUNTING_SOURCES, rate_card_message
from metergate.ports import Clock
from metergate.v1 import catalog_pb2

_QUERY = "models"

# Built by name at import, so that a word that the protos lack stops the gateway from starting.
_TASKS = {task: catalog_pb2.ModelTask.Value(f"MODEL_TASK_{task}") for task in ModelTask}


class CatalogServicer:
    """Shows any caller what is on sale."""

    service: ServiceDescriptor = catalog_pb2.DESCRIPTOR.services_by_name["CatalogService"]

    def __init__(self, catalog: Callable[[], Catalog], clock: Clock, page_tokens: PageTokens) -> None:
        """``catalog``: what is on sale now."""
        self._catalog = catalog
        self._clock = clock
        self._page_tokens = page_tokens

    def behaviours(self) -> Mapping[str, Behaviour]:
        """What each method does."""
        return {"ListModels": self._list_models, "GetModel": self._get_model}

    async def _list_models(
        self, caller: Authorization, request: catalog_pb2.ListModelsRequest, context: Context
    ) -> catalog_pb2.ListModelsResponse:
        rows = page_rows(request.page_size)
        after = self._page_tokens.read(request.page_token, _QUERY)
        catalog = self._catalog()
        model_ids = [model_id for model_id in sorted(catalog.models) if after is None or model_id > after]
        page, rest = model_ids[:rows], model_ids[rows:]
        return catalog_pb2.ListModelsResponse(
            models=[self._model_message(catalog.get(model_id), caller) for model_id in page],
            next_page_token=self._page_tokens.write(page[-1] if rest else None, _QUERY),
        )

    async def _get_model(
        self, caller: Authorization, request: catalog_pb2.GetModelRequest, context: Context
    ) -> catalog_pb2.GetModelResponse:
        model_id = parse_model(request.name)
        if model_id is None:
            raise RequestInvalid(Violation("name", "must be models/{model}"))
        return catalog_pb2.GetModelResponse(model=self._model_message(self._catalog().get(model_id), caller))

    def _model_message(self, model: Model, caller: Authorization) -> catalog_pb2.Model:
        now_us = self._clock.now_us()
        current = current_card(model.rate_cards, now_us)
        return catalog_pb2.Model(
            name=model_name(model.model_id),
            display_name=model.display_name,
            provider=provider_name(model.provider_id),
            context_tokens=model.context_tokens,
            counting_source=COUNTING_SOURCES[model.counting_source],
            current_rate_card=None if current is None else rate_card_message(current),
            coming_rate_cards=[rate_card_message(card) for card in model.rate_cards if card.effective_time_us > now_us],
            task=_TASKS[model.task],
            dimensions=model.dimensions or 0,
            dimensions_selectable=model.dimensions_selectable,
            parameters=sorted(model.parameters) if model.task is ModelTask.CHAT else (),
            allowed=not caller.allowed_models or model.model_id in caller.allowed_models,
        )
