"""Entries with most of their commands on disk are the same list as with all of them in memory."""

from hypothesis import given, settings
from hypothesis import strategies as st

from clusterfs.raft.entries import Entries, Span
from clusterfs.raft.messages import Entry

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 60)),
        st.tuples(st.just("cut"), st.integers(0, 30)),
        st.tuples(st.just("drop"), st.integers(0, 30)),
        st.tuples(st.just("sync"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, memory_bytes=st.integers(1, 200))
def test_they_behave_like_a_list_and_stay_within_their_memory(steps: list[tuple[str, int]], memory_bytes: int) -> None:
    disk: list[bytes] = []
    entries = Entries(index=3, term=1, memory_bytes=memory_bytes, fetch=lambda place, _size, _index, _term: disk[place])
    model: list[Entry] = [(b"\x01", 3, 1)]
    for count, (step, number) in enumerate(steps):
        match step:
            case "append":
                command = bytes([count]) * number
                entries.append(command, count + 1)
                model.append((command, model[-1][1] + 1, count + 1))
            case "cut" if len(model) > 1:
                at = 1 + number % (len(model) - 1)
                entries.cut(model[at][1])
                del model[at:]
            case "drop":
                at = number % len(model)
                entries.drop(model[at][1])
                model[: at + 1] = [(b"\x01", model[at][1], model[at][2])]
            case "sync":
                for command, index, _ in model[1:]:
                    entries.place(index, len(disk))
                    disk.append(command)
                entries.evict()
                largest = max((len(entry[0]) for entry in model[1:]), default=0)
                assert entries.resident_bytes <= max(memory_bytes, largest)
        first, last = model[0][1], model[-1][1]
        assert (entries.base_index, entries.last_index, entries.last_term) == (first, last, model[-1][2])
        assert list(Span(entries, first, last + 1)) == model
        assert [entries.term_at(index) for index in range(first - 1, last + 2)] == [None, *(e[2] for e in model), None]
        assert entries.size_bytes == sum(len(entry[0]) for entry in model[1:])
        assert all(entries.size_at(entry[1]) == len(entry[0]) for entry in model[1:])


def test_what_is_not_on_disk_yet_stays_in_memory() -> None:
    entries = Entries(memory_bytes=10)
    for _ in range(1, 100):
        entries.append(b"x" * 10, 1)
        entries.evict()
    assert entries.resident_bytes == 990
    assert entries.between(1, 100)[0] == (b"x" * 10, 1, 1)


def test_a_span_is_a_sequence_that_reads_late() -> None:
    entries = Entries()
    for _ in range(1000):
        entries.append(b"x", 1)
    span = Span(entries, 0, 1001)
    assert len(span) == 1001 and span[-1] == (b"x", 1000, 1)
    assert [entry[1] for entry in span[998:]] == [998, 999, 1000]
    assert not span[1001:]
