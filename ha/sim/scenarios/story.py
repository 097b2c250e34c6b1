"""Events as a story that a person can judge: after each batch of commands, what became of every node and guest. Pure.

Without times but those of the commands, and what the manager says apart from what runs: the story says what happened, not
how the small delays fell.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .recorder import Event

# What happens to a guest's process, not what is said about it.
_PHYSICAL = ("start-ok", "start-failed", "stop-ok")


def story(events: Sequence[Event]) -> list[str]:
    lines: list[str] = []
    began: float | None = None
    batch: list[Event] = []
    for event in events:
        if event["kind"] == "input":
            if event["t"] != began:
                lines += _paths(batch)
                began, batch = event["t"], []
            lines.append(f"{event['t']:7.0f} s  {event['raw'] or _words(event['cmd'])}")
        else:
            batch.append(event)
    return lines + _paths(batch)


def _words(command: Mapping[str, Any]) -> str:
    return " ".join(str(value) for key, value in command.items() if key != "op" or value != "delay")


def _paths(events: Iterable[Event]) -> list[str]:
    """A line for each node and guest that something happened to, in the order of their names; two for one that ran."""
    paths: dict[tuple[str, bool], list[str]] = {}
    for event in events:
        if (told := _tell(event)) is not None:
            who, what = told
            path = paths.setdefault((who, event["kind"] in _PHYSICAL), [])
            if not path or path[-1] != what:
                path.append(what)
    return [f"             {key[0]:8} {' > '.join(paths[key])}" for key in sorted(paths)]


def _tell(event: Event) -> tuple[str, str] | None:
    """Who, and what became of it; None for what the story leaves out."""
    match event["kind"]:
        case "svc-state" if event["new"] != "request_start":
            arrow = event["par"].removeprefix("node = ").replace(", target = ", " -> ")
            return event["sid"], f"{event['new']} {arrow}"
        case "svc-remove":
            return event["sid"], "no resource"
        case "start-ok":
            arrived = "arrives, running, on" if event.get("how") == "migrate" else "RUNS on"
            return event["sid"], f"{arrived} {event['by']}"
        case "stop-ok":
            who = "the keeper of" if event["daemon"] == "keeper" else "HA on"
            return event["sid"], f"ended by {who} {event['by']}"
        case "start-failed":
            return event["sid"], f"does not start on {event['by']}"
        case "fence-done":
            return event["node"], "fenced"
        case "watchdog-reset":
            return event["node"], f"resets itself ({event['why']})"
        case "effect":
            return event["cmd"]["node"], f"power {event['cmd']['value']} ({event['cause']})"
        case "disarm":
            return "HA", event["state"]
        case "rule-dropped":
            return event["cmd"], f"yields: {event['why']}"
        case "cmd-refused":
            return event["cmd"], f"refused: {event['why']}"
        case "violation":
            return "RULE", f"broken: {event['why']}"
    return None
