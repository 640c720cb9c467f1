"""After any chunking, the counter's tokens are those of the whole text at once."""

import random
import threading
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from real_vocabularies import VOCABULARIES, read_vocabulary

from metergate.tokenizers.pre_tokenizers import boundary
from metergate.tokenizers.tail_window import TailWindowCounter
from metergate.tokenizers.vocabulary import Vocabulary

ENGLISH = (
    "The straightforward answer, as we know, isn't a straight line; it bends (slightly) around 42 corners.\n\n"
    "\"Don't,\" she said -- they'LL've gone by 3:15 p.m.!  It cost $1,234.56... or so?\n"
)
CHINESE = (
    "今天天气很好，我们去公园散步。“人工智能”正在改变世界：很多人担心失业；但是，新的工作（也许）会出现！真的吗？\n"
)
CODE = (
    'def add(first: int, second=[1,2]) -> int:\n    """Add\t them."""\n\n    return first+second  # <|im_end|>\r\n\r\n'
)
EMOJI = "Family: 👩‍👩‍👧‍👦 flags 🇨🇳🇫🇷, skin 👍🏽 keycap 1️⃣ done ❤️‍🔥."
MARKS = (
    "cafe\u0301 e\u0301\u0323 \u0301 x \u0301y हिन्दी में लिखा। ภาษาไทย กำลัง Zalgo: z\u0336\u0322a\u0335l\u0334, العَرَبِيَّة."
)
SCRIPTS = (
    "Привет, мир! Ελλάδα: 日本語のテキスト・カタカナ、한국어 문장입니다. Türkçe ʼnǅ ﬁ ΐ ſ's 𝒜𝓑 𠀀𠀁 ＡＢＣ１２３ ½Ⅷ²"
)
DIGITS = "1 22 333 4444 55555, 666666|7777777; 3.14159265358979 1,000,000 ١٢٣ 0x1F 12:34:56\n1\n2\n3"
RUNS = "a" * 70 + "你" * 50 + "=" * 60 + "!" * 20 + "7" * 40 + "😀" * 12 + "\u0301" * 5
SPACES = (
    "a  b   c \n d \n\n e\n\n\nf\t\tg \t h\r\n\r\ni\u00a0j \u3000k\u2028l  \n  \n m\x85n\x1co\u200bp"
    + " " * 40
    + "q\n" * 5
    + "\n" * 30
)
SPECIAL = (
    "x<|im_start|>user\nhi <|im_end|> <|endoftext|>foo <|im_ end|><repo_name> a<｜User｜> b<｜end▁of▁sentence｜>，c"
)
CORPUS = {
    "english": ENGLISH,
    "chinese": CHINESE,
    "code": CODE,
    "emoji": EMOJI,
    "marks": MARKS,
    "scripts": SCRIPTS,
    "digits": DIGITS,
    "runs": RUNS,
    "spaces": SPACES,
    "special": SPECIAL,
}
# What pieces of text meet at their edges decides where a pre-tokenizer splits.
EDGES = list(
    " \n.,'!?;:()-_/<|>#$%&*+=@[]^`{}~\\\"\r\t，。、；：！？“”…—・"
    "\u00a0\u3000\u2028\u200b\u200d\u0301\u0336\x00\x07\x1c\x85\ufeff"
    "aZéßſǅʼ你の゠ヺ한яθ1٣½²Ⅷ😀🏽🇨\ue000𝒜𠀀\U0001e900"
)
WORDS = [
    "'s",
    "'LL",
    "don't",
    "straight",
    "forward",
    "   ",
    "\n\n",
    "\r\n",
    "123456",
    "<|im_end|>",
    "<|im_",
    "你好",
    "fooBar",
    "e" + "\u0301\u0323" * 14,
]
PIECES = st.sampled_from(EDGES + WORDS) | st.characters(exclude_categories=["Cs"])


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return read_vocabulary(request.param)


def pieces_of(text: str, source: random.Random) -> list[str]:
    cuts = sorted(source.sample(range(1, len(text)), k=source.randint(0, min(len(text) - 1, 40))))
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


@pytest.mark.parametrize("name", CORPUS)
def test_any_chunking_of_real_text_counts_as_the_whole(vocabulary: Vocabulary, name: str) -> None:
    text = CORPUS[name]
    source = random.Random(7)
    chunkings = [list(text), [text], *(pieces_of(text, source) for _ in range(12))]
    for chunks in chunkings:
        counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary, vocabulary.runs)
        for chunk in chunks:
            counter.add(chunk)
        assert counter.tokens == vocabulary.count_text(text), chunks


