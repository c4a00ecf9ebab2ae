"""Who is told when a stream has ended: whom its request names, else whom the principal's API key names, else whom the settings name.

A client may name only hosts of MIDSTREAM_WEBHOOK_HOSTS. What a client or a key names is signed with a secret of its principal, so
that no client can have a message signed that another's receiver takes for its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from gateway.http.principal import principal
from gateway.http.problems import Problem
from shared.errors import Unusable
from shared.events import Policies, Webhook
from shared.settings import Settings
from shared.webhook_target import BadTarget, Targets
from shared.webhooks import WebhookStore

OfKey = Callable[[str], Mapping[str, object]]
"""Returns the webhook of the API key of a principal: `url` and `text`; nothing if it has none."""


class StreamWebhooks:
    """Chooses the webhook of each stream, and enters the streams that have one into the list of those to be told of."""

    def __init__(self, settings: Settings, store: WebhookStore, of_key: OfKey, *, authenticates: bool) -> None:
        """Raises Unusable for settings that cannot be used."""
        self._store = store
        self._targets = Targets(settings)
        self._of_key = of_key
        self._authenticates = authenticates
        self._for_all = Webhook(settings.webhook_url, bool(settings.webhook_text)) if settings.webhook_url else None
        if self._for_all is not None:
            try:
                self._targets.check(self._for_all.url, is_operators=True)
            except BadTarget as error:
                raise Unusable(f"MIDSTREAM_WEBHOOK_URL cannot be used: {error}") from None

    def of(self, requested: Webhook | None) -> Webhook | None:
        """Returns the webhook of a stream that the current principal creates. Raises Problem 400 for one that it may not request."""
        who = principal.get()
        name = who.service or who.name
        if requested is not None:
            return self._of_client(requested, name) if requested.url else None
        of_key = Webhook.load(dict(self._of_key(name)))
        if of_key is not None:
            return dataclasses.replace(of_key, signer=name)
        return self._for_all

    async def enter(self, stream_id: str) -> None:
        """Enters a stream that has a webhook, before its log begins. May be repeated. Raises Disconnected, RedisRefused."""
        await self._store.enter(stream_id)

    def applied(self, policies: Policies) -> Policies:
        """Returns the policies with the webhook that counts. Raises Problem 400."""
        webhook = self.of(policies.webhook)
        return policies if webhook == policies.webhook else dataclasses.replace(policies, webhook=webhook)

    def _of_client(self, requested: Webhook, name: str) -> Webhook:
        try:
            if not self._targets.names_hosts:
                raise BadTarget("webhooks are off: MIDSTREAM_WEBHOOK_HOSTS names no host")
            target = self._targets.check(requested.url, is_operators=False)
        except BadTarget as error:
            raise Problem(400, f"midstream.webhook: {error}", param="midstream.webhook") from None
        return Webhook(target.url, requested.with_text, name if self._authenticates else "")
