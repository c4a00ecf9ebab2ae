"""The API key of the commands that ask a gateway: MIDSTREAM_API_KEY. It is sent to the address that the user has named."""

from __future__ import annotations

import os


def authorization() -> dict[str, str]:
    """Returns the header with the key; nothing where the environment has none."""
    key = os.environ.get("MIDSTREAM_API_KEY", "").strip()
    return {"authorization": f"Bearer {key}"} if key else {}
