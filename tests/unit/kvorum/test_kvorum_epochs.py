"""Epochs: ordered by number, told apart by their mark."""

from kvorum import epochs


def test_a_recovery_is_above_every_one_with_a_lower_number_whatever_the_marks() -> None:
    first = epochs.following(0, 0xFFFFFFFF)
    second = epochs.following(first, 1)
    assert 0 < first < second
    assert (epochs.number(0), epochs.number(first), epochs.number(second)) == (0, 1, 2)


def test_two_recoveries_with_one_number_are_rivals_and_nothing_else_is() -> None:
    one, other, later = epochs.following(0, 7), epochs.following(0, 8), epochs.following(1 << 32, 7)
    assert epochs.are_rivals(one, other)
    assert not epochs.are_rivals(one, one)
    assert not epochs.are_rivals(one, later)


def test_an_epoch_is_shown_with_its_mark_once_it_has_one() -> None:
    assert epochs.text(epochs.following(0, 0x4F2A)) == "1-00004f2a"
    assert epochs.text(epochs.following(0, 0)) == "1"
    assert epochs.text(0) == "0"