def test_every_prefix_of_mixed_text_counts_as_that_prefix_alone(vocabulary: Vocabulary) -> None:
    source = random.Random(11)
    parts = [text[start : start + 12] for text in CORPUS.values() for start in range(0, len(text), 12)]
    source.shuffle(parts)
    text = "".join(parts)
    counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary, vocabulary.runs)
    position = 0
    while position < len(text):
        step = source.randint(1, 9)
        assert counter.add(text[position : position + step]) == vocabulary.count_text(text[: position + step])
        position += step


@given(chunks=st.lists(PIECES, max_size=25))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pieces_count_as_their_concatenation(vocabulary: Vocabulary, chunks: list[str]) -> None:
    counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary, vocabulary.runs)
    for chunk in chunks:
        counter.add(chunk)
    assert counter.tokens == vocabulary.count_text("".join(chunks))


def test_every_pair_of_edges_splits_into_the_same_count_at_every_boundary(vocabulary: Vocabulary) -> None:
    assert vocabulary.boundary is not None
    for left in EDGES:
        for right in EDGES:
            text = f"ab{left}{right}cd 1{left}{right}你"
            for match in vocabulary.boundary.finditer(text):
                cut = match.start()
                apart = vocabulary.count_text(text[:cut]) + vocabulary.count_text(text[cut:])
                assert apart == vocabulary.count_text(text), (text, cut)


def test_the_tail_stays_short_in_every_kind_of_ordinary_text(vocabulary: Vocabulary) -> None:
    for text in (ENGLISH, CHINESE, CODE, DIGITS):
        counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary, vocabulary.runs)
        longest = 0
        for character in text * 20:
            counter.add(character)
            longest = max(longest, counter.tail_characters)
        assert longest <= 64, text


def test_a_run_that_may_be_cut_nowhere_is_reported_as_a_long_tail(vocabulary: Vocabulary) -> None:
    counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary)
    counter.add("start " + "a" * 5000)
    assert counter.tail_characters == 5001
    assert counter.add(" end") == vocabulary.count_text("start " + "a" * 5000 + " end")
    assert counter.tail_characters == len(" end")


def test_a_copy_goes_its_own_way(vocabulary: Vocabulary) -> None:
    counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary, vocabulary.runs)
    counter.add("The straigh")
    before = counter.tokens
    twin = counter.copy()
    twin.add("t answer, in full. And")
    assert counter.tokens == before
    assert counter.tail_characters == len(" straigh")
    assert twin.tokens == vocabulary.count_text("The straight answer, in full. And")
    assert counter.add("tforward") == vocabulary.count_text("The straightforward")


def test_no_text_is_no_tokens(vocabulary: Vocabulary) -> None:
    counter = TailWindowCounter(vocabulary.count_text, vocabulary.boundary, vocabulary.runs)
    assert (counter.tokens, counter.add(""), counter.tail_characters) == (0, 0, 0)


def test_a_place_within_a_special_token_is_no_boundary() -> None:
    pattern = boundary(["<|start of turn|>"])
    assert [match.start() for match in pattern.finditer("a b<|start of turn|> c")] == [20, 1]


def test_a_token_that_takes_the_space_after_it_is_followed_by_no_boundary() -> None:
    pattern = boundary(["<mask>"], swallowing=["<mask>"])
    assert [match.start() for match in pattern.finditer("a <mask> b c")] == [10, 1]


def test_without_known_boundaries_the_whole_text_is_counted_again() -> None:
    counter = TailWindowCounter(len, None)
    counter.add("one two ")
    assert counter.add("three") == len("one two three")
    assert counter.tail_characters == len("one two three")


def test_a_long_count_in_a_thread_leaves_other_threads_running(vocabulary: Vocabulary) -> None:
    text = ENGLISH * 4000
    rounds = 0
    done = threading.Event()

    def count() -> None:
        vocabulary.count_text(text)
        done.set()

    thread = threading.Thread(target=count)
    thread.start()
    while not done.wait(0.0005):
        rounds += 1
    thread.join()
    # With the interpreter's lock held for the whole count there would be one round, or two.
    assert rounds >= 5
