"""Texts made of token ids: whole characters, stop texts, reasoning; however the ids come together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_codec import SPECIAL, FakeCodec, spelt

from metergate.core.catalog import ReasoningForm
from metergate.core.errors import BackendUnavailable
from metergate.core.inference import Delta
from metergate.core.rows import FinishReason
from metergate.metering.deltas import join, joins, length, split
from metergate.metering.detokenizer import Detokenizer
from metergate.metering.token_id_answer import TokenIdAnswerCounter
from metergate.metering.token_text import begun_at_end


def detokenizer(
    tokens: list[bytes],
    *,
    stop: tuple[str, ...] = (),
    reasoning: ReasoningForm = ReasoningForm.NONE,
    token_ids_max: int = 1_000,
) -> Detokenizer:
    return Detokenizer(
        FakeCodec(tokens), model_id="model-1", stop=stop, reasoning=reasoning, token_ids_max=token_ids_max
    )


def read(reader: Detokenizer, chunks: list[list[int]]) -> list[Delta]:
    deltas = []
    for chunk in chunks:
        deltas.append(reader.add(chunk))
        if reader.finish_reason is not None:
            return [delta for delta in deltas if not delta.is_empty()]
    return [delta for delta in [*deltas, reader.end()] if not delta.is_empty()]


def read_tokens(tokens: list[bytes], **options: object) -> tuple[str, str, int, int]:
    """The answer of all tokens in order, one by one: reasoning, content, and their counts."""
    return summary(read(detokenizer(tokens, **options), [[index] for index in range(len(tokens))]))  # type: ignore[arg-type]


def assert_finished(reader: Detokenizer, reason: FinishReason) -> None:
    assert reader.finish_reason is reason


def summary(deltas: list[Delta]) -> tuple[str, str, int, int]:
    counter = TokenIdAnswerCounter()
    for delta in deltas:
        counter.add(delta)
    reasoning = "".join(delta.reasoning_content for delta in deltas)
    content = "".join(delta.content for delta in deltas)
    return reasoning, content, counter.reasoning_tokens, counter.completion_tokens


def test_a_character_cut_into_three_tokens_is_delivered_whole_with_its_last_and_counts_three() -> None:
    reader = detokenizer(spelt("中", 1, 2))
    assert [reader.add([0]), reader.add([1])] == [Delta(), Delta()]
    assert reader.add([2]) == Delta(content="中", token_starts=(0, 0, 0))


def test_a_token_that_ends_one_character_and_begins_the_next_is_counted_with_the_first() -> None:
    tokens = spelt("好🙂!", 2, 5)  # 好 is cut after 2 bytes, 🙂 after 2
    reader = detokenizer(tokens)
    deltas = [reader.add([index]) for index in range(3)]
    assert [(delta.content, delta.token_starts) for delta in deltas] == [("", ()), ("好", (0, 0)), ("🙂!", (0,))]


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    assert read_tokens([b"a\xff", b"\xe4\xb8", b"b"]) == ("", "a\ufffd\ufffdb", 0, 3)


def test_a_character_that_the_end_cuts_off_is_neither_delivered_nor_counted() -> None:
    assert read_tokens([b"ok", "中".encode()[:2]]) == ("", "ok", 0, 1)


def test_special_tokens_between_texts_count_and_those_at_the_end_do_not() -> None:
    assert read_tokens([SPECIAL, b"a", SPECIAL, b"b", SPECIAL, SPECIAL]) == ("", "ab", 0, 4)


def test_an_id_outside_the_vocabulary_is_an_answer_that_makes_no_sense() -> None:
    with pytest.raises(BackendUnavailable, match="token id that the model's vocabulary does not have"):
        detokenizer([b"a"]).add([0, 1])


def test_ids_beyond_the_asked_length_are_not_looked_at() -> None:
    reader = detokenizer([b"a"], token_ids_max=3)
    assert (reader.add([0, 0]).content, reader.finish_reason) == ("aa", None)
    assert reader.add([0, 0, 7]).content == "a"
    assert_finished(reader, FinishReason.LENGTH)


# --- stop texts -----------------------------------------------------------------------------------------------------


def test_a_stop_text_over_several_tokens_ends_the_answer_before_it() -> None:
    reader = detokenizer([b"one E", b"N", b"D two"], stop=("END",))
    assert [reader.add([index]).content for index in range(2)] == ["one ", ""]
    assert (reader.add([2]), reader.finish_reason) == (Delta(), FinishReason.STOP)


def test_what_only_began_like_a_stop_text_is_delivered_with_its_tokens() -> None:
    assert read_tokens([b"x E", b"N", b"d", b" E"], stop=("END",)) == ("", "x ENd E", 0, 4)


def test_the_first_of_several_stop_texts_in_a_token_ends_the_answer() -> None:
    assert read_tokens([b"ab", b"cde", b"f"], stop=("d", "cd", "zz")) == ("", "ab", 0, 1)


def test_a_stop_text_that_begins_inside_a_token_leaves_what_was_before_it() -> None:
    assert read_tokens([b"hello\nUser:", b" no"], stop=("\nUser:",)) == ("", "hello", 0, 1)


def test_the_longest_beginning_of_a_wanted_text_is_found() -> None:
    assert begun_at_end("xaba", ("abab", "ba")) == 3
    assert begun_at_end("xyz", ("abab",)) == 0
    assert begun_at_end("ab", ("ab",)) == 0  # all of it is no beginning
    assert begun_at_end("", ("ab",)) == begun_at_end("ab", ()) == 0


# --- reasoning ------------------------------------------------------------------------------------------------------

THINKING = [b"<th", b"ink>", b"\nhm", b"m</", b"think", b">\n\n", b"yes", SPECIAL]


@pytest.mark.parametrize(
    ("form", "tokens", "expected"),
    [
        # The tags are taken away; their tokens go with the text after them.
        (ReasoningForm.THINK, THINKING, ("\nhmm", "\n\nyes", 4, 3)),
        (ReasoningForm.THINK, [b"\n", *THINKING], ("\nhmm", "\n\nyes", 5, 3)),
        (ReasoningForm.THINK, [b"just", b" text </think>"], ("", "just text </think>", 0, 2)),
        (ReasoningForm.THINK, [b" <thi", b"s>"], ("", " <this>", 0, 2)),
        (ReasoningForm.THINK, [b"<think>", b"never ends</th"], ("never ends</th", "", 2, 0)),
        (ReasoningForm.THINK, [b"<think>", b"</think>", b"yes"], ("", "yes", 0, 3)),
        (ReasoningForm.THINK, [b"\n<thin"], ("", "\n<thin", 0, 1)),
        (ReasoningForm.THINK_OPEN, [b"hm", b"m", b"</think>", b"yes"], ("hmm", "yes", 2, 2)),
        (ReasoningForm.NONE, [b"<think>", b"hm</think>yes"], ("", "<think>hm</think>yes", 0, 2)),
    ],
)
def test_reasoning_is_told_from_content(
    form: ReasoningForm, tokens: list[bytes], expected: tuple[str, str, int, int]
) -> None:
    assert read_tokens(tokens, reasoning=form) == expected
    whole = read(detokenizer(tokens, reasoning=form), [list(range(len(tokens)))])
    assert summary(whole) == expected


# --- whatever comes -------------------------------------------------------------------------------------------------

TEXTS = st.text(alphabet="ab \n你好吗🙂é<>think/END", max_size=30)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bytes], list[list[int]]]:
    """Tokens that spell a text, perhaps with garbage and special ones, and a way they come in chunks."""
    data = draw(TEXTS).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=30)))
    tokens = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    for place in draw(st.lists(st.integers(0, len(tokens)), max_size=3)):
        tokens.insert(place, draw(st.sampled_from([SPECIAL, b"\xff", b"\xe4\xbd", b"<think>", b"</think>"])))
    ends = sorted(draw(st.lists(st.integers(0, len(tokens)), max_size=10)))
    ids = list(range(len(tokens)))
    chunks = [ids[start:end] for start, end in zip([0, *ends], [*ends, len(ids)], strict=True)]
    return tokens, chunks


@given(answers(), st.sampled_from([(), ("END",), ("a", "ab"), ("好",)]), st.sampled_from(ReasoningForm))
def test_text_and_count_do_not_depend_on_how_the_ids_came(
    answer: tuple[list[bytes], list[list[int]]], stop: tuple[str, ...], form: ReasoningForm
) -> None:
    tokens, chunks = answer
    assert summary(read(detokenizer(tokens, stop=stop, reasoning=form), chunks)) == read_tokens(
        tokens, stop=stop, reasoning=form
    )


@given(answers())
def test_the_text_is_the_decoded_bytes_and_every_token_up_to_its_last_character_counts(
    answer: tuple[list[bytes], list[list[int]]],
) -> None:
    tokens, chunks = answer
    _, text, _, count = summary(read(detokenizer(tokens), chunks))
    whole = b"".join(tokens).decode(errors="replace")
    assert whole.startswith(text)
    assert len(whole) - len(text) <= 1  # what a cut-off character would have become
    # One token fewer does not spell it; with all that count, it is spelt.
    assert b"".join(tokens[:count]).decode(errors="replace").startswith(text)
    if count:
        assert not read_tokens(tokens[: count - 1])[1].startswith(text)


@given(answers(), st.sampled_from(ReasoningForm), st.lists(st.integers(0, 40), max_size=4))
def test_cutting_and_joining_deltas_changes_no_count(
    answer: tuple[list[bytes], list[list[int]]], form: ReasoningForm, places: list[int]
) -> None:
    tokens, chunks = answer
    deltas = read(detokenizer(tokens, reasoning=form), chunks)
    expected = summary(deltas)
    for place in places:
        pieces = [piece for delta in deltas for piece in split(delta, min(place, length(delta)))]
        deltas = [piece for piece in pieces if not piece.is_empty()]
        assert summary(deltas) == expected
    joined: list[Delta] = []
    for delta in deltas:
        if joined and joins(joined[-1], delta):
            joined[-1] = join([joined[-1], delta])
        else:
            joined.append(delta)
    assert len(joined) <= 1
    assert summary(joined) == expected
