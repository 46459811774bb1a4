"""The engine that asks an OpenAI-compatible server over HTTP.

Owns the calls: pace, asking again what a server had no time for, time limits. What is said is chat.py's, what may be spent
budget.py's; whether a failed call is worth another is for the row to say. Runs its event loop in a thread of its own. The
server's key comes from the environment variable the spec names; it stays in the client's headers only and blotted out of every
message.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import AskAnewError, EngineError
from caiflow.engine.llm.base import Answer, Completion, Request
from caiflow.engine.llm.files import load_renderer
from caiflow.engine.llm.pulse import Pulse
from caiflow.engine.llm.served.budget import Budget, Prices
from caiflow.engine.llm.served.chat import Dialect
from caiflow.engine.llm.served.endpoint import MOST_CALLS, Endpoint
from caiflow.engine.llm.served.listing import ask_listed, choose_named, continues_turns, key_header, key_in, names_of
from caiflow.engine.llm.served.pace import Pace
from caiflow.engine.llm.served.replies import Again, Passing, final, keep_lesson, read_reply
from caiflow.engine.llm.served.taught import ASK_ANEW, Taught, keep_taught, read_taught, taught_by
from caiflow.engine.store.spending import Account, Most, Spent

if TYPE_CHECKING:
    import httpx

    from caiflow.engine.llm.base import ModelSource

_WAYS = 8  # ways of putting a call that are tried where the server refuses a field of it
_AWAY_S = 300.0
_ALONE = 50  # refusals of one call, and answers to others meanwhile, after which it is the call that the server won't take
"""How long calls are put again to a server that was met and takes no connection now: one that restarts loads its model."""
_LARGEST_BODY = 32 << 20
_SESSION = "X-Session-Id"
"""The header by which routers keep together what begins alike."""


class EndpointEngine:
    """An Engine (see base.py) whose model runs on a server; the first call asks before it which server that is."""

    def __init__(self, endpoint: Endpoint, dialect_of: Callable[[Endpoint], Dialect]) -> None:
        self.capacity = endpoint.most_calls
        self.pulse = Pulse(first_s=0.0)
        self.gate = None
        self._endpoint = endpoint
        self._dialect = dialect_of(endpoint)
        self._dialect_of = dialect_of
        self._meeting: asyncio.Task[Endpoint] | None = None
        self._taught_before = len(self._dialect.without)
        self._answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="caiflow-endpoint", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pace = Pace(endpoint.most_calls)
        self._account = Account(endpoint.spent)
        self._budget = Budget(self._account, endpoint.most, endpoint.prices)
        self._client = _client(endpoint)
        self._thread.start()

    @property
    def waiting(self) -> str:
        """For whom it has waited for long, and how long it will; nothing while answers come."""
        told = self._pace.told()
        return f"{self._endpoint.base_url} {told}" if told else ""

    def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue requests for the server."""
        self._loop.call_soon_threadsafe(self._start, list(requests))

    def step(self, timeout_s: float = 0.1) -> list[tuple[int, Answer]]:
        """Return the answers that have come, waiting at most `timeout_s` for the first."""
        answers: list[tuple[int, Answer]] = []
        with contextlib.suppress(queue.Empty):
            answers.append(self._answers.get(timeout=timeout_s) if timeout_s > 0 else self._answers.get_nowait())
            while True:
                answers.append(self._answers.get_nowait())
        return answers

    def control(self, asked: Mapping[str, Any]) -> None:
        """Let no call leave where it is `paused`, at most `concurrency` at once, and none beyond the `max_*`; else as begun."""
        given = self._endpoint.most
        cost = asked.get("max_cost")
        calls, tokens = asked.get("max_calls", given.calls), asked.get("max_tokens_total", given.tokens)
        most = Most(calls, tokens, given.micros if cost is None else round(cost * 1e6))
        at_once = int(asked.get("concurrency") or self._endpoint.most_calls)

        def take() -> None:
            self._pace.control(paused=bool(asked.get("paused")), most=at_once)
            self._budget.control(most)

        self._loop.call_soon_threadsafe(take)

    def close(self) -> None:
        """Give up what is under way and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            for task in self._tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            self._loop.run_until_complete(self._client.aclose())
            self._account.close()
            self._loop.close()

    def _start(self, requests: Sequence[tuple[int, Request]]) -> None:
        for number, request in requests:
            task = self._loop.create_task(self._serve(number, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, number: int, request: Request) -> None:
        try:
            await self._meet()
            answer: Answer = await self._ask(request)
        except AskAnewError as lesson:
            answer = EngineError(self._endpoint.blot(str(lesson)), kind=ASK_ANEW)
        except EngineError as error:
            answer = EngineError(self._endpoint.blot(str(error)), kind=error.kind, retry=error.retry)
        except Exception as error:  # whatever it is, the caller waits for an answer to this number
            answer = EngineError(self._endpoint.blot(f"asking the server failed: {error!r}"), kind="engine", retry=True)
        self._answers.put((number, answer))

    async def _meet(self) -> None:
        """Ask once, before the first call, which server that is: a run whose answers are all kept needs none.

        Raises:
            EngineError: kind `load`: no call can be put, for the reason in its message.
            AskAnewError: from here on, answers are another model's.
        """
        if self._meeting is None:
            self._meeting = asyncio.create_task(asyncio.to_thread(as_listed, self._endpoint))
            self._meeting.add_done_callback(self._met)
        try:
            await asyncio.shield(self._meeting)
        except EngineError as error:
            raise EngineError(error.message, error.hint, kind="load") from error

    def _met(self, meeting: asyncio.Task[Endpoint]) -> None:
        """Put calls as the server wants them; where it wasn't met, the next call tries again."""
        if meeting.cancelled() or meeting.exception() is not None:
            self._meeting = None
            return
        self._endpoint = meeting.result()
        self._dialect = self._dialect_of(self._endpoint)

    async def _ask(self, request: Request) -> Completion:
        """Call until the server takes the call, has refused all calls for too long, or this one alone again and again."""
        ways = refusals = 0
        answered_before = self._pace.answers
        while True:
            try:
                return await self._call(request)
            except Passing as trouble:
                raise EngineError(f"{trouble} ({self._endpoint.base_url})", kind=trouble.kind, retry=True) from trouble
            except Again as refusal:
                ways += not refusal.busy
                refusals += refusal.busy
                if refusals >= _ALONE and self._pace.answers - answered_before >= _ALONE:
                    told = f"{refusal}, {refusals} times, and took other calls meanwhile ({self._endpoint.base_url})"
                    raise EngineError(told, kind="refused") from refusal
                if ways >= _WAYS or self._pace.refused_for_s() > refusal.patience_s:
                    raise EngineError(f"{refusal} ({self._endpoint.base_url})", kind="refused") from refusal

    async def _call(self, request: Request) -> Completion:
        started = await self._pace.enter()
        try:
            most = self._dialect.most_tokens(request)
            held = await self._budget.hold(*most)
            used = held
            try:
                answer = await self._answer(request)
                used = self._budget.of(answer.prompt_tokens, answer.completion_tokens) if answer.prompt_tokens else held
            except Again as refusal:
                used = held if refusal.spent else Spent()
                raise
            except Passing as trouble:
                used = held if trouble.spent else Spent(calls=1)
                raise
            except EngineError as error:
                used = Spent() if error.kind == ASK_ANEW else Spent(calls=1)
                raise
            finally:
                self._budget.settle(held, used)
            self._pace.answered()
        except Again as refusal:
            if refusal.busy:
                self._pace.refused(started, refusal.retry_after_s)
            raise
        except Passing:
            self._pace.failed(started)
            raise
        finally:
            self._pace.leave()
        return answer

    async def _answer(self, request: Request) -> Completion:
        """Put one call and read its answer."""
        self._dialect.learn(request)
        self._refuse_if_taught()
        path, body = self._dialect.call(request)  # as the calls before this one taught
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                status, headers, text = await self._post(path, body, request.row)
        except TimeoutError:
            raise Passing(f"the server didn't answer within {self._endpoint.timeout_s:g} s", "timeout") from None
        return read_reply(self._dialect, request, body, status, headers, text)

    def _refuse_if_taught(self) -> None:
        """Keep what calls taught, and put none as it isn't counted.

        Raises:
            EngineError: kind `ask_anew`: from here on, answers are another model's.
            StoreError: it can't be kept.
        """
        if lesson := keep_lesson(self._endpoint, self._dialect, self._taught_before):
            raise lesson

    async def _post(self, path: str, body: Mapping[str, Any], row: str) -> tuple[int, Mapping[str, str], str]:
        """Return status, headers and body of one call, which says whose it is: a router can have one replica answer a row.

        Raises:
            Again: there was no connection, so that the server knows nothing of the call.
            Passing: the connection broke, or the body is larger than any answer.
        """
        import httpx

        whose = {_SESSION: row} if row else {}
        try:
            async with self._client.stream("POST", path, json=body, headers=whose) as response:
                chunks, size = [], 0
                async for chunk in response.aiter_bytes():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > _LARGEST_BODY:
                        raise Passing(f"the server sends more than {_LARGEST_BODY >> 20} MiB", "bad_answer")
                return response.status_code, response.headers, b"".join(chunks).decode("utf-8", errors="replace")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Again(f"no server answers: {error}", busy=True, patience_s=_AWAY_S) from error
        except httpx.TimeoutException as error:
            raise Passing(f"the server didn't answer within {self._endpoint.timeout_s:g} s", "timeout") from error
        except httpx.HTTPError as error:
            raise Passing(f"the connection failed: {type(error).__name__} {error}".rstrip(), "connection") from error


