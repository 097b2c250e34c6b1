"""What an inode number of the mount stands for, and for how long."""

from clusterfs.inodes import Inodes
from clusterfs.tree import File


def test_an_inode_that_is_told_of_again_after_it_was_given_back_keeps_its_name() -> None:
    inodes = Inodes()
    file = File(b"x", 1, 1, 0)
    writer, reader = inodes.writer(inodes.root, "f", file), inodes.public(inodes.root, "f", file)
    for inode in (writer, reader):
        inodes.told(inode)
        inodes.forget([(inode.id, 1)])
        inodes.told(inode)
    assert inodes.writer(inodes.root, "f", file) is writer
    assert inodes.public(inodes.root, "f", file) is reader


def test_each_version_of_a_file_has_an_inode_of_its_own() -> None:
    inodes = Inodes()
    first = inodes.public(inodes.root, "f", File(b"one", 1, 1, 0))
    assert inodes.public(inodes.root, "f", File(b"one", 2, 1, 5)) is first, "only its time has changed"
    second = inodes.public(inodes.root, "f", File(b"two", 3, 1, 5))
    assert (second is first, first.is_gone, second.ino) == (False, True, first.ino)
    inodes.told(first)
    assert inodes.named(inodes.root, "f") is second, "what is gone does not come back to its name"


def test_what_was_moved_to_where_others_have_found_it_already_goes_by_its_new_name() -> None:
    """The kernel moves the inode that it knows; a writer who comes by it must be led to the file that is there."""
    inodes = Inodes()
    file = File(b"new", 5, 5, 0)
    known = inodes.public(inodes.root, "f.tmp", file)
    found = inodes.public(inodes.root, "f", file)
    inodes.moved(inodes.root, "f.tmp", inodes.root, "f", file)
    assert inodes.parts(known) == ("f",)
    assert (known.is_gone, found.is_gone) == (True, False)
    assert inodes.named(inodes.root, "f") is found
    assert inodes.named(inodes.root, "f.tmp") is None
