"""What people do, at any time and whatever else is going on: resources, files, commands, policies, whole nodes."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from ha.balance import Budget
from ha.leases import FAST, NORMAL, PATIENT
from ha.load import Mode
from ha.options import DATACENTER_CFG, Options, ShutdownPolicy
from ha.placement import Policy
from ha.resources import RESOURCES_CFG, Request, Resource
from ha.settings import SETTINGS_CFG
from ha.view import command_path, config_path
from kvorum.ids import Sid

from .faults import Event, any_host
from .host import MIGRATE_LOCK
from .reading import LOCK
from .store import Answer, Done, Move, Write

if TYPE_CHECKING:
    from .world import World

Held = dict[Sid, Resource]


def add(world: "World", random: Random) -> None:
    sid = random.choice(world.sids)
    world.edit(lambda held: held if sid in held else held | {sid: Resource(sid)})


def add_and_cut(world: "World", random: Random) -> None:
    """A guest that runs already comes under HA just as its node goes silent."""
    sid = random.choice(world.sids)
    place = world.place(sid)
    # While resources.cfg does not parse nobody can tell whether it is under HA, and the agent refuses to start it.
    if not place or sid in world.resources() or not isinstance(world.content(RESOURCES_CFG), dict):
        return
    if not any(sid in host.processes for host in world.hosts.values()):
        world.hosts[place].start(sid, None, lambda _cause: None)
    edges = {frozenset((place, other)) for other in world.hosts if other != place}
    begun_s = 2.0
    add_it = partial(world.edit, lambda held: held if sid in held else held | {sid: Resource(sid)})
    world.timeline.after(begun_s, partial(world.unless_healing, add_it))
    cut_it = partial(world.cut_edges, edges, random.uniform(5, 25))
    world.timeline.after(begun_s + random.uniform(0.0, 0.6), partial(world.unless_healing, cut_it))


def remove(world: "World", random: Random) -> None:
    sid = random.choice(world.sids)
    world.edit(lambda held: {key: value for key, value in held.items() if key != sid})


def request(world: "World", random: Random) -> None:
    """One of the four states, `started` as often as all others."""
    sid = random.choice(world.sids)
    wanted = random.choice((Request.started, Request.started, Request.started, *Request))
    world.edit(lambda held: held | {sid: replace(held[sid], request=wanted)} if sid in held else held)


def tune(world: "World", random: Random) -> None:
    sid, tries, failback = random.choice(world.sids), random.randint(0, 2), random.random() < 0.5

    def tuned(held: Held) -> Held:
        if sid not in held:
            return held
        return held | {sid: replace(held[sid], max_restart=tries, max_relocate=tries, failback=failback)}

    world.edit(tuned)


def prioritise(world: "World", random: Random) -> None:
    sid, priority = random.choice(world.sids), random.randint(0, 3)
    world.edit(lambda held: held | {sid: replace(held[sid], priority=priority)} if sid in held else held)


def move_by_hand(world: "World", random: Random) -> None:
    """Somebody moves the file of a guest that HA looks after, wherever it runs."""
    carry(world, random.choice(world.sids), any_host(world, random).name)


def snatch(world: "World", random: Random) -> None:
    """A guest is sent somewhere, and the next one that arrives anywhere has its file moved on or back at once."""
    world.snatch_s = random.uniform(0.2, 2.0)
    say(world, f"migrate {random.choice(world.sids)} {any_host(world, random).name}")


def carry(world: "World", sid: str, new: str) -> None:
    place = world.place(sid)
    if not place or place == new or sid not in world.checks.services():
        return
    path = config_path(sid, place)
    if str(world.content(path)) not in ("", MIGRATE_LOCK):
        return  # who moves what a task holds, past HA, has to know what becomes of the task
    world.checks.tell(f"somebody moves the file of {sid} from {place} to {new}")
    world.propose(Move(path, config_path(sid, new), world.store.truth.files[path].version))


def garble(world: "World", random: Random) -> None:
    """resources.cfg does not parse for a while."""
    held = world.store.truth.files.get(RESOURCES_CFG)
    if held is None or held.content is None:
        return
    world.checks.tell("resources.cfg is garbled")
    before = held.content
    world.propose(Write(RESOURCES_CFG, None, held.version))
    world.timeline.after(random.uniform(0.5, 4), partial(world.mend, before))


def choose_profile(world: "World", random: Random) -> None:
    profile = random.choice((FAST, FAST, FAST, NORMAL, NORMAL, PATIENT))
    world.checks.tell(f"the profile is {profile.name}")
    world.put(SETTINGS_CFG, profile)


def command(world: "World", random: Random) -> None:
    """A verb about a guest, sensible or not."""
    sid, node = random.choice(world.sids), any_host(world, random).name
    verb = random.choice(("migrate", "migrate", "migrate", "relocate", "stop"))
    say(world, f"stop {sid} {random.choice((0, 5, 60))}" if verb == "stop" else f"{verb} {sid} {node}")


def maintain(world: "World", random: Random) -> None:
    node = any_host(world, random).name
    say(world, f"enable-node-maintenance {node}")
    ending = partial(say, world, f"disable-node-maintenance {node}")
    world.timeline.after(random.uniform(5, 60), partial(world.unless_healing, ending))


def disarm(world: "World", random: Random) -> None:
    say(world, f"disarm-ha {random.choice(('freeze', 'ignore'))} {random.randint(3, 40)}")
    if random.random() < 0.4:
        world.timeline.after(random.uniform(1, 30), partial(world.unless_healing, partial(say, world, "arm-ha")))


def back_up(world: "World", random: Random) -> None:
    """A task on the guest's node holds it for a while; it ends with its host, and then its lock is left."""
    sid, lock = random.choice(world.sids), random.choice(("backup", "backup", "snapshot", "create"))
    place = world.place(sid)
    if not place or world.content(path := config_path(sid, place)) != "":
        return
    host = world.hosts[place]
    boot = host.boot

    def locked(answer: Answer) -> None:
        if isinstance(answer, Done) and host.boot == boot:
            world.checks.tell(f"{place}: a task holds {sid} ({lock})")
            host.after(random.choice((random.uniform(2, 40), random.uniform(40, 120))), end)

    def end() -> None:
        file = world.store.truth.files.get(path)
        if file is None or file.content != f"{LOCK}{lock}":
            return
        world.store.propose(place, Write(path, "", file.version), lambda _answer: None, deadline_s=5.0)

    write = Write(path, f"{LOCK}{lock}", world.store.truth.files[path].version)
    world.store.propose(place, write, locked, deadline_s=5.0)


