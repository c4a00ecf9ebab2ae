"""Every example of docs/how-to/your-own-generator.md is run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from producer.loading import own_provider
from shared.own_events import OwnEvent
from tests.support.hearing import Heard

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "your-own-generator.md"
_BLOCKS = re.findall(r"^```python\n(.*?)^```", _PAGE.read_text(), re.MULTILINE | re.DOTALL)
_TEXTS = ["you said: to be or not ", "It rains in Bern.", "42", "All three are done."]


@pytest.mark.parametrize(("number", "text"), [*enumerate(_TEXTS)])
async def test_an_example(number: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"example_{number}"
    (tmp_path / f"{name}.py").write_text(_BLOCKS[number])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    heard = Heard()
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "to be or not"}]}
    await own_provider(f"{name}:answer").generate(request, "", heard)
    assert "".join(item for item in heard.items if isinstance(item, str)) == text
    assert heard.times_stored == sum(isinstance(item, OwnEvent) for item in heard.items)


def test_there_are_no_others() -> None:
    assert len(_BLOCKS) == len(_TEXTS)