def load_openai(source: ModelSource) -> EndpointEngine:
    """Return the engine for a served model, which isn't asked anything before the first call.

    Raises:
        EngineError: the key's variable isn't set or holds no key, or a tokenizer can't be loaded.
    """
    name = str(source.options.get("api_key_env") or "")
    if name and not key_in(name):
        raise EngineError(
            f"the environment variable {name} (api_key_env) isn't set", "export the server's key in it", kind="load"
        )
    return EndpointEngine(endpoint_of(source), dialect_speaker(source))


def endpoint_of(source: ModelSource) -> Endpoint:
    """Return where a served model is, as its entry says and its server taught; nobody is asked."""
    options, taught = source.options, taught_by(source.options)
    address_only = source.path.startswith(("http://", "https://"))
    return Endpoint(
        base_url=str(options.get("base_url") or source.path).rstrip("/"),
        model=taught.named if address_only else source.path,
        address_only=address_only,
        key=key_in(str(options.get("api_key_env") or "")),
        timeout_s=float(options.get("timeout_s") or 120.0),
        most_calls=int(options.get("concurrency") or MOST_CALLS),
        most=_most(options),
        prices=Prices(**(options.get("prices") or {})),
        spent=Path(options["spent"]) if options.get("spent") else None,
        taught=Path(options["taught"]) if options.get("taught") else None,
        continues=taught.continues,
        by_hand=bool(options.get("by_hand")),
    )


