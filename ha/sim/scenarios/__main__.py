"""`python -m ha.sim.scenarios IN.json OUT.json`: plays every scenario of the file and writes what happened in each."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from . import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m ha.sim.scenarios", description=__doc__)
    parser.add_argument("scenarios", type=Path, help="a JSON list of scenarios")
    parser.add_argument("outcomes", type=Path, help="where the list of their events goes")
    parser.add_argument("--only", default="", help="names with this in them")
    options = parser.parse_args()
    given: Any = json.loads(options.scenarios.read_text())
    scenarios = [one for one in (given if isinstance(given, list) else [given]) if options.only in one["name"]]
    began = time.monotonic()
    outcomes = [{"name": one["name"], "events": play(one)} for one in scenarios]
    options.outcomes.write_text(json.dumps(outcomes, indent=1) + "\n")
    broken = [
        f"{one['name']}: {event['why']}" for one in outcomes for event in one["events"] if event["kind"] == "violation"
    ]
    print(
        "\n".join([*broken, f"{len(outcomes)} scenarios, {len(broken)} break a rule; {time.monotonic() - began:.0f} s"])
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
