#!/usr/bin/env python3
"""Lists the nodes and guests of a cluster and starts a stopped guest, over gRPC.

    python docs/examples/client.py                                   on a node, as root
    python docs/examples/client.py --credentials admin.json          from elsewhere

Make the credentials on a node: kvorum cluster credentials --out admin.json. With a lab that `KEEP=1 make demo` left up, no option
is needed either: its credentials are found where `kvorum lab publish` put them.
"""

import argparse
import sys
from pathlib import Path

import kvorum
from kvorum.errors import KvorumError
from kvorum.v1 import guest_pb2

LAB_CREDENTIALS = Path("/var/lib/kvorum-lab/lab/credentials.json")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="", help="HOST or HOST:PORT; default: the first in the credentials")
    parser.add_argument("--credentials", type=Path, help="file made by 'kvorum cluster credentials'")
    options = parser.parse_args()
    credentials = options.credentials or (LAB_CREDENTIALS if LAB_CREDENTIALS.exists() else None)

    try:
        with kvorum.connect(options.target, credentials=credentials) as client:
            show(client)
            start_one(client)
    except KvorumError as error:
        print(f"error: {error.message}\n  {error.remedy}", file=sys.stderr)
        return 1
    return 0


def show(client: kvorum.Client) -> None:
    status = client.cluster.status()
    print(f"cluster {status.cluster_name}: {'quorate' if status.quorate else 'no quorum'}, leader {status.leader}")
    for node in status.nodes:
        print(f"  {node.name}  {node.address}")
    for guest in client.guests.list().guests:
        state = guest_pb2.GuestState.Name(guest.state).removeprefix("GUEST_STATE_").lower()
        print(f"  {guest.name}  {guest.display_name:12} {state:8} on {guest.node}")


def start_one(client: kvorum.Client) -> None:
    """Start the first guest that is stopped, and follow the task."""
    for guest in client.guests.list().guests:
        if guest.state == guest_pb2.GUEST_STATE_STOPPED:
            break
    else:
        print("no guest is stopped: nothing to start")
        return
    upid = client.guests.start(guest.vmid)
    for answer in client.tasks.follow(upid):
        if answer.line:
            print(f"    {answer.text}")
    client.tasks.wait(upid)
    print(f"  {guest.name} runs")


if __name__ == "__main__":
    sys.exit(main())
