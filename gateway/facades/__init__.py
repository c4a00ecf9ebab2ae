"""APIs that clients already speak, over the same logs as the native API: OpenAI's two and the AI SDK's."""

from __future__ import annotations

from gateway.access.given_tokens import GivenTokens
from gateway.api.follow import Subscribe
from gateway.facades.ai_sdk.chat import AiSdk
from gateway.facades.openai.chat import ChatCompletions
from gateway.facades.openai.models import Models
from gateway.facades.responses.responses import Responses
from gateway.http.routes import Part
from gateway.provider_models import ProviderModels
from gateway.streams.streams import Streams
from shared.commands import Commands
from shared.settings import Settings


def facades(
    streams: Streams,
    given_tokens: GivenTokens,
    subscribe: Subscribe,
    models: ProviderModels,
    settings: Settings,
    commands: Commands,
    *,
    has_durable: bool,
) -> list[Part]:
    """Returns all facades but the durable one. `has_durable`: this gateway has that, too."""
    return [
        ChatCompletions(streams, given_tokens, subscribe, models, settings),
        Responses(streams, given_tokens, subscribe, models, settings),
        Models(models),
        AiSdk(streams, given_tokens, subscribe, models, settings, commands, has_durable=has_durable),
    ]
