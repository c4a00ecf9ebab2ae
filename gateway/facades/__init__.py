"""APIs that clients already speak, over the same logs as the native API: OpenAI's two and the AI SDK's."""

from __future__ import annotations

from gateway.facades.ai_sdk.chat import AiSdk
from gateway.facades.facade import FacadeServices
from gateway.facades.openai.chat import ChatCompletions
from gateway.facades.openai.models import Models
from gateway.facades.responses.responses import Responses
from gateway.http.routes import Part


def facades(services: FacadeServices) -> list[Part]:
    """Returns all facades but the durable one."""
    return [ChatCompletions(services), Responses(services), Models(services.models), AiSdk(services)]
