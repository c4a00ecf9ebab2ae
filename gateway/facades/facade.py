"""The base class of the APIs that clients already speak, with the parts of the gateway that they work with."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.access.given_tokens import GivenTokens
from gateway.api.follow import Subscribe
from gateway.http.connection import Scope
from gateway.http.routes import Route, route_for
from gateway.provider_models import ProviderModels
from gateway.streams.streams import Streams
from shared.commands import Commands
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class FacadeServices:
    """The parts of the gateway that facades work with. `has_durable`: this gateway has Durable Streams, too."""

    streams: Streams
    given_tokens: GivenTokens
    subscribe: Subscribe
    models: ProviderModels
    settings: Settings
    commands: Commands
    has_durable: bool


class Facade:
    """An API over the same logs as the native one. A subclass sets `routes`."""

    routes: tuple[Route, ...]

    def __init__(self, services: FacadeServices) -> None:
        self._streams = services.streams
        self._given_tokens = services.given_tokens
        self._subscribe = services.subscribe
        self._models = services.models
        self._settings = services.settings

    def route(self, scope: Scope) -> Route | None:
        """Returns the route of a request of this API; None for everything else."""
        return route_for(self.routes, scope)
