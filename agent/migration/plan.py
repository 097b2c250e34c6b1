"""When a migrated guest may be touched where, so that exactly one copy runs. Pure.

The order, with what each phase means for the two copies:

    phase      source            target                      config owner   what comes next (`Step`)
    preparing  runs              volumes, ports, sockets     source         prepare, then copy
    copying    runs              fills, cannot run           source         wait for libvirt
    arrived    process is gone   whole, paused               source         move_config
    owned      -                 paused                      target         resume_target
    resumed    -                 runs                        target         release (ports, sockets, source's copied disks)
    undoing    runs or ran       what is there must go       source         undo steps, then failed
    failed     runs              nothing                     source         -
    returning  -                 paused, is sent back        source         the same migration the other way round, then resume
    lost       -                 ended                       source         start_source (memory is gone; like a power cut)

The one rule: **a copy runs only where the config is, and the target's copy is resumed only after the store has said that
the config moved.** Before `arrived` the source's copy is the guest. From `arrived` on only the target's copy has the memory,
so that failures go forward: nobody resumes, kills or restarts anything before `settle` has looked at all three of source,
target and store. The step from arrived to owned is one write in the store (a guarded move: source's path, its version),
therefore it is atomic; a lost answer (OutcomeUnknown) is settled by reading the store, never by guessing.

What the orchestration must do, and `next_step`/`settle` say:

- A failure in preparing or copying: `undoing`. AbortMigration at the target (ends what has arrived there, frees volumes and
  ports), close the tunnel, make sure the source runs (`live.restore`). All steps are idempotent; none depends on the other.
- Target does not answer while undoing: its leftovers cannot run (they are paused and the config is not theirs); they go when
  its agent starts (`settle` there). The source goes on at once.
- Cancel: the same as a failure, in preparing and copying only (`may_cancel`). From `arrived` on it is refused.
- Move refused for good (config changed or deleted meanwhile, somebody else owns it): `settle` with what the store says now.
- No quorum when moving: try again until `MOVE_LIMIT_S` is over. Then `returning` when both nodes answer. The guest stands
  still all this time, and that is right: nobody can know whose it is.
- Either agent restarts: for a guest with `lock: migrate` whose task is gone, call `settle` before anything else touches it.
  Its result for the node itself is safe without the other's answer (`Look.unknown`).
"""

from dataclasses import dataclass
from enum import StrEnum

MOVE_LIMIT_S = 60.0


class Phase(StrEnum):
    preparing = "preparing"
    copying = "copying"
    arrived = "arrived"
    owned = "owned"
    resumed = "resumed"
    undoing = "undoing"
    failed = "failed"
    returning = "returning"
    lost = "lost"


class Step(StrEnum):
    """What the orchestration does next; each can be repeated."""

    prepare = "prepare"
    copy = "copy"
    move_config = "move_config"
    resume_target = "resume_target"
    # Ports and sockets at the target; disks at the source that were copied.
    release = "release"
    # AbortMigration at the target, close the tunnel, live.restore at the source.
    undo = "undo"
    send_back = "send_back"
    # From its disks; its memory is lost.
    start_source = "start_source"
    start_target = "start_target"
    stop_target = "stop_target"
    stop_source = "stop_source"
    resume_source = "resume_source"
    # Nothing is safe before more is known.
    wait = "wait"
    done = "done"


class Outcome(StrEnum):
    """How the step of a phase ended."""

    ok = "ok"
    # For certain: it has not happened.
    failed = "failed"
    cancelled = "cancelled"
    # It may have happened; look.
    unknown = "unknown"


_NEXT: dict[tuple[Phase, Outcome], Phase] = {
    (Phase.preparing, Outcome.ok): Phase.copying,
    (Phase.preparing, Outcome.failed): Phase.undoing,
    (Phase.preparing, Outcome.cancelled): Phase.undoing,
    # The target may have prepared; undoing is idempotent and nothing runs there.
    (Phase.preparing, Outcome.unknown): Phase.undoing,
    (Phase.copying, Outcome.ok): Phase.arrived,
    (Phase.copying, Outcome.failed): Phase.undoing,
    (Phase.copying, Outcome.cancelled): Phase.undoing,
    (Phase.arrived, Outcome.ok): Phase.owned,
    (Phase.arrived, Outcome.failed): Phase.returning,
    (Phase.owned, Outcome.ok): Phase.resumed,
    (Phase.undoing, Outcome.ok): Phase.failed,
    # The source runs; what is left at the target cannot, and goes when that node's agent looks.
    (Phase.undoing, Outcome.failed): Phase.failed,
    (Phase.undoing, Outcome.unknown): Phase.failed,
    (Phase.returning, Outcome.ok): Phase.failed,
    (Phase.returning, Outcome.failed): Phase.lost,
    (Phase.lost, Outcome.ok): Phase.failed,
}
_STEPS: dict[Phase, Step] = {
    Phase.preparing: Step.prepare,
    Phase.copying: Step.copy,
    Phase.arrived: Step.move_config,
    Phase.owned: Step.resume_target,
    Phase.resumed: Step.release,
    Phase.undoing: Step.undo,
    Phase.failed: Step.done,
    Phase.returning: Step.send_back,
    Phase.lost: Step.start_source,
}


