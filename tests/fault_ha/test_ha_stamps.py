"""The checker of stamps finds what it is there for."""

from ha_stamps import Entry, Journal, faults, new_boot, parse, stamps

A, B = "a" * 16, "b" * 16


def history(*told: str) -> list[Entry]:
    """`n1 a 3`: boot a on n1 stamps count 3. `n1`: another write of n1."""
    entries = []
    for time, line in enumerate(told):
        node, *stamp = line.split()
        boot, count = (stamp[0] * 16, int(stamp[1])) if stamp else ("", 0)
        entries.append(Entry(float(time), node, 100, boot, count))
    return entries


def test_boots_that_follow_each_other_are_well() -> None:
    assert faults(history("n1 a 2", "n1 a 4", "n2", "n2 b 2", "n2 b 4", "n1", "n1 c 2")) == []
    assert faults([]) == []


def test_one_late_write_of_an_earlier_boot_is_found() -> None:
    (told,) = faults(history("n1 a 2", "n2 b 2", "n1 a 4", "n2 b 4"))
    assert told == (
        "guest 100: boot aaaaaaaa wrote count 4 on n1 at 2.000 s although it was over: "
        "guest 100: boot bbbbbbbb wrote count 2 on n2 at 1.000 s"
    )


def test_each_write_of_two_boots_that_interleave_is_found() -> None:
    assert len(faults(history("n1 a 2", "n2 b 2", "n1 a 4", "n2 b 4", "n1 a 6"))) == 2


def test_a_boot_does_not_come_back_after_others() -> None:
    assert len(faults(history("n1 a 2", "n2 b 2", "n3 c 2", "n1 a 4"))) == 1


def test_two_boots_on_one_node_may_not_interleave_either() -> None:
    assert len(faults(history("n1 a 2", "n1 b 2", "n1 a 4"))) == 1


def test_a_second_copy_is_found_before_its_first_stamp() -> None:
    assert len(faults(history("n1 a 2", "n2", "n1 a 4"))) == 1
    assert faults(history("n1 a 2", "n1", "n1 a 4")) == []
    assert faults(history("n1 a 2", "n2", "n2 b 2")) == []


def test_a_count_that_goes_back_was_written_late() -> None:
    assert len(faults(history("n1 a 4", "n1 a 2"))) == 1
    assert faults(history("n1 a 4", "n1 a 4")) == [], "a kernel may write a block again"


def test_a_migrated_boot_goes_on_elsewhere_but_no_count_is_written_by_both() -> None:
    assert faults(history("n1 a 2", "n2", "n2 a 4", "n2 a 6")) == []
    assert len(faults(history("n1 a 2", "n2 a 2"))) == 1
    assert len(faults(history("n1 a 2", "n2 a 4", "n1 a 4"))) == 1


def test_guests_are_apart() -> None:
    other = [Entry(0.5, "n2", 101, B, 2), Entry(1.5, "n2", 101, B, 4)]
    entries = sorted([*history("n1 a 2", "n1 a 4"), *other], key=lambda entry: entry.time_s)
    assert faults(entries) == []
    assert len(stamps(entries, 101)) == 2


def test_a_new_boot_is_one_that_had_not_written_before() -> None:
    entries = history("n1 a 2", "n1 a 4", "n2", "n2 b 2", "n2 b 4")
    assert new_boot(entries, 100, 0.5) == Entry(3.0, "n2", 100, B, 2)
    assert new_boot(entries, 100, 3.5) is None
    assert new_boot(entries, 101, 0.0) is None


def test_the_journal_knows_stamps_in_whatever_is_written_and_tells_other_writers_once() -> None:
    lines: list[str] = []
    journal = Journal(lines.append)
    container = b"STAMP 01234567-89ab-cdef-0123-456789abcdef COUNT 7\n"
    journal.note(1.0, "n1", "/images/100/vm-100-disk-0.raw", f"BOOT {A} COUNT 2\n".encode().ljust(512, b"\0"))
    journal.note(2.0, "n2", "/images/100/vm-100-disk-0.raw", b"journal")
    journal.note(3.0, "n2", "/images/100/vm-100-disk-0.raw", b"journal")
    journal.note(4.0, "n1", "/images/101/subvol-101-disk-0.subvol/stamp", bytes(4096) + container + bytes(4000))
    journal.note(5.0, "n1", "/template/cache/busybox.tar.gz", container)
    assert parse("".join(lines) + "6.0 n1 10") == [
        Entry(1.0, "n1", 100, A, 2),
        Entry(2.0, "n2", 100),
        Entry(4.0, "n1", 101, "01234567-89ab-cdef-0123-456789abcdef", 7),
    ]


def test_what_the_container_prints_is_no_stamp() -> None:
    lines: list[str] = []
    Journal(lines.append).note(1.0, "n1", "/images/101/d.raw", b"BOOT 01234567-89ab-cdef-0123-456789abcdef COUNT 7\n")
    assert lines == ["1.000000 n1 101\n"]
