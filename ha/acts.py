"""Performs in the store what the manager decided: fences, moves, an operator's stop, files of answered commands that go.

Each act is guarded by what the decision was made on; being overtaken is no error. Nothing is decided here.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvorum.config import GuestConfig, SectionConfig
from kvorum.errors import (
    AlreadyExists,
    KvorumError,
    NoQuorum,
    NotFound,
    OutcomeUnknown,
    StaleVersion,
    Timeout,
    Unreachable,
)

from . import manager
from .resources import RESOURCES_CFG, find_section, parse_request, with_changed

if TYPE_CHECKING:
    from clusterfs.client import StoreClient

log = logging.getLogger(__name__)

PERFORM_S = 5.0
AUTHOR = "ha"


class Acts:
    def __init__(self, store: "StoreClient") -> None:
        self._store = store

    async def perform_all(self, actions: Iterable[manager.Action]) -> None:
        """One that is refused for a reason of its own keeps nobody else's guest waiting. Raises what went wrong first, when
        all have been tried; NoQuorum and its like at once, since then none would get on. The next round decides anew."""
        problems: list[KvorumError] = []
        for action in actions:
            try:
                await self.perform(action)
            except (NoQuorum, OutcomeUnknown, Timeout, Unreachable):
                raise
            except KvorumError as error:
                problems.append(error)
        if problems:
            raise problems[0]

    async def perform(self, action: manager.Action) -> None:
        """Raises NoQuorum and its like, and what the store has against it."""
        try:
            match action:
                case manager.FenceLease():
                    await self._store.fence_lease(action.uid, action.incarnation, action.renewal, deadline_s=PERFORM_S)
                    log.warning("fenced %s (lease %d): %s", action.node, action.incarnation, action.cause)
                case manager.MoveConfig():
                    await self._move(action)
                case manager.RequestStopped():
                    await self._request_stopped(action)
                case manager.ForgetCommand():
                    await self._store.delete(
                        action.path,
                        expected_version=action.expected_version,
                        reason="answered",
                        author=AUTHOR,
                        deadline_s=PERFORM_S,
                    )
        except (StaleVersion, NotFound, AlreadyExists) as error:
            log.info("overtaken: %s", error)

    async def _move(self, action: manager.MoveConfig) -> None:
        version = action.expected_version
        if action.unlock:
            version = await self._unlock(action)
        await self._store.move(
            action.path,
            action.new_path,
            expected_version=version,
            reason=action.cause,
            author=AUTHOR,
            deadline_s=PERFORM_S,
        )
        log.info("%s: moved %s to %s (%s)", action.sid, action.path, action.new_path, action.cause)

    async def _unlock(self, action: manager.MoveConfig) -> int:
        """The holder is fenced; its lock would keep the guest from starting anywhere. The file's version after that."""
        entry = await self._store.get(action.path, deadline_s=PERFORM_S)
        if entry.version != action.expected_version:
            raise StaleVersion(f"{action.path} has changed")
        config = GuestConfig.parse(entry.content, action.path)
        if config.get("lock") != action.unlock:
            return entry.version
        written = await self._store.write(
            action.path,
            config.without("lock").render().encode(),
            expected_version=entry.version,
            reason=f"its holder is fenced: {action.cause}",
            author=AUTHOR,
            deadline_s=PERFORM_S,
        )
        log.warning("%s: took off the lock %s, whose holder is fenced", action.sid, action.unlock)
        return written.version

    async def _request_stopped(self, action: manager.RequestStopped) -> None:
        entry = await self._store.get(RESOURCES_CFG, deadline_s=PERFORM_S)
        config = SectionConfig.parse(entry.content, RESOURCES_CFG)
        section = find_section(config, action.sid)
        if parse_request(section.get("state", "started")) != "started":
            return
        changed = with_changed(config, action.sid, {"state": "stopped"})
        await self._store.write(
            RESOURCES_CFG,
            changed.render().encode(),
            expected_version=entry.version,
            reason=f"asked to stop {action.sid}",
            author=AUTHOR,
            deadline_s=PERFORM_S,
        )
