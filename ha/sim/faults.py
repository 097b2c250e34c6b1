"""What breaks: each a function of the world and of a source of chance of its own, so that leaving one out changes no other."""

from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from .store import Fence

if TYPE_CHECKING:
    from .host import Host
    from .world import World

Event = Callable[["World", Random], None]


def any_host(world: "World", random: Random) -> "Host":
    return world.hosts[random.choice(sorted(world.hosts))]


def cut(world: "World", random: Random) -> None:
    names = sorted(world.hosts)
    if random.random() < 0.75:
        lonely = random.sample(names, random.randint(1, len(names) // 2))
        edges = {frozenset((one, other)) for one in lonely for other in names if other not in lonely}
    else:
        edges = {frozenset(random.sample(names, 2))}
    world.cut_edges(edges, random.choice((1.0, 4.0, random.uniform(8.5, 11.0), 20.0, 60.0)))


def join(world: "World", _random: Random) -> None:
    if world.cuts:
        world.checks.tell("the network is whole")
        world.cuts.clear()


def power(world: "World", random: Random) -> None:
    host = any_host(world, random)
    host.power_off("power cut")
    # Back before anybody could fence it, or after that in the longest profile.
    off_s = random.uniform(1, 25) if random.random() < 0.7 else random.uniform(25, 90)
    world.timeline.after(off_s, partial(world.power_on, host.name))


def freeze(world: "World", random: Random) -> None:
    host = any_host(world, random)
    host.freeze()
    world.timeline.after(random.choice((0.5, 2, 4, 8, 11, 15, 20)) * random.uniform(0.8, 1.2), host.thaw)


def freeze_at_answer(world: "World", random: Random) -> None:
    any_host(world, random).freeze_at_answer_s = random.uniform(4, 25)


def freeze_at_start(world: "World", random: Random) -> None:
    """Half of them so that the node is fenced meanwhile, and nothing else is on it: then nothing resets it when it thaws, and the
    start goes on in another life of the node."""
    host = any_host(world, random)
    host.freeze_at_start_s, host.freezes_alone = random.uniform(9, 25), False
    bare = [one for one in world.hosts.values() if not one.has_watchdog and one.keeper is not None]
    if bare and random.random() < 0.5:
        host = random.choice(bare)
        takeover_s = host.keeper.profile.takeover_after_s if host.keeper is not None else 10.0
        host.freeze_at_start_s, host.freezes_alone = takeover_s + random.uniform(1.0, 6.0), True


def freeze_at_fork(world: "World", random: Random) -> None:
    any_host(world, random).freeze_at_fork_s = random.uniform(3, 25)


def die_young(world: "World", random: Random) -> None:
    """A reboot, and the power goes again when the new life has just got its lease."""
    host = any_host(world, random)
    host.power_off("power cut")
    host.dies_young_s = random.uniform(20, 90)
    world.timeline.after(random.uniform(1, 5), partial(world.power_on, host.name))


def kill_keeper(world: "World", random: Random) -> None:
    host = any_host(world, random)
    if host.keeper is not None and not host.is_frozen:
        host.kill_keeper()
        # Without a device nothing replaces a keeper that stays dead: a gap that the docs name.
        host.after(random.uniform(0.1, 8.0 if host.has_watchdog else 2.0), host.start_keeper)


def restart_daemon(world: "World", random: Random) -> None:
    daemon = world.daemons[random.choice(sorted(world.daemons))]
    world.checks.tell(f"{daemon.host.name}: kvorum-ha restarts")
    daemon.stop()
    daemon.host.after(random.uniform(0.1, 6.0), daemon.start)


def crash_guest(world: "World", random: Random) -> None:
    """Wherever it runs."""
    sid = random.choice(world.sids)
    for host in world.hosts.values():
        if host.is_running(sid):
            host.crash_guest(sid)


def spoil(world: "World", random: Random) -> None:
    host, sid = any_host(world, random), random.choice(world.sids)
    world.checks.tell(f"{host.name}: {sid} will not start here")
    host.bad_starts ^= {sid}


def jump(world: "World", random: Random) -> None:
    """Of a wall clock."""
    world.daemons[random.choice(sorted(world.daemons))].epoch += random.choice((-1e6, -100, 100, 1e6))


def agent(world: "World", random: Random) -> None:
    """A fence agent switches a node off, and somebody tells the log so, sooner or later."""
    host = any_host(world, random)
    held = world.store.truth.leases.get(host.name)
    if held is None or held.is_resting:
        return
    fence = Fence(host.name, held.incarnation, 0, is_confirmed=True)
    told_s, back_s = random.choice((0.1, 1.0, 20.0)), random.uniform(0.5, 20)

    def off() -> None:
        if world.is_healing:
            return  # nobody would switch it on again
        host.power_off(f"a fence agent, for lease {fence.incarnation}")
        world.timeline.after(told_s, partial(world.propose, fence))
        world.timeline.after(back_s, partial(world.power_on, host.name))

    world.timeline.after(random.uniform(0.2, 6), off)


def short_freeze(world: "World", random: Random) -> None:
    host = any_host(world, random)
    host.freeze()
    world.timeline.after(world.profile().tolerates_s * random.uniform(0.2, 0.95), host.thaw)


def short_cut(world: "World", random: Random) -> None:
    names = sorted(world.hosts)
    lonely = random.sample(names, random.randint(1, len(names) // 2))
    edges = {frozenset((one, other)) for one in lonely for other in names if other not in lonely}
    world.cut_edges(edges, world.profile().tolerates_s * random.uniform(0.2, 0.95))


# Not in every seed's swarm: for seeds that are about agents, and for those in which nothing may be lost (L11).
AGENTS: Mapping[str, Event] = {"agent": agent}
STALLS: Mapping[str, Event] = {"short-freeze": short_freeze, "short-cut": short_cut}

FAULTS: Mapping[str, Event] = {
    "cut": cut,
    "cut-again": cut,
    "join": join,
    "power": power,
    "power-again": power,
    "freeze": freeze,
    "freeze-again": freeze,
    "freeze-at-answer": freeze_at_answer,
    "freeze-at-start": freeze_at_start,
    "freeze-at-fork": freeze_at_fork,
    "die-young": die_young,
    "kill-keeper": kill_keeper,
    "restart-daemon": restart_daemon,
    "crash-guest": crash_guest,
    "spoil": spoil,
    "jump": jump,
}
