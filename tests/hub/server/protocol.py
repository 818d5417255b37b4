"""Requests, answers and refusals."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from .accounts import Account

Route = tuple[str, str, str | None, Callable[..., Any]]


class Request(NamedTuple):
    """A request as it arrived; its status is 0 if the connection was dropped."""

    method: str
    path: str
    status: int
    agent: str


@dataclass
class Call:
    """A request for a route."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    account: Account | None = None

    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Answer:
    """An answer: bytes as they are, anything else as JSON; none if the connection is to drop."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass
class Fault:
    """A fault of the next requests that match."""

    method: str
    path: str
    times: int
    after: bool
    answer: Answer


class Refusal(Exception):  # noqa: N818
    """An error of the Hub, as its clients read it."""

    def __init__(self, status: int, message: str, code: str | None = None, body: Any = None, **headers: str):
        super().__init__(message)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        codes = {"X-Error-Code": code} if code else {}
        self.answer = Answer(body or {"error": message}, status, {"X-Error-Message": message, **codes, **named})


class Breach(Refusal):
    """A refusal of a request that breaks the protocol."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(status, message)


def check(condition: object, message: str) -> None:
    if not condition:
        raise Breach(message)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
