"""What `.history` holds, as a value: names, versions, and who may read them."""

import stat

from clusterfs.commands import Delete, Envelope, Mkdir, Move, Op, Touch, Write
from clusterfs.outcomes import Done
from clusterfs.past import Past, number
from clusterfs.settings import Settings
from clusterfs.state import State, apply
from clusterfs.tree import Parts

NODE = "11111111-1111-4111-8111-111111111111"
# 2026-11-25 19:00 UTC; the change with index n comes n seconds later.
EVENING = 1_795_633_200


class Told:
    def __init__(self, settings: Settings | None = None) -> None:
        self.state = State(settings=settings or Settings())
        self.past = Past()
        self.index = 0

    def do(self, *ops: Op) -> None:
        for op in ops:
            self.index += 1
            envelope = Envelope(op, node=NODE, time_ms=(EVENING + self.index) * 1000)
            self.state, result, _events = apply(self.state, envelope, self.index)
            assert isinstance(result, Done), (op, result)

    def listing(self, path: str = "") -> list[str] | None:
        found = self.past.listing(self.state.history, self.state.root, parts(path))
        return None if found is None else list(found)

    def content(self, path: str) -> bytes | None:
        return self.past.content(self.state.history, self.state.root, parts(path))

    def contents(self, path: str) -> list[bytes | None]:
        return [self.content(f"{path}/{name}") for name in self.listing(path) or ()]

    def mode(self, path: str) -> str:
        entry = self.past.entry(self.state.history, self.state.root, parts(path))
        assert entry is not None
        return stat.filemode(entry.mode)


def parts(path: str) -> Parts:
    return tuple(path.split("/")) if path else ()


def test_a_file_is_a_directory_of_its_versions_oldest_first() -> None:
    told = Told()
    told.do(Write("a", b"one"), Write("a", b"two"), Delete("a"), Write("a", b"three"))
    assert told.listing() == ["a"]
    assert told.listing("a") == ["1-20261125T190001Z", "2-20261125T190002Z", "4-20261125T190004Z"]
    assert told.contents("a") == [b"one", b"two", b"three"]
    entry = told.past.entry(told.state.history, told.state.root, parts("a/2-20261125T190002Z"))
    assert entry is not None
    assert (entry.size, entry.mtime, entry.is_directory) == (3, EVENING + 2, False)


def test_a_version_has_the_time_that_its_file_had() -> None:
    told = Told()
    told.do(Write("a", b"one"), Touch("a", 7))
    assert told.listing("a") == ["1-20261125T190001Z", "2-20261125T190002Z"]
    entry = told.past.entry(told.state.history, told.state.root, parts("a/2-20261125T190002Z"))
    assert entry is not None and entry.mtime == 7


def test_names_that_are_gone_are_listed_and_lead_somewhere() -> None:
    told = Told()
    told.do(Mkdir("d"), Mkdir("d/e"), Write("d/e/f", b"1"), Move("d", "g"), Delete("g", recursive=True))
    assert told.listing() == ["d", "g"]
    assert told.listing("d") == told.listing("g") == ["e"]
    assert told.listing("d/e") == told.listing("g/e") == ["f"]
    assert told.contents("d/e/f")[0] == b"1"
    # Where it came by a move, its past goes on under the old name.
    assert told.contents("g/e/f") == [b"1", b"1"]


def test_what_was_a_file_and_a_directory_shows_both() -> None:
    told = Told()
    told.do(Write("a", b"file"), Delete("a"), Mkdir("a"), Write("a/b", b"below"))
    assert told.listing("a") == ["b", "1-20261125T190001Z"]
    told.do(Mkdir("a/1-20261125T190001Z"))
    assert told.listing("a") == ["1-20261125T190001Z", "b"]
    assert told.mode("a/1-20261125T190001Z") == "dr-xr-xr-x"


def test_what_never_was_is_not_there() -> None:
    told = Told()
    told.do(Write("a", b"1"))
    for path in ("b", "a/b", "a/2-20261125T190002Z", "a/1-20261125T190001Z/x", "a/1"):
        assert told.past.entry(told.state.history, told.state.root, parts(path)) is None
        assert told.listing(path) is None
        assert told.content(path) is None
    assert told.content("a") is None


def test_nothing_is_writable_and_what_was_private_stays_private() -> None:
    told = Told()
    told.do(
        *(Mkdir(path, parents=True) for path in ("d", "priv", "nodes/n1/priv")),
        *(Write(path, b"secret") for path in ("priv/key", "nodes/n1/priv/key", "d/open")),
        Move("priv/key", "d/key"),
        Write("d/key", b"public"),
        Move("d/open", "priv/open"),
    )
    directories = ("", "d", "d/key", "priv", "priv/key", "nodes/n1", "nodes/n1/priv")
    assert [told.mode(path) for path in directories] == [
        "dr-xr-xr-x",
        "dr-xr-xr-x",
        "dr-xr-xr-x",
        "dr-x------",
        "dr-x------",
        "dr-xr-xr-x",
        "dr-x------",
    ]

    def modes(path: str) -> list[str]:
        return [told.mode(f"{path}/{name}") for name in told.listing(path) or ()]

    assert modes("nodes/n1/priv/key") == ["-r--------"]
    # Written below priv, moved out of it, and written again.
    assert modes("d/key") == ["-r--------", "-r--r-----", "-r--r-----"]
    assert set(modes("priv/key")) == set(modes("priv/open")) == {"-r--------"}
    assert modes("d/open") == ["-r--r-----"]


def test_what_the_history_forgets_is_no_longer_there() -> None:
    told = Told(Settings(history_changes=3))
    told.do(Write("gone", b"1"), Delete("gone"), Write("a", b"1"))
    assert told.listing() == ["a", "gone"]
    told.do(*(Write("a", b"%d" % number) for number in range(2, 200)))
    assert told.listing() == ["a"]
    assert told.listing("gone") is None
    assert told.contents("a") == [b"196", b"197", b"198", b"199"]


def test_a_file_that_no_record_speaks_of_has_the_version_that_it_has() -> None:
    told = Told(Settings(history_changes=0))
    told.do(Mkdir("d"), Write("d/f", b"1"))
    assert (told.listing(), told.listing("d"), told.listing("d/f")) == (["d"], ["f"], ["2-20261125T190002Z"])
    assert told.contents("d/f") == [b"1"]


def test_any_time_of_a_file_makes_a_name() -> None:
    told = Told(Settings(history_changes=0))
    told.do(Write("f", b"1"), Touch("f", 1 << 40))
    assert told.listing("f") == ["2-99991231T235959Z"]


def test_another_history_is_not_taken_for_the_same() -> None:
    told, other = Told(), Told()
    told.do(Write("a", b"1"), Write("b", b"2"))
    other.do(Write("a", b"1"), Write("c", b"3"), Write("c", b"4"))
    assert told.listing() == ["a", "b"]
    told.state = other.state
    assert told.listing() == ["a", "c"]
    assert told.contents("c") == [b"3", b"4"]


def test_numbers_are_steady_and_differ() -> None:
    paths = ["", "a", "a/b", "ab", "b/a", "priv"]
    assert len({number(parts(path)) for path in paths}) == len(paths)
    assert number(("a", "b")) == number(("a", "b")) < 1 << 63
