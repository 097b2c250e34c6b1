"""What the options of the root command mean to the commands below it: one client, made when it is first needed."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvorum.client import Client


class Session:
    def __init__(self, *, target: str, credentials: str, timeout_s: float) -> None:
        self._target = target
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._client: Client | None = None

    @property
    def client(self) -> "Client":
        if self._client is None:
            from kvorum.client import connect

            self._client = connect(self._target, credentials=self._credentials or None, timeout_s=self._timeout_s)
        return self._client

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
