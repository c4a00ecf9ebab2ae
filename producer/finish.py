"""How an answer ends: what a provider's finish_reason means, and when an answer is whole.

| the provider sent | what then came | the answer is |
|---|---|---|
| a finish_reason | anything: `[DONE]`, the end of the body, a cut, silence | whole |
| a finish_reason that means an error, or an error | | failed |
| text or calls, no finish_reason | `[DONE]`, or the end of a completion that is one JSON object | whole |
| text or calls, no finish_reason | the end of the body, a cut, silence | broken off |
| nothing | anything | broken off |

An answer with tool calls that ends in `stop` ends in `tool_calls`. A `stop` that follows another reason does not replace it.
"""

from __future__ import annotations

from enum import StrEnum

GRACE_SECONDS = 2.0
"""So long after its finish_reason an answer stays open for a usage that comes late, as long as nothing more of its text comes."""
UNSURE_GRACE_SECONDS = 15.0
"""GRACE_SECONDS where the finish_reason may not be the end: some providers put one into every chunk, some send one choice after the other."""


class FinishReason(StrEnum):
    """How the model has ended its answer, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    ERROR = "error"
    """Not OpenAI's: the answer has failed."""


_WORDS = {
    FinishReason.STOP: "stop stopped eos eos_token eot end end_turn end_of_turn stop_sequence stop_token complete completed "
    "done finish finished success",
    FinishReason.LENGTH: "length max_length max_tokens max_token max_new_tokens max_output_tokens max_completion_tokens "
    "model_length token_limit length_limit context_length context_window context_length_exceeded "
    "model_context_window_exceeded error_limit truncated incomplete",
    FinishReason.TOOL_CALLS: "tool_calls tool_call tool_use function_call function_calls",
    FinishReason.CONTENT_FILTER: "content_filter content_filtered content_policy_violation contentfilter filtered safety recitation "
    "blocklist prohibited_content spii image_safety sensitive refusal guardrail_intervened error_toxic",
    FinishReason.ERROR: "error failed failure network_error server_error internal_error internal_server_error timeout abort "
    "aborted cancelled canceled insufficient_system_resource malformed_function_call unexpected_tool_call",
}
"""What providers write: OpenAI, Anthropic, Gemini, Cohere, Mistral, DeepSeek, Zhipu, TGI, vLLM, Ollama, Bedrock."""
_REASONS = {word: reason for reason, words in _WORDS.items() for word in words.split()}
_NO_REASON = frozenset(
    {"", "null", "none", "nil", "undefined", "unspecified", "in_progress", "not_finished", "unfinished"}
)
_PREFIXES = ("finish_reason_", "stop_reason_")


def finish_reason_of(word: str) -> FinishReason | None:
    """Returns what a provider's word means; None if it says that the answer goes on. A word that nobody knows means `stop`."""
    plain = word.strip().lower().replace("-", "_").replace(" ", "_")
    plain = plain.rpartition(".")[2] or plain  # `FinishReason.STOP`, `FINISH_REASON_STOP`: names of an enumeration
    for prefix in _PREFIXES:
        plain = plain.removeprefix(prefix)
    return None if plain in _NO_REASON else _REASONS.get(plain, FinishReason.STOP)


def is_known(word: str) -> bool:
    """Returns whether the word is OpenAI's own for what it means."""
    return _REASONS.get(word) == word


def later_of(known: FinishReason | None, next_reason: FinishReason) -> FinishReason:
    """Returns the reason that counts, of the one so far and the next one of the same choice."""
    return known if known is not None and next_reason is FinishReason.STOP else next_reason


def end_of(reason: FinishReason | None, *, has_calls: bool, is_done: bool, has_content: bool) -> FinishReason | None:
    """Returns how an answer has ended, by the table above; None: it was broken off. `is_done`: `[DONE]`, or a whole JSON object."""
    if reason is None and is_done and has_content:
        reason = FinishReason.STOP
    return FinishReason.TOOL_CALLS if reason is FinishReason.STOP and has_calls else reason
