"""What we build on is what we read, and its serialiser is nowhere in use."""

import ast
import hashlib
from pathlib import Path

import pysyncobj
import pytest

import clusterfs.raft
from clusterfs.raft.consensus import Consensus

HERE = Path(clusterfs.raft.__file__).parent
UPSTREAM = Path(pysyncobj.__file__).parent
# Private names of these files are overridden or used. When one changes: read the difference, go through
# docs/internals/raft-changes.md, run the simulation with many seeds, and only then write the new sum here.
READ = {
    "syncobj.py": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "journal.py": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "transport.py": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
    "node.py": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
    "poller.py": "f69ac749fb410670282fd9520c5805ffc684c8a5f762a927127753d9be8551e6",
}
OVERRIDDEN = {"__onMessageReceived", "__sendAppendEntries", "__doApplyCommand", "__connectedToAnyone"}


@pytest.mark.parametrize("name", sorted(READ))
def test_the_library_is_the_one_that_was_read(name: str) -> None:
    assert hashlib.sha256((UPSTREAM / name).read_bytes()).hexdigest() == READ[name]


def test_every_private_name_that_we_use_exists_upstream() -> None:
    upstream = (UPSTREAM / "syncobj.py").read_text()
    for path in HERE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "name", None) or ""
            if name.startswith("_SyncObj__"):
                assert f"self.{name.removeprefix('_SyncObj')}" in upstream, f"{path.name}: {name}"


def test_private_methods_are_overridden_by_few_and_named() -> None:
    found = {
        name.removeprefix("_SyncObj")
        for layer in Consensus.__mro__
        if layer.__module__.startswith("clusterfs.")
        for name, value in vars(layer).items()
        if name.startswith("_SyncObj__") and callable(value)
    }
    assert found == OVERRIDDEN


@pytest.mark.parametrize("path", sorted(HERE.glob("*.py")), ids=lambda path: path.name)
def test_no_source_names_a_serialiser_that_runs_what_it_reads(path: Path) -> None:
    forbidden = {"pickle", "cPickle", "dill", "marshal", "shelve"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [getattr(node, field, None) for field in ("id", "attr", "name", "module")]
        assert not {part for name in names if isinstance(name, str) for part in name.split(".")} & forbidden


def test_upstream_code_that_unpickles_is_never_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A whole cluster's life with the library's own loads and dumps taken away."""
    from raft_sim import Sim

    def forbidden(*_args: object, **_options: object) -> None:
        raise RuntimeError("the library's serialiser was called")

    for module in (pysyncobj.pickle, pysyncobj.syncobj.pickle, pysyncobj.serializer.pickle):
        for name in ("loads", "dumps", "load", "dump"):
            monkeypatch.setattr(module, name, forbidden, raising=False)
    sim = Sim(tmp_path, monkeypatch, seed=3)
    uids = sim.found(3)
    sim.run_until(lambda: sim.leader() is not None)
    for number in range(120):
        sim.propose(uids[number % 3], f"e{number}")
        sim.step()
    leader = sim.leader()
    assert leader is not None
    sim.crash(leader)
    sim.run(5)
    sim.heal()
    sim.require_nothing_lost()
    assert len(sim.acknowledged) > 100
