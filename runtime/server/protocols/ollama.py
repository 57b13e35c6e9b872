"""Ollama's protocol (https://docs.ollama.com/api), a translation onto the server's chats.

Whatever has to do with fetching, making and removing models has no counterpart here, and is refused with the reason.
"""

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..cards import ollama_card, ollama_details
from ..errors import ApiError
from ..parameters import Notes
from ..requests import ChatRequest, parse
from ..service import Service
from .ollama_replies import OllamaReply, loaded
from .ollama_requests import OllamaChat, OllamaGenerate, OllamaShow

SPOKEN = "0.12.11"
"""The version of Ollama whose protocol this is: clients ask for it, and want a lowest one."""
_TAG = ":latest"
_STORE = "models are kept by the command line: phi3-onnx pull, list, remove"
_EMBEDDINGS = "this server has no embeddings: a language model's hidden states make poor ones; use an embedding model"
_NOT_HERE = {
    "/api/embed": ("POST", _EMBEDDINGS),
    "/api/embeddings": ("POST", _EMBEDDINGS),
    "/api/pull": ("POST", _STORE),
    "/api/push": ("POST", _STORE),
    "/api/create": ("POST", _STORE),
    "/api/copy": ("POST", _STORE),
    "/api/delete": ("DELETE", _STORE),
}


class Ollama:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        """Put them together."""
        self._service = service

    def routes(self) -> list[Route]:
        """Return their routes."""
        return [
            Route("/api/chat", self.chat, methods=["POST"]),
            Route("/api/generate", self.generate, methods=["POST"]),
            Route("/api/tags", self.tags, methods=["GET"]),
            Route("/api/ps", self.running, methods=["GET"]),
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/version", self.version, methods=["GET"]),
            *(Route(path, self.refuse, methods=[method]) for path, (method, _) in _NOT_HERE.items()),
        ]

    async def chat(self, request: Request) -> Response:
        """`POST /api/chat`."""
        service, notes = self._service, self._service.notes()
        body = parse(OllamaChat, await service.body(request), notes)
        self._check_model(body.model, notes)
        if not body.messages:
            return service.noted(request, JSONResponse(loaded(service.name(service.info()), message=True)), notes)
        asked = body.chat(notes)
        return service.noted(request, await service.chat(request, asked, partial(OllamaReply, asked, True)), notes)

    async def generate(self, request: Request) -> Response:
        """`POST /api/generate`."""
        service, notes = self._service, self._service.notes()
        body = parse(OllamaGenerate, await service.body(request), notes)
        self._check_model(body.model, notes)
        if not body.prompt:
            return service.noted(request, JSONResponse(loaded(service.name(service.info()), message=False)), notes)
        asked: ChatRequest = body.chat(notes)
        # A model that knows no chats continues the text, as it would in Ollama.
        plain = body.raw or not (service.info().can_chat or body.system)
        reply = partial(OllamaReply, asked, False)
        return service.noted(request, await service.chat(request, asked, reply, body.prompt if plain else None), notes)

    async def tags(self, request: Request) -> Response:
        """`GET /api/tags`: the models that there are."""
        return JSONResponse({"models": [self._card()]})

    async def running(self, request: Request) -> Response:
        """`GET /api/ps`: the models that are loaded, which stay so."""
        info = self._service.info()
        ends = "9999-12-31T23:59:59Z"
        card = {**self._card(), "expires_at": ends, "size_vram": 0, "context_length": info.context_length}
        return JSONResponse({"models": [card]})

    async def show(self, request: Request) -> Response:
        """`POST /api/show`: what there is to know of a model."""
        service, notes = self._service, self._service.notes()
        body = parse(OllamaShow, await service.body(request), notes)
        info = service.info()
        self._check_model(body.model, notes)
        facts = info.facts
        kind = facts.family or "unknown"
        table: dict[str, Any] = {
            "modelfile": "",
            "parameters": "",
            "template": facts.template,
            "details": ollama_details(facts),
            "model_info": {
                "general.architecture": kind,
                "general.parameter_count": facts.num_parameters,
                f"{kind}.block_count": facts.num_layers,
                f"{kind}.context_length": info.context_length,
            },
            "capabilities": ["completion", *(["tools"] if info.can_chat else [])],
            "modified_at": facts.modified,
        }
        return service.noted(request, JSONResponse(table), notes)

    async def version(self, request: Request) -> Response:
        """`GET /api/version`."""
        return JSONResponse({"version": SPOKEN})

    async def refuse(self, request: Request) -> Response:
        """Answer what cannot be had, with the reason."""
        path = request.url.path
        raise ApiError(501, f"{path} is not available here: {_NOT_HERE[path][1]}", code="not_implemented")

    def _check_model(self, model: str, notes: Notes) -> None:
        info = self._service.info()
        if model != self._service.name(info):
            model = model.removesuffix(_TAG)
        self._service.check_model(model, info, notes)

    def _card(self) -> dict[str, Any]:
        info = self._service.info()
        return ollama_card(self._service.name(info), info.facts)
