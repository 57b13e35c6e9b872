"""OpenAI's responses (https://platform.openai.com/docs/api-reference/responses), a translation onto the chats."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import ApiError
from ..requests import parse
from ..service import Service
from .responses_replies import ResponseReply
from .responses_requests import ResponseRequest, TokensRequest, called
from .responses_store import ResponseStore, Stored


class Responses:
    """The endpoints, and the responses that are kept."""

    def __init__(self, service: Service, store: ResponseStore | None = None) -> None:
        """Put them together."""
        self._service = service
        self._store = store or ResponseStore()
        watch = service.watch
        watch("phi3_onnx_responses_kept", "Responses kept for their id.", lambda: len(self._store))
        watch("phi3_onnx_responses_kept_bytes", "Bytes of the responses kept.", lambda: self._store.num_bytes)

    def routes(self) -> list[Route]:
        """Return their routes."""
        return [
            Route("/v1/responses", self.create, methods=["POST"]),
            Route("/v1/responses/input_tokens", self.count, methods=["POST"]),
            Route("/v1/responses/{response}", self.show, methods=["GET"]),
            Route("/v1/responses/{response}", self.drop, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """`POST /v1/responses`."""
        service, notes = self._service, self._service.notes()
        body = parse(ResponseRequest, await service.body(request), notes)
        service.check_model(body.model, service.info(), notes)
        before = self._before(body.previous_response_id)

        def keep(response: dict[str, Any]) -> None:
            if body.store:
                messages = [*before, *body.messages, *_answered(response["output"])]
                self._store.keep(Stored(response, messages))

        asked = body.chat(before, notes)
        return service.noted(
            request, await service.chat(request, asked, partial(ResponseReply, body, asked, keep)), notes
        )

    async def count(self, request: Request) -> Response:
        """`POST /v1/responses/input_tokens`: the tokens that the prompt has."""
        service, notes = self._service, self._service.notes()
        body = parse(TokensRequest, await service.body(request), notes)
        service.check_model(body.model, service.info(), notes)
        asked = body.chat(self._before(body.previous_response_id), notes)
        found = await service.tokens(request, service.conversation(asked))
        table = {"object": "response.input_tokens", "input_tokens": len(found.tokens[0])}
        return service.noted(request, JSONResponse(table), notes)

    async def show(self, request: Request) -> Response:
        """`GET /v1/responses/<id>`: a response that is kept."""
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            raise ApiError(
                400,
                "unsupported parameter: stream (the events of a response are not kept)",
                param="stream",
                code="unsupported_parameter",
            )
        number = request.path_params["response"]
        if stored := self._store.find(number):
            return JSONResponse(stored.response)
        raise _unknown(number)

    async def drop(self, request: Request) -> Response:
        """`DELETE /v1/responses/<id>`: keep a response no longer."""
        number = request.path_params["response"]
        if not self._store.drop(number):
            raise _unknown(number)
        return JSONResponse({"id": number, "object": "response", "deleted": True})

    def _before(self, number: str | None) -> Sequence[dict[str, Any]]:
        if number is None:
            return ()
        if stored := self._store.find(number):
            return stored.messages
        raise ApiError(
            400,
            f"there is no response {number!r} to go on from, or no more; send the whole conversation as input",
            param="previous_response_id",
            code="previous_response_not_found",
        )


def _unknown(number: str) -> ApiError:
    return ApiError(404, f"there is no response {number!r}, or no more", param="response_id", code="response_not_found")


def _answered(output: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the items of a response as messages of a chat."""
    made: list[dict[str, Any]] = []
    for item in output:
        if item["type"] == "message":
            made.append({"role": "assistant", "content": "".join(part["text"] for part in item["content"])})
        else:
            made.append(called(item["call_id"], item["name"], item["arguments"]))
    return made
