"""What an open for reading gets whose file changes in the midst of it; the kernel's part is played here."""

import errno

import pytest

from clusterfs import fusewire as wire
from clusterfs.cachedreads import CACHED, CachedReads
from clusterfs.fusewire import Call
from clusterfs.inodes import FileInode, Inodes
from clusterfs.openfiles import OpenFiles
from clusterfs.outcomes import Done
from clusterfs.state import State
from clusterfs.tree import File, put
from clusterfs.underway import NOTHING

PROGRAM = 1234


class Mounted:
    def __init__(self) -> None:
        self.state, self.now, self.version = State(), 100.0, 0
        self.inodes = Inodes()
        self.files = OpenFiles(root=lambda: self.state.root, propose=lambda _op: Done(1))
        self.reads = CachedReads(
            state=lambda: self.state,
            inodes=self.inodes,
            files=self.files,
            under_way=NOTHING,
            soon=lambda _call, _work: False,
            clock=lambda: self.now,
        )

    def commit(self, content: bytes) -> FileInode:
        """The inode that a lookup finds now."""
        self.version += 1
        file = File(content, self.version, 1, 0)
        self.state = State(root=put(self.state.root, ("f",), file))
        return self.inodes.public(self.inodes.root, "f", file)

    def open(self, inode: FileInode) -> bytes:
        return self.reads.open(Call(wire.OPEN, 1, inode.id, PROGRAM, b""), inode)

    def sent_back(self, inode: FileInode) -> None:
        with pytest.raises(OSError) as caught:
            self.open(inode)
        assert caught.value.errno == errno.ESTALE

    def content(self, answer: bytes) -> bytes:
        """Of what was opened past the kernel's pages."""
        handle = wire.handle(answer)
        assert handle != CACHED
        return self.files.read(self.files.get(handle), 100, 0)


def test_what_was_looked_up_in_the_midst_of_an_open_is_opened_even_if_it_has_changed_since() -> None:
    mounted = Mounted()
    first, second = mounted.commit(b"one"), mounted.commit(b"second")
    mounted.sent_back(first)
    mounted.reads.looked_up(PROGRAM, second)
    mounted.commit(b"the third")
    assert wire.handle(mounted.open(second)) == CACHED, "its size was told already"
    assert second.content == b"second"
    mounted.reads.release(second.id)
    # And that once only.
    mounted.sent_back(second)


def test_who_comes_again_without_a_name_to_look_up_gets_what_is_there_now() -> None:
    mounted = Mounted()
    first = mounted.commit(b"one")
    mounted.commit(b"second")
    mounted.sent_back(first)
    assert mounted.content(mounted.open(first)) == b"second"


def test_a_lookup_of_long_ago_or_of_another_version_does_not_count() -> None:
    mounted = Mounted()
    first, second = mounted.commit(b"one"), mounted.commit(b"second")
    mounted.sent_back(first)
    mounted.reads.looked_up(PROGRAM, second)
    mounted.commit(b"the third")
    mounted.now += 1.5
    assert mounted.content(mounted.open(second)) == b"the third"
    mounted.sent_back(first)
    mounted.reads.looked_up(PROGRAM, second)
    assert mounted.content(mounted.open(first)) == b"the third"


def test_a_lookup_of_a_thread_that_was_not_sent_back_is_not_remembered() -> None:
    mounted = Mounted()
    first = mounted.commit(b"one")
    mounted.reads.looked_up(PROGRAM, first)
    mounted.commit(b"second")
    mounted.sent_back(first)