def choose_policy(world: "World", random: Random) -> None:
    options = Options(
        shutdown_policy=random.choice(list(ShutdownPolicy)),
        shutdown_deadline_s=random.choice((0, 10, 40)),
        rebalances_on_start=random.random() < 0.3,
        policy=Policy(
            mode=random.choice(list(Mode)),
            memory_limit=random.choice((1.0, 1.0, 1.0, 1.5, 0.0)),
            reserve_nodes=random.choice((0, 0, 1)),
        ),
        budget=Budget(is_enabled=random.random() < 0.4, hold_s=10.0, cooldown_s=60.0),
    )
    world.checks.tell(
        f"shutdown policy {options.shutdown_policy}, {options.shutdown_deadline_s} s; placement {options.policy}, "
        f"balancing {'on' if options.budget.is_enabled else 'off'}"
    )
    world.put(DATACENTER_CFG, options)


def shut_down(world: "World", random: Random) -> None:
    """A host goes down as it should, and comes back after a while."""
    world.shut_down(any_host(world, random).name, is_reboot=random.random() < 0.5, off_s=random.uniform(3, 40))


def say(world: "World", text: str) -> None:
    world.commands += 1
    world.checks.tell(f"an operator says: {text}")
    world.propose(Write(command_path(f"{world.commands:04}"), text, 0))


OPERATORS: Mapping[str, Event] = {
    "add": add,
    "add-and-cut": add_and_cut,
    "add-and-cut-again": add_and_cut,
    "remove": remove,
    "request": request,
    "tune": tune,
    "priority": prioritise,
    "move-by-hand": move_by_hand,
    "snatch": snatch,
    "garble": garble,
    "profile": choose_profile,
    "command": command,
    "command-again": command,
    "maintain": maintain,
    "disarm": disarm,
    "policy": choose_policy,
    "back-up": back_up,
    "shut-down": shut_down,
}