def next_step(phase: Phase) -> Step:
    return _STEPS[phase]


def next_phase(phase: Phase, outcome: Outcome) -> Phase | None:
    """The phase after the step of `phase` ended so. None: the table does not know, `settle` must look."""
    return _NEXT.get((phase, outcome))


def may_cancel(phase: Phase) -> bool:
    return phase in (Phase.preparing, Phase.copying)


class Look(StrEnum):
    """A copy of the guest, as its node's driver sees it."""

    running = "running"
    paused = "paused"
    gone = "gone"
    # The node does not answer.
    unknown = "unknown"


class Owner(StrEnum):
    """In whose directory the config is, read from the store after the failure."""

    source = "source"
    target = "target"
    # A third node (HA recovered it), or the config is deleted.
    other = "other"
    # No quorum, so that what is read may be old.
    unknown = "unknown"


@dataclass(frozen=True, slots=True)
class Evidence:
    source: Look
    target: Look
    owner: Owner
    # That the source's copy, if it is gone, went by the migration: it may also have gone on after a failure, and ended later.
    is_end_known: bool = True
    # Before the migration; a guest that a person had paused stays paused.
    was_running: bool = True


def settle(evidence: Evidence) -> tuple[Step, ...]:
    """What must be done, in this order, when nobody knows how far the migration came.

    Never names a step that lets two copies run, whatever the unknown parts turn out to be; applied again to what it
    brought about, it says `done`.
    """
    match evidence.owner:
        case Owner.unknown:
            return (Step.wait,)
        case Owner.source:
            return _settle_at_source(evidence)
        case Owner.target:
            return _settle_at_target(evidence)
        case Owner.other:
            return _stop_both(evidence)


def _settle_at_source(evidence: Evidence) -> tuple[Step, ...]:
    match evidence.source, evidence.target:
        case Look.unknown, _:
            # Only the owner may decide; a copy at the target is paused or is not the owner's.
            return (Step.stop_target, Step.wait) if evidence.target is Look.running else (Step.wait,)
        case Look.running, target:
            return (Step.done,) if target is Look.gone else (Step.stop_target, Step.done)
        case Look.paused, Look.running:
            # Resumed without the config: must not be, and its memory went on. The owner's copy is the guest.
            return (Step.stop_target, *_resume(Step.resume_source, evidence), Step.done)
        case Look.paused, target:
            undo = () if target is Look.gone else (Step.stop_target,)
            return (*undo, *_resume(Step.resume_source, evidence), Step.done)
        case Look.gone, Look.paused if not evidence.is_end_known:
            # Its memory may be older than the disks.
            return (Step.stop_target, Step.start_source, Step.done)
        case Look.gone, Look.paused:
            # The only whole copy: bring the store after it.
            return (Step.move_config, *_resume(Step.resume_target, evidence), Step.done)
        case Look.gone, Look.running:
            # It should not run there, but it is the only one; the store follows before anybody starts another.
            return (Step.move_config, Step.done)
        case Look.gone, Look.gone:
            return (Step.start_source, Step.done)
        case _:
            # Gone here, unknown there: it may be whole and paused over there. Its memory is worth waiting for; HA and
            # people may end the wait by `stop_target` once that node is fenced, then `start_source`.
            return (Step.wait,)


def _settle_at_target(evidence: Evidence) -> tuple[Step, ...]:
    # The source gave up its copy when it moved the config; one that is still there must not run.
    before = () if evidence.source in (Look.gone, Look.unknown) else (Step.stop_source,)
    match evidence.target:
        case Look.running:
            return (*before, Step.done)
        case Look.paused:
            return (*before, *_resume(Step.resume_target, evidence), Step.done)
        case Look.gone if evidence.source is Look.unknown:
            # The source's process ended before the config could move, so that a start is safe.
            return (Step.start_target, Step.done)
        case Look.gone:
            return (*before, Step.start_target, Step.done)
        case Look.unknown:
            return (*before, Step.wait)


def _stop_both(evidence: Evidence) -> tuple[Step, ...]:
    stops = []
    if evidence.source not in (Look.gone, Look.unknown):
        stops.append(Step.stop_source)
    if evidence.target not in (Look.gone, Look.unknown):
        stops.append(Step.stop_target)
    return (*stops, Step.wait if Look.unknown in (evidence.source, evidence.target) else Step.done)


def _resume(step: Step, evidence: Evidence) -> tuple[Step, ...]:
    return (step,) if evidence.was_running else ()
