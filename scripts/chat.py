"""A small app: streams a model's answer through Metergate and shows its receipt as a table.

An app of your own needs the same: grpcio, the generated stubs, and a key.
"""

import argparse
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import cast

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from rich.console import Console
from rich.table import Table

from metergate.core.credits import format_credits
from metergate.v1 import (
    account_pb2,
    account_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    chat_pb2,
    inference_pb2,
    inference_pb2_grpc,
    usage_pb2,
)

CALL_SECONDS_MAX = 120.0  # a small model on a busy machine answers within a minute


class App:
    """Calls the gateway with one key; over TLS if authorities (PEM) are given, whom it must prove itself to."""

    def __init__(self, address: str, key: str, console: Console, authorities: bytes | None = None) -> None:
        if authorities is None:
            self._channel = grpc.insecure_channel(address)
        else:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(authorities))
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._console = console
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._account = account_pb2_grpc.AccountServiceStub(self._channel)
        self._catalog = catalog_pb2_grpc.CatalogServiceStub(self._channel)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def spendable_microcredits(self) -> int:
        """What the key may still spend."""
        response = self._account.GetWallet(
            account_pb2.GetWalletRequest(), metadata=self._metadata, timeout=CALL_SECONDS_MAX
        )
        return response.wallet.spendable_microcredits

    def prices(self, model: str) -> dict[int, int]:
        """Microcredits per 1,000,000 tokens, by class."""
        request = catalog_pb2.GetModelRequest(name=f"models/{model}")
        response = self._catalog.GetModel(request, metadata=self._metadata, timeout=CALL_SECONDS_MAX)
        card = response.model.current_rate_card
        return {price.token_class: price.microcredits_per_million_tokens for price in card.token_prices}

    def stream(self, model: str, prompt: str, *, max_completion_tokens: int) -> inference_pb2.Receipt:
        """Print the answer as it arrives and return its receipt; RpcError if it is refused or fails."""
        inference = inference_pb2.Inference(
            request_id=str(uuid.uuid4()),
            model=f"models/{model}",
            messages=[
                chat_pb2.Message(role=chat_pb2.ROLE_USER, content_parts=[chat_pb2.ContentPart(text=prompt)]),
            ],
            sampling=chat_pb2.Sampling(temperature=0.7, seed=7),
            max_completion_tokens=max_completion_tokens,
        )
        receipt = inference_pb2.Receipt()
        request = inference_pb2.StreamCompleteRequest(inference=inference)
        for response in self._inference.StreamComplete(request, metadata=self._metadata, timeout=CALL_SECONDS_MAX):
            match response.WhichOneof("event"):
                case "delta":
                    self._console.print(response.delta.content, end="", style="cyan", markup=False, highlight=False)
                case "receipt":
                    receipt = response.receipt
        self._console.print()
        return receipt


def reason_of(error: grpc.RpcError) -> ErrorInfo:
    """The typed reason of a refusal; an empty one if the gateway gave none."""
    info = ErrorInfo()
    status = rpc_status.from_call(cast(grpc.Call, error))
    details = [] if status is None else status.details
    any(detail.Unpack(info) for detail in details)
    return info


def receipt_table(receipt: inference_pb2.Receipt, prices: dict[int, int], before: int) -> Table:
    """The receipt for people: tokens by class with their prices, the charge, and the credits before and after."""
    finish = chat_pb2.FinishReason.Name(receipt.finish_reason).removeprefix("FINISH_REASON_")
    source = usage_pb2.CountingSource.Name(receipt.counting_source).removeprefix("COUNTING_SOURCE_")
    table = Table(title=f"Receipt: {finish}, counted by {source}", title_justify="left")
    table.add_column("")
    table.add_column("tokens", justify="right")
    table.add_column("credits per 1M", justify="right")
    table.add_column("credits", justify="right")
    for count in receipt.usage_counted.token_counts:
        name = usage_pb2.TokenClass.Name(count.token_class).removeprefix("TOKEN_CLASS_").lower()
        price = prices[count.token_class]
        exact = Decimal(count.tokens * price).scaleb(-12)  # a price is microcredits for a million tokens
        table.add_row(name, f"{count.tokens:,}", format_credits(price), f"{exact:.7f}")
    table.add_section()
    table.add_row("charged (rounded up once)", "", "", format_credits(receipt.charged_microcredits), style="bold")
    table.add_row("credits before", "", "", format_credits(before))
    table.add_row("credits after", "", "", format_credits(receipt.available_microcredits))
    return table


def main() -> None:
    """Ask once, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:50051", help="the gateway (default %(default)s)")
    parser.add_argument("--key-file", type=Path, required=True, help="a file that holds the key")
    parser.add_argument("--ca-file", type=Path, help="authorities of the gateway's certificate: call it over TLS")
    parser.add_argument("--model", default="smollm2-135m", help="default %(default)s")
    parser.add_argument("--tokens-max", type=int, default=128, help="of the answer (default %(default)s)")
    parser.add_argument("prompt")
    options = parser.parse_args()
    console = Console()
    authorities = None if options.ca_file is None else options.ca_file.read_bytes()
    app = App(options.address, options.key_file.read_text().strip(), console, authorities)
    try:
        before = app.spendable_microcredits()
        receipt = app.stream(options.model, options.prompt, max_completion_tokens=options.tokens_max)
        console.print(receipt_table(receipt, app.prices(options.model), before))
    except grpc.RpcError as error:
        sys.exit(f"{reason_of(error).reason or 'UNKNOWN'}: {cast(grpc.Call, error).details()}")
    finally:
        app.close()


if __name__ == "__main__":
    main()
