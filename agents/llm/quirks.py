"""What a model does not accept, learnt from the text of the provider's error.

The patterns quote errors of OpenAI, Anthropic, Moonshot, Mistral, OpenRouter, Ollama, vLLM, SGLang and llama.cpp. Some
servers report an unsupported parameter with another status than 400 (llama.cpp 500, OpenRouter 404, Mistral 422), so
that the text alone decides.
"""

import re

NO_TEMPERATURE = "no_temperature"
MAX_TOKENS = "max_tokens"  # the model wants max_tokens …
MAX_COMPLETION_TOKENS = "max_completion_tokens"  # … or max_completion_tokens
TEXT_TOOLS = "text_tools"  # no native tool calls: they are described in the prompt and parsed from the text
NO_SYSTEM = "no_system"  # no system role: its text goes before the first user message

_PATTERNS = {
    MAX_COMPLETION_TOKENS: r"'max_tokens' is not supported with this model|use '?max_completion_tokens'? instead",
    MAX_TOKENS: r"(unrecognized|unknown|unexpected|extra_forbidden|extra inputs|not permitted|unsupported|"
    r"does not support)[^{}]*max_completion_tokens|max_completion_tokens[^{}]*(extra inputs|not permitted|"
    r"not supported|unknown)",
    TEXT_TOOLS: r"does not support (tools|tool use|tool calling|function calling|functions)|"
    r"tools is not supported in this model|no endpoints found that support tool use|"
    r"function tools with reasoning_effort are not supported|tool choice requires --enable-auto-tool-choice|"
    r"tools param requires --jinja|unsupported param: tools|tool (use|calling) is not supported|"
    r"tool calling.{0,40}without tool calling",
    NO_SYSTEM: r"does not support 'system' with this model|system role (is )?not supported|"
    r"system message is not supported|unexpected role.{0,5}system",
    NO_TEMPERATURE: r"'temperature' (does not support|is not supported)|unsupported parameter: 'temperature'|"
    r"[`'\"]?temperature[`'\"]? is (deprecated|not supported|unsupported)|invalid temperature: only",
}
_COMPILED = {quirk: re.compile(pattern, re.IGNORECASE | re.DOTALL) for quirk, pattern in _PATTERNS.items()}
_OPPOSITE = {MAX_TOKENS: MAX_COMPLETION_TOKENS, MAX_COMPLETION_TOKENS: MAX_TOKENS}


def quirk_in(error_text: str) -> str | None:
    """The quirk that an error reports, or None if it reports another thing."""
    return next((quirk for quirk, pattern in _COMPILED.items() if pattern.search(error_text)), None)


def with_quirk(quirks: frozenset[str], quirk: str) -> frozenset[str]:
    """The quirks and one more, which replaces its opposite."""
    return quirks - {_OPPOSITE.get(quirk, "")} | {quirk}
