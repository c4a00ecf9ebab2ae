"""A model that calls tools: an OpenAI-compatible server whose answer follows from how many tool results it is given."""

from __future__ import annotations

import json
from typing import Any

from tests.support.openai_server import OpenAIServer, Script

CITIES = ("Bern", "Oslo")
LAST_WORDS = [f"word{number} " for number in range(20)]


class ToolModel(OpenAIServer):
    """Calls `weather` for one city after the other, then says the last words, at this pace."""

    def __init__(self, *, tokens_per_second: float = 0.0) -> None:
        super().__init__()
        self._tokens_per_second = tokens_per_second

    def _script(self, body: dict[str, Any]) -> Script:
        results = sum(message["role"] == "tool" for message in body["messages"])
        if results == len(CITIES):
            return Script(text=LAST_WORDS, tokens_per_second=self._tokens_per_second)
        function = {"name": "weather", "arguments": json.dumps({"city": CITIES[results]})}
        call = {"id": f"call_{results}", "type": "function", "function": function}
        return Script(text=["Let ", "me ", "look."], tool_calls=[call], tokens_per_second=self._tokens_per_second)