def dialect_speaker(source: ModelSource) -> Callable[[Endpoint], Dialect]:
    """Return what tells how calls to a served model are put, once it is known of its server."""
    renderer = load_renderer(source) if source.tokenizer else None
    answers_as, without = str(source.options.get("answers_as") or ""), taught_by(source.options).without
    return lambda endpoint: Dialect(
        endpoint.model, renderer, answers_as, without,
        continues=endpoint.continues, template_variables=source.template_variables,
    )  # fmt: skip


def _most(options: Mapping[str, Any]) -> Most:
    cost = options.get("max_cost")
    return Most(options.get("max_calls"), options.get("max_tokens_total"), None if cost is None else round(cost * 1e6))


def _client(endpoint: Endpoint) -> httpx.AsyncClient:
    from caiflow.engine.llm.served.pinned import client_of

    header = key_header(endpoint.key)
    return client_of(endpoint.base_url, header, endpoint.most_calls, endpoint.timeout_s, by_hand=endpoint.by_hand)


def as_listed(endpoint: Endpoint, patience_s: float = 30.0) -> Endpoint:
    """Return the endpoint with the name to ask for (the one given, else one that is listed) and what its listing tells of it.

    That it goes on with turns is kept: answers are put so once it is down, too.

    Raises:
        EngineError: no server answers there, it refuses the key, or it lists no model though none is named.
        AskAnewError: it lists another model than the one that its answers count as.
    """
    import httpx

    listed: list[str] = []
    continues = endpoint.continues
    try:
        response = ask_listed(
            endpoint.base_url, key_header(endpoint.key), min(patience_s, endpoint.timeout_s), by_hand=endpoint.by_hand
        )
    except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise EngineError(
            f"no server answers at {endpoint.base_url}: {error}", "start it, or correct `base_url`", kind="load"
        ) from error
    except httpx.HTTPError:
        pass  # it may answer calls all the same
    else:
        listed = names_of(response)
        continues = continues_turns(response) if listed else continues
        if response.status_code == 401 or (
            response.status_code == 403 and endpoint.address_only
        ):  # a key for calls alone may not list
            said = f"the server answers {response.status_code}: {response.text[:300]}"
            raise final(response.status_code, endpoint.blot(said), "")
    model = _listed_model(endpoint, listed) if endpoint.address_only else endpoint.model
    if continues and not endpoint.continues and endpoint.taught is not None:
        keep_taught(endpoint.taught, read_taught(endpoint.taught)._replace(continues=True), endpoint.told)
    return replace(endpoint, continues=continues, model=model)


def _listed_model(endpoint: Endpoint, listed: list[str]) -> str:
    """Return which of the listed models an address alone means."""
    model = choose_named(endpoint.model, listed)
    if not model:
        raise EngineError(
            f"{endpoint.base_url} lists no models", "give the model's name as `source` beside `base_url`", kind="load"
        )
    if model != endpoint.model and endpoint.taught is not None:
        keep_taught(endpoint.taught, Taught(model), endpoint.told)
        raise AskAnewError(f"{endpoint.base_url} lists {model!r}: its answers count as that model's")
    return model
