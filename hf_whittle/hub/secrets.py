"""Tokens and signatures, kept out of logs and errors."""

import contextlib
import re
from collections.abc import Iterator
from logging import LogRecord, getLogger

from huggingface_hub import get_token

from ..compat.others import HUB_LOGGERS


class Secrets:
    """Removes a token, and the queries of URLs, which may be signatures, from texts, errors and logs.

    Args:
        token (`str` or `bool`, *optional*): as for `HfApi`.
    """

    def __init__(self, token: str | bool | None):
        self._token = token if isinstance(token, str) else get_token()

    def removed(self, text: str) -> str:
        """The text in one line, without secrets."""
        text = " ".join(text.split())
        text = text.replace(self._token, "...") if self._token else text
        return re.sub(r"\?\S+|\bhf_\w{16,}", "", text)

    def removed_from(self, error: BaseException) -> BaseException:
        """The error, changed so that its text has no secrets and nothing shows the errors that caused it."""
        error.args = tuple(self.removed(each) if isinstance(each, str) else each for each in error.args)
        error.__cause__ = error.__context__ = None
        return error

    @contextlib.contextmanager
    def kept_out_of_logs(self) -> Iterator[None]:
        """Within it, the client logs no secrets."""

        def clean(record: LogRecord) -> bool:
            record.msg, record.args = self.removed(record.getMessage()), ()
            return True

        loggers = [getLogger(name) for name in HUB_LOGGERS]
        for each in loggers:
            each.addFilter(clean)
        try:
            yield
        finally:
            for each in loggers:
                each.removeFilter(clean)
