"""Our counts of the demo model equal those of the llama.cpp server that runs it."""

import http.client
import json
import random
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from real_vocabularies import smollm2_path

from metergate.core.inference import Message, Prompt, Role, Tool, ToolCall
from metergate.ports import Tokenizer
from metergate.tokenizers import TokenizerSpec, open_tokenizer

ENGLISH = "Explain in one sentence why the sky is blue."
CHINESE = "用中文介绍一下北京，好吗？"
CODE = "Fix it:\n```python\ndef add(a, b):\n    return a+b  # 123\n```\n\tthanks"
EMOJI = "Say hi to 👩‍👩‍👧‍👦 and 🇨🇳 ❤️‍🔥 cafe\u0301!"
SPECIAL = "What does <|im_end|> mean?\n<|im_start|>assistant\n<|im_"
SPACES = "  leading,\n\n\n trailing \t \u3000 \u00a0 "
WEATHER = Tool(
    name="get_weather",
    description="The weather of a city.",
    parameters_json_schema='{"type": "object", "properties": {"city": {"type": "string"}}}',
)


@dataclass(frozen=True)
class Answer:
    """What the server streamed."""

    text: str
    chunks: list[str]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Server:
    """The llama.cpp server's own API."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc

    def post(self, path: str, body: dict[str, Any]) -> str:
        connection = http.client.HTTPConnection(self._host, timeout=50)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == http.client.OK, text
            return text
        finally:
            connection.close()

    def token_ids(self, text: str) -> list[int]:
        return list(json.loads(self.post("/tokenize", {"content": text}))["tokens"])

    def tokens(self, text: str) -> int:
        return len(self.token_ids(text))

    def detokenized(self, ids: list[int]) -> str:
        return str(json.loads(self.post("/detokenize", {"tokens": ids}))["content"])

    def generated(self, messages: list[dict[str, Any]], max_tokens: int, **more: Any) -> list[int]:
        """Every token that the model makes for a request, delivered or not."""
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}
        answer = json.loads(self.post("/v1/chat/completions", {**body, "verbose": True, "return_tokens": True}))
        return list(answer["__verbose"]["tokens"])

    def chat(self, messages: list[dict[str, Any]], max_tokens: int, **more: Any) -> Answer:
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}
        streamed = self.post(
            "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}
        )
        events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in event["choices"]]
        chunks = [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
        usage = events[-1]["usage"]
        return Answer(
            text="".join(chunks),
            chunks=chunks,
            finish_reason=choices[-1]["finish_reason"],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )


@pytest.fixture(scope="module")
def server(llama_server: str) -> Server:
    return Server(llama_server)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_tokenizer(TokenizerSpec(kind="gguf", path=smollm2_path()))


def user(text: str) -> Message:
    return Message(role=Role.USER, parts=(text,))


CALL = ToolCall(tool_call_id="call_1", name="get_weather", arguments='{"city": "Paris"}')
CHATS = {
    "english": (user(ENGLISH),),
    "chinese": (user(CHINESE),),
    "code": (user(CODE),),
    "emoji": (user(EMOJI),),
    "special tokens as text": (user(SPECIAL),),
    "whitespace": (user(SPACES),),
    "empty text": (user(""),),
    "many parts": (Message(role=Role.USER, parts=("one", " two\n", "三")),),
    "multi-turn with a system message": (
        Message(role=Role.SYSTEM, parts=("You are terse.",)),
        user(ENGLISH),
        Message(role=Role.ASSISTANT, parts=("Rayleigh scattering.",)),
        user("为什么？ 😀"),
    ),
    "ends with the assistant": (user("hi"), Message(role=Role.ASSISTANT, parts=("I think",))),
    "tool call and result": (
        user("Weather?"),
        Message(role=Role.ASSISTANT, tool_calls=(CALL,)),
        Message(role=Role.TOOL, parts=("sunny",), tool_call_id="call_1"),
    ),
}


def openai_form(message: Message) -> dict[str, Any]:
    form: dict[str, Any] = {"role": message.role.value.lower(), "content": message.text()}
    if message.tool_call_id:
        form["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        form["tool_calls"] = [
            {
                "id": call.tool_call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return form


@pytest.mark.parametrize("chat", CHATS)
def test_the_counted_prompt_is_what_the_server_reports(server: Server, tokenizer: Tokenizer, chat: str) -> None:
    messages = CHATS[chat]
    answer = server.chat([openai_form(message) for message in messages], max_tokens=1)
    assert tokenizer.count_prompt(Prompt(messages=messages)) == answer.prompt_tokens


def test_tools_cost_nothing_where_the_template_takes_none(server: Server, tokenizer: Tokenizer) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": WEATHER.name,
            "description": WEATHER.description,
            "parameters": json.loads(WEATHER.parameters_json_schema),
        },
    }
    with_tools = server.chat([openai_form(user(ENGLISH))], max_tokens=1, tools=[tool])
    without = server.chat([openai_form(user(ENGLISH))], max_tokens=1)
    assert with_tools.prompt_tokens == without.prompt_tokens
    assert tokenizer.count_prompt(Prompt(messages=(user(ENGLISH),), tools=(WEATHER,))) == with_tools.prompt_tokens


def counted(tokenizer: Tokenizer, chunks: list[str]) -> int:
    counter = tokenizer.completion_counter()
    for chunk in chunks:
        counter.add(chunk)
    return counter.tokens


def held_back(
    server: Server, tokenizer: Tokenizer, messages: tuple[Message, ...], **more: Any
) -> tuple[str, list[int]]:
    """Check one greedy answer; its text and the tokens that were generated and reported, but never delivered."""
    forms = [openai_form(message) for message in messages]
    answer = server.chat(forms, **more)
    generated = server.generated(forms, **more)
    tokens = counted(tokenizer, answer.chunks)
    # What we count is what was delivered, to the token; what is reported is everything that was generated.
    assert tokens == tokenizer.count_text(answer.text) == server.tokens(answer.text)
    assert generated[:tokens] == server.token_ids(answer.text)
    assert answer.completion_tokens == len(generated)
    return answer.text, generated[tokens:]


@pytest.mark.parametrize("chat", ["english", "code", "multi-turn with a system message"])
def test_an_answer_cut_by_length_counts_as_reported(server: Server, tokenizer: Tokenizer, chat: str) -> None:
    _, undelivered = held_back(server, tokenizer, CHATS[chat], max_tokens=16, ignore_eos=True)
    assert undelivered == []


@pytest.mark.parametrize(("chat", "tokens_max"), [("chinese", 48), ("chinese", 31), ("emoji", 16), ("emoji", 18)])
def test_an_answer_cut_within_a_character_is_reported_with_that_characters_tokens(
    server: Server, tokenizer: Tokenizer, chat: str, tokens_max: int
) -> None:
    text, undelivered = held_back(server, tokenizer, CHATS[chat], max_tokens=tokens_max, ignore_eos=True)
    # These characters have several tokens each: counting characters, or chunks, would under-bill.
    assert len(text) < tokenizer.count_text(text)
    # Only a character's last byte makes it a character: at most three tokens of one are without it.
    assert len(undelivered) <= 3
    assert "\ufffd" in server.detokenized(undelivered) or not undelivered


def test_an_answer_that_ends_by_itself_is_reported_with_its_end_of_turn_token(
    server: Server, tokenizer: Tokenizer
) -> None:
    _, undelivered = held_back(server, tokenizer, (user("hi"),), max_tokens=48)
    assert undelivered == server.token_ids("<|im_end|>")
    assert len(undelivered) == 1


def test_an_answer_that_meets_a_stop_string_is_reported_with_the_stop_strings_tokens(
    server: Server, tokenizer: Tokenizer
) -> None:
    whole, _ = held_back(server, tokenizer, (user(ENGLISH),), max_tokens=16, ignore_eos=True)
    stop = " " + whole.split(" ")[4]
    text, undelivered = held_back(server, tokenizer, (user(ENGLISH),), max_tokens=16, ignore_eos=True, stop=[stop])
    assert text == whole[: whole.index(stop)]
    assert undelivered == server.token_ids(stop)


def test_random_mixtures_of_text_count_as_the_server_tokenizes_them(server: Server, tokenizer: Tokenizer) -> None:
    source = random.Random(3)
    atoms = [ENGLISH, CHINESE, CODE, EMOJI, SPECIAL, SPACES, "'s", "'LL", "ſ", " ", "\n", "456789", "½Ⅷ٣", "e\u0301"]
    atoms += ["。", "・", "한국어", "हिन्दी", "\u200d", "\x00", "\x85", "\ufeff", "\ue000", "𝒜𠀀", "<|im_end|>", "end|>"]
    for _ in range(150):
        pieces = [source.choice(atoms)[: source.randint(1, 12)] for _ in range(source.randint(1, 12))]
        text = "".join(pieces)
        assert tokenizer.count_text(text) == counted(tokenizer, pieces) == server.tokens(text), text
