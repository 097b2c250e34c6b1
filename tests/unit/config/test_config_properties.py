"""Property strings, lists and sizes."""

import pytest

from kvorum.config.properties import (
    parse_bool,
    parse_int,
    parse_properties,
    render_properties,
    split_list,
)
from kvorum.config.sizes import GIB, MIB, NewVolume, parse_new_volume, parse_size, render_size
from kvorum.errors import ConfigError

TABLE = [
    ("local:4,size=4G,format=qcow2", {"volume": "local:4", "size": "4G", "format": "qcow2"}),
    ("size=4G, volume=local:4 ,,", {"size": "4G", "volume": "local:4"}),
    ("", {}),
    ('a,comment="x, \\"y\\" \\\\",b=1', {"volume": "a", "comment": 'x, "y" \\', "b": "1"}),
    ('comment=5" disk,b=1', {"comment": '5" disk', "b": "1"}),
    ('a=b="x,c=1', {"a": 'b="x', "c": "1"}),
    ("args=a=b", {"args": "a=b"}),
    ("empty=", {"empty": ""}),
    ('"with=equals"', {"volume": "with=equals"}),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_property_strings_mean_what_people_write(text: str, expected: dict[str, str]) -> None:
    assert parse_properties(text, default_key="volume") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=1,a=2", "a is given twice"),
        ("x,y", "volume is given twice"),
        ('a="x', "not closed"),
        ("=1", "lacks its key"),
    ],
)
def test_a_broken_property_string_says_why(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_properties(text, default_key="volume", field="scsi0")
    assert caught.value.field == "scsi0"


def test_without_a_default_every_part_needs_its_key() -> None:
    with pytest.raises(ConfigError, match="lacks its key"):
        parse_properties("local:4")


def test_the_default_key_is_rendered_first_and_without_its_name() -> None:
    assert render_properties({"size": "4G", "volume": "local:4"}, default_key="volume") == "local:4,size=4G"
    assert render_properties({"a": "x,y"}) == 'a="x,y"'


def test_lists_are_separated_by_anything_usual() -> None:
    assert split_list("images, rootdir;iso  vztmpl,") == ["images", "rootdir", "iso", "vztmpl"]


def test_booleans_and_numbers_are_strict() -> None:
    assert [parse_bool(word) for word in ("1", "on", "Yes", "true")] == [True] * 4
    assert [parse_bool(word) for word in ("0", "off", "No", "false")] == [False] * 4
    assert parse_int(" 7 ", minimum=1, maximum=7) == 7
    for call in (lambda: parse_bool("maybe"), lambda: parse_int("7x"), lambda: parse_int("8", maximum=7)):
        with pytest.raises(ConfigError):
            call()


@pytest.mark.parametrize(
    ("text", "unit", "size_bytes"),
    [
        ("4", 1, 4),
        ("4", GIB, 4 * GIB),
        ("4G", MIB, 4 * GIB),
        ("512M", 1, 512 * MIB),
        ("0.5g", 1, GIB // 2),
        ("1.5", 1, 2),
    ],
)
def test_a_suffix_wins_over_the_unit_of_the_place(text: str, unit: int, size_bytes: int) -> None:
    assert parse_size(text, unit=unit) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1", "4GB", "4 G x", "1e3", "٤"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text, field="size")


def test_sizes_are_rendered_with_the_largest_unit_that_loses_nothing() -> None:
    assert [render_size(n) for n in (0, 1000, 1024, 4 * GIB, 1536 * MIB)] == ["0", "1000", "1K", "4G", "1536M"]


def test_a_wish_for_a_volume_is_told_from_a_volume() -> None:
    assert parse_new_volume("local:4") == NewVolume("local", 4 * GIB)
    assert parse_new_volume("local:0.5") == NewVolume("local", GIB // 2)
    assert parse_new_volume("local:512M") == NewVolume("local", 512 * MIB)
    for text in ("local:100/vm-100-disk-0.raw", "none", "local:", "/dev/sda", "local:vm-100-disk-0"):
        assert parse_new_volume(text) is None
