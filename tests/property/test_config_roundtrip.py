"""Any bytes parse to a value or a ConfigError; what parses renders back as it was; what was set reads back."""

import string

from hypothesis import given
from hypothesis import strategies as st

from kvorum.config.guest import GuestConfig
from kvorum.config.properties import parse_properties, render_properties
from kvorum.config.sections import Section, SectionConfig
from kvorum.config.sizes import GIB, parse_size, render_size
from kvorum.errors import ConfigError

KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=20)
SCRAPS = st.sampled_from(
    [
        "cores: 2",
        "#note %3A",
        "[snap]",
        "[PENDING]",
        "lxc.cap.drop = x",
        "",
        "  ",
        "dir: local",
        "\tpath /x",
        " shared",
        "=",
        "é",
    ]
)
NEARLY_VALID = st.tuples(st.lists(SCRAPS, max_size=8), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans()).map(
    lambda t: t[1].join(t[0]) + (t[1] if t[2] else "")
)


@given(st.one_of(st.binary(max_size=200), NEARLY_VALID.map(str.encode)))
def test_any_bytes_are_a_guest_config_that_renders_as_it_was_or_a_config_error(content: bytes) -> None:
    try:
        config = GuestConfig.parse(content, "x.conf")
    except ConfigError as error:
        assert error.details["path"] == "x.conf"
        assert int(error.details["line"]) >= 1
        return
    assert config.render().encode() == content
    assert GuestConfig.parse(config.render()) == config


@given(st.one_of(st.binary(max_size=200), NEARLY_VALID.map(str.encode)))
def test_any_bytes_are_a_section_config_that_renders_as_it_was_or_a_config_error(content: bytes) -> None:
    try:
        config = SectionConfig.parse(content, "x.cfg")
    except ConfigError as error:
        assert error.details["path"] == "x.cfg"
        assert int(error.details["line"]) >= 1
        return
    assert config.render().encode() == content
    assert SectionConfig.parse(config.render()) == config


@given(NEARLY_VALID, st.lists(st.tuples(KEYS, VALUES), max_size=5), st.lists(KEYS, max_size=2), st.booleans())
def test_a_changed_guest_config_reads_back_as_it_was_changed(
    text: str, changes: list[tuple[str, str]], removed: list[str], with_snapshot: bool
) -> None:
    try:
        config = GuestConfig.parse(text)
    except ConfigError:
        config = GuestConfig()
    for key, value in changes:
        config = config.set(key, value)
        assert config[key] == value.strip(" \t\r")
    config = config.without(*removed)
    if with_snapshot:
        config = config.with_section("snap1", dict(changes))
    again = GuestConfig.parse(config.render())
    assert again == config
    assert dict(again) == dict(config)
    assert not set(removed) & set(again)


@given(st.text(max_size=40))
def test_a_description_reads_back(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    config = GuestConfig.parse("cores: 1\n").with_description(text)
    assert GuestConfig.parse(config.render()).description == text
    assert config["cores"] == "1"


@given(NEARLY_VALID, st.dictionaries(KEYS, VALUES, max_size=4), st.dictionaries(KEYS, VALUES, max_size=4))
def test_changed_sections_read_back_as_they_were_changed(
    text: str, first: dict[str, str], second: dict[str, str]
) -> None:
    try:
        config = SectionConfig.parse(text)
    except ConfigError:
        config = SectionConfig()
    config = config.with_section(Section.of("nfs", "one", first)).with_section(Section.of("nfs", "two", second))
    config = config.with_section(Section.of("nfs", "one", second))
    again = SectionConfig.parse(config.render())
    assert again == config
    found = again.find("one", "nfs")
    assert found is not None
    assert dict(found) == {key: value.strip(" \t\r") for key, value in second.items()}
    assert SectionConfig.parse(again.without("one").render()).find("one") is None


@given(st.dictionaries(KEYS, VALUES, max_size=6), st.booleans())
def test_properties_read_back(properties: dict[str, str], with_default: bool) -> None:
    default_key = next(iter(properties), "") if with_default else ""
    text = render_properties(properties, default_key=default_key)
    assert parse_properties(text, default_key=default_key) == properties


@given(st.text(string.printable, max_size=30))
def test_any_text_is_properties_or_a_config_error(text: str) -> None:
    try:
        properties = parse_properties(text, default_key="volume")
    except ConfigError:
        return
    assert parse_properties(render_properties(properties, default_key="volume"), default_key="volume") == properties


@given(st.integers(min_value=0, max_value=2**63))
def test_sizes_read_back(size_bytes: int) -> None:
    assert parse_size(render_size(size_bytes)) == size_bytes


@given(st.integers(min_value=1, max_value=9999))
def test_a_bare_number_counts_the_unit_of_its_place(number: int) -> None:
    assert parse_size(str(number), unit=GIB) == number * GIB
    assert parse_size(str(number)) == number
