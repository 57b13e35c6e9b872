"""A Ray Serve application: replicas of the runtime behind the same HTTP side that `phi3-onnx serve` has.

    serve run phi3_onnx.deploy.ray_serve:app package=PACKAGE replicas=2

`Front` speaks the protocols and hands jobs to `Replica`s, each of which runs an engine's process. Where a replica is
lost, its jobs continue on another one: draws are seeded and greedy answers are exact, so a stream goes on where its
client is (`runtime/server/remote.py`).
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from phi3_onnx.configs import EngineError
from phi3_onnx.runtime.server.app import create_app
from phi3_onnx.runtime.server.messages import Conversation, FromEngine, Job, Ready, Refused, ends_job
from phi3_onnx.runtime.server.process import EngineProcess
from phi3_onnx.runtime.server.remote import RemoteEngine
from phi3_onnx.runtime.server.settings import Settings
from phi3_onnx.runtime.server.worker import PackageLoader
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from ray.serve import Application  # pyright: ignore[reportMissingImports]

_REPLICA, _FRONT = "Replica", "Front"
_AFFINITY_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
# Of a prompt that is no conversation, this much tells which other prompts have its beginning in a cache.
_BEGINNING = 512
_MANY = 100_000


class Arguments(BaseModel):
    """What `serve run` takes as `name=value`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str
    """A folder, or a name in the store, on every machine that runs a replica."""
    provider: str = "auto"
    threads: int | None = Field(None, ge=1)
    """Of each replica; by default as many as it was given cores."""
    self_test: bool = True
    replicas: int = Field(1, ge=1)
    """How many run at least."""
    max_replicas: int | None = Field(None, ge=1)
    """How many run at most, by the length of the queue; by default as many as at least."""
    cpus: float = Field(1, gt=0)
    """Cores that a replica reserves."""
    gpus: float = Field(0, ge=0)
    """GPUs that a replica reserves."""
    parallel: int = Field(4, ge=1)
    """Answers that a replica works on at a time."""
    queue: int = Field(64, ge=0)
    """Requests that may wait for all replicas together; more get 429."""
    fronts: int = Field(1, ge=1)
    """Processes that speak HTTP; a request is lost where its own ends."""
    affinity: bool = True
    """Whether requests with one beginning go to one replica, where it is cached."""
    model_name: str | None = None
    api_key: str | None = None
    strict: bool = False
    shutdown_seconds: float = Field(30, ge=0)
    """How long answers under way may continue where a replica is to end."""

    @model_validator(mode="after")
    def _check(self) -> "Arguments":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas must be at least replicas ({self.replicas}), got {self.max_replicas}")
        return self

    @property
    def most_replicas(self) -> int:
        """Replicas that run at most."""
        return self.max_replicas or self.replicas

    def settings(self) -> Settings:
        """Return the settings of the web side."""
        return Settings(
            host="0.0.0.0",  # who may reach it is the proxy's matter
            model_name=self.model_name,
            api_key=self.api_key,
            parallel=self.parallel * self.most_replicas,
            queue=self.queue,
            strict=self.strict,
            shutdown_seconds=self.shutdown_seconds,
        )

    def loader(self) -> PackageLoader:
        """Return what loads the package in a replica."""
        threads = self.threads or max(1, int(self.cpus))
        return PackageLoader(self.package, self.provider, threads, self_test=self.self_test)


class Replica:
    """One engine's process, as a deployment."""

    async def __init__(self, loader: PackageLoader, parallel: int) -> None:  # pyright: ignore[reportGeneralTypeIssues]
        """Load the model: a replica that is there can answer."""
        self._engine = EngineProcess(loader, parallel)
        await self._engine.start()
        await self._engine.loaded()

    async def ready(self) -> Ready:
        """Return what the model is."""
        return await self._engine.loaded()

    async def answer(self, job: Job) -> AsyncIterator[Sequence[FromEngine]]:
        """Work on a job, and yield its events as they come; `Refused` of kind `stopped` asks for another replica."""
        try:
            answers = self._engine.submit(job)
        except EngineError as error:
            yield [Refused(job.id, "stopped", str(error))]
            return
        try:
            events: Sequence[FromEngine] = [await answers.accepted()]
            yield events
            while not ends_job(events[-1]):
                if more := await answers.next():
                    events = more
                    yield events
        finally:
            self._engine.cancel(answers)

    async def check_health(self) -> None:
        """Raise where the engine does not come back, so that this replica is replaced."""
        if self._engine.state == "stopped":
            raise EngineError("the engine is stopped")

    async def __del__(self) -> None:
        """End the engine's process; Ray waits for the answers under way before."""
        await self._engine.stop()


def app(arguments: Arguments) -> "Application":
    """Return the application; `serve run` calls this with the arguments of its command line."""
    from ray import serve  # pyright: ignore[reportMissingImports]
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig  # pyright: ignore[reportMissingImports]

    how: dict[str, Any] = {"num_replicas": arguments.replicas}
    if arguments.most_replicas > arguments.replicas:
        how = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=arguments.replicas,
                max_replicas=arguments.most_replicas,
                target_ongoing_requests=arguments.parallel,
            )
        }
    if arguments.affinity:
        how["request_router_config"] = RequestRouterConfig.model_validate({"request_router_class": _AFFINITY_ROUTER})
    replicas = serve.deployment(
        name=_REPLICA,
        # A replica takes a few more than it works on, so that it has the next one at once.
        max_ongoing_requests=arguments.parallel + 1,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        graceful_shutdown_timeout_s=arguments.shutdown_seconds + 5,
        health_check_period_s=2,
        **how,
    )(Replica)
    settings, affinity = arguments.settings(), arguments.affinity

    def front() -> Any:
        return create_app(_engine(affinity), settings)

    web = serve.deployment(
        name=_FRONT,
        num_replicas=arguments.fronts,
        max_ongoing_requests=_MANY,  # the web side has a limit of its own, and says so
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=arguments.shutdown_seconds + 5,
    )(serve.ingress(front)())
    return web.bind(replicas.bind(arguments.loader(), arguments.parallel))


def _engine(affinity: bool) -> RemoteEngine:
    """Return the engine of a front, in its process: all replicas of the same application."""
    from ray import serve  # pyright: ignore[reportMissingImports]
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError  # pyright: ignore[reportMissingImports]
    from ray.serve.exceptions import ReplicaUnavailableError  # pyright: ignore[reportMissingImports]

    handle = serve.get_deployment_handle(_REPLICA, serve.get_replica_context().app_name)

    async def ready() -> Ready:
        return await handle.ready.remote()

    async def run(job: Job) -> AsyncIterator[Sequence[FromEngine]]:
        streamed = handle.options(stream=True, session_id=beginning(job)) if affinity else handle.options(stream=True)
        events: Any = streamed.answer.remote(job)  # a generator, since it streams
        try:
            async for some in events:
                yield some
        finally:
            events.cancel()

    def lost(error: Exception) -> bool:
        gone = isinstance(error, RayError) and not isinstance(error, RayTaskError | TaskCancelledError)
        return gone or isinstance(error, ReplicaUnavailableError)

    return RemoteEngine(ready, run, lost)


def beginning(job: Job) -> str:
    """Return a name for the beginning of a job's prompt: requests of one conversation have the same."""
    prompt = job.prompts[0]
    if isinstance(prompt, Conversation):
        opening: list[Any] = []
        for message in prompt.messages:
            opening.append(dict(message))
            if message.get("role") == "user":
                break
        text = repr(opening)
    else:
        text = repr(prompt[:_BEGINNING])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
