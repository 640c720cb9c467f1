"""Opens the tokenizer that a model's configuration names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metergate.core.errors import RequestInvalid, TokenizerInvalid, Violation
from metergate.core.inference import Prompt
from metergate.ports import TokenCodec, Tokenizer
from metergate.tokenizers.chat_template import ChatTemplate, TemplateSource, read_template
from metergate.tokenizers.gguf import load_gguf
from metergate.tokenizers.openai_prompt import OpenAIPromptRule
from metergate.tokenizers.tiktoken_ranks import load_tiktoken
from metergate.tokenizers.tokenizer_json import load_tokenizer_json
from metergate.tokenizers.vocabulary import Vocabulary, VocabularyCodec, VocabularyTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """Where a model's counting rule is found."""

    kind: Literal["gguf", "tokenizer_json", "tiktoken"]  # the form of the vocabulary
    path: Path  # its file
    pattern: str | None = None  # of a tiktoken vocabulary: o200k_base, cl100k_base, qwen or qwen3.5
    # The model's chat template, or OpenAI's published rule; none: the model takes texts to embed, and no chats.
    prompt_rule: Literal["template", "openai", "none"] = "template"
    # A tokenizer_config.json or a Jinja file. None: the GGUF's own, or the tokenizer_config.json beside the vocabulary.
    chat_template_path: Path | None = None


def open_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """The tokenizer, read from its files; takes up to seconds. TokenizerInvalid if it would not count exactly (L8)."""
    vocabulary, template = _load(spec)
    return VocabularyTokenizer(vocabulary, _prompt_rule(spec, vocabulary, template))


def open_codec(spec: TokenizerSpec) -> TokenCodec:
    """The same with the ids of its tokens; TokenizerInvalid, too, if they are not known."""
    vocabulary, template = _load(spec)
    problem = None
    if spec.prompt_rule == "openai":
        problem = "a prompt of token ids needs the model's chat template, not the rule 'openai'"
    elif vocabulary.ids is None:
        problem = (
            "a tiktoken vocabulary has no ids of special tokens: use the model's tokenizer.json or GGUF file"
            if spec.kind == "tiktoken"
            else "its decoder is none whose tokens are known as bytes"
        )
    if problem is not None or vocabulary.ids is None:
        raise TokenizerInvalid(path=str(spec.path), problem=f"TOKEN_IDS cannot be counted with it: {problem}")
    return VocabularyCodec(vocabulary, vocabulary.ids, _template(spec, template).render)


def _load(spec: TokenizerSpec) -> tuple[Vocabulary, TemplateSource | None]:
    """The vocabulary, and the chat template in the same file if there is one."""
    if spec.kind == "tiktoken":
        if spec.pattern is None:
            raise TokenizerInvalid(path=str(spec.path), problem="a tiktoken vocabulary needs its pattern named")
        return load_tiktoken(spec.path, spec.pattern), None
    if spec.pattern is not None:
        raise TokenizerInvalid(path=str(spec.path), problem=f"a {spec.kind} vocabulary names its own pattern")
    if spec.kind == "gguf":
        loaded = load_gguf(spec.path)
        return loaded.vocabulary, loaded.template
    return load_tokenizer_json(spec.path), None


def _prompt_rule(
    spec: TokenizerSpec, vocabulary: Vocabulary, own_template: TemplateSource | None
) -> Callable[[Prompt], int]:
    if spec.prompt_rule == "openai":
        return OpenAIPromptRule(vocabulary.count_prompt_text).count
    if spec.prompt_rule == "none":
        return _refuse_chat
    template = _template(spec, own_template)
    return lambda prompt: vocabulary.count_rendered(template.render(prompt))


def _refuse_chat(prompt: Prompt) -> int:
    raise RequestInvalid(Violation("model", "takes no messages"))


def _template(spec: TokenizerSpec, own_template: TemplateSource | None) -> ChatTemplate:
    source = own_template
    if spec.chat_template_path is not None:
        source = read_template(spec.chat_template_path)
    elif source is None and spec.kind != "gguf":
        source = _template_beside(spec.path)
    if source is None:
        raise TokenizerInvalid(path=str(spec.path), problem="it has no chat template; name one with chat_template_path")
    return ChatTemplate(source, str(spec.chat_template_path or spec.path))


def _template_beside(path: Path) -> TemplateSource:
    """The one in the folder of a vocabulary, as models are published; packages of vocabularies mostly have none."""
    beside = path.with_name("tokenizer_config.json")
    try:
        return read_template(beside)
    except TokenizerInvalid as exc:
        problem = f"no chat template beside it ({beside.name}: {exc.problem}); name one with chat_template_path"
        raise TokenizerInvalid(path=str(path), problem=problem) from exc
