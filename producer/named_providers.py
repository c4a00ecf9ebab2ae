"""Several providers by name: a request chooses one by `midstream.provider`, or by its `model`."""

from __future__ import annotations

from typing import Any

from producer.provider import Abilities, Finish, Hearer, Provider, Refused, abilities_of, base_url_of


class NamedProviders:
    """A provider made of others, given by name. The first one answers requests that name none."""

    def __init__(self, providers: dict[str, Provider]) -> None:
        self._providers = providers
        self._first = next(iter(providers))
        self.name = ",".join(providers)

    def model_of(self, request: dict[str, Any]) -> str:
        name, own_request = self._chosen(request)
        provider = self._providers.get(name)
        return name if provider is None else provider.model_of(own_request)

    def abilities_of(self, request: dict[str, Any]) -> Abilities:
        name, own_request = self._chosen(request)
        provider = self._providers.get(name)
        return Abilities() if provider is None else abilities_of(provider, own_request)

    def base_url_of(self, request: dict[str, Any]) -> str:
        name, own_request = self._chosen(request)
        provider = self._providers.get(name)
        return "" if provider is None else base_url_of(provider, own_request)

    async def generate(self, request: dict[str, Any], partial: str, hearer: Hearer) -> Finish:
        name, own_request = self._chosen(request)
        provider = self._providers.get(name)
        if provider is None:
            raise Refused(f"there is no provider {name!r}; there are {', '.join(self._providers)}")
        return await provider.generate(own_request, partial, hearer)

    async def close(self) -> None:
        for provider in self._providers.values():
            await provider.close()

    def _chosen(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Returns the name of the request's provider, and the request as that provider gets it."""
        own_request = {field: value for field, value in request.items() if field != "midstream"}
        options = request.get("midstream")
        name = options.get("provider") if isinstance(options, dict) else None
        if isinstance(name, str):
            return name, own_request
        model = request.get("model")
        if isinstance(model, str) and model in self._providers and len(self._providers) > 1:
            del own_request["model"]  # it has named the provider, which has models of its own
            return model, own_request
        return self._first, own_request
