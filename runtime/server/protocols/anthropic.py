"""Anthropic's protocol (https://docs.anthropic.com/en/api/messages), a translation onto the server's chats."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..requests import parse
from ..service import Service
from .anthropic_replies import MessageReply
from .anthropic_requests import CountRequest, MessagesRequest


class Anthropic:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        """Put them together."""
        self._service = service

    def routes(self) -> list[Route]:
        """Return their routes."""
        return [
            Route("/v1/messages", self.message, methods=["POST"]),
            Route("/v1/messages/count_tokens", self.count, methods=["POST"]),
        ]

    async def message(self, request: Request) -> Response:
        """`POST /v1/messages`."""
        service, notes = self._service, self._service.notes()
        body = parse(MessagesRequest, await service.body(request), notes)
        service.check_model(body.model, service.info(), notes)
        asked = body.chat(notes)
        return service.noted(request, await service.chat(request, asked, partial(MessageReply, asked)), notes)

    async def count(self, request: Request) -> Response:
        """`POST /v1/messages/count_tokens`: the tokens that the prompt has."""
        service, notes = self._service, self._service.notes()
        body = parse(CountRequest, await service.body(request), notes)
        service.check_model(body.model, service.info(), notes)
        found = await service.tokens(request, service.conversation(body.chat(notes)))
        return service.noted(request, JSONResponse({"input_tokens": len(found.tokens[0])}), notes)
