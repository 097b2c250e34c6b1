"""storage.cfg, resources.cfg and their like."""

import pytest

from kvorum.config.sections import Section, SectionConfig
from kvorum.errors import ConfigError, InvalidInput

FILE = """\
# what we store on

dir: local
\tpath /var/lib/vz
\tcontent images,rootdir vztmpl;iso
\tdisable

nfs: far
  server  10.0.0.1
  # a comment inside
  shared 0
vm: 100
\tstate started
\tmax_restart 3
"""


def test_a_file_that_nobody_changes_renders_as_it_was() -> None:
    assert SectionConfig.parse(FILE).render() == FILE


def test_sections_give_typed_access() -> None:
    config = SectionConfig.parse(FILE)
    assert [(s.type, s.id) for s in config] == [("dir", "local"), ("nfs", "far"), ("vm", "100")]
    local, far, vm = config
    assert local.require("path") == "/var/lib/vz"
    assert local.get_list("content") == ["images", "rootdir", "vztmpl", "iso"]
    assert local.get_bool("disable")
    assert not local.get_bool("shared")
    assert not far.get_bool("shared", default=True)
    assert far["server"] == "10.0.0.1"
    assert vm.get_int("max_restart", 1) == 3
    assert vm.get_int("max_relocate", 1) == 1


def test_a_missing_key_is_named_with_its_section() -> None:
    local = SectionConfig.parse("dir: local\n").find("local")
    assert local is not None
    with pytest.raises(ConfigError, match="dir 'local' lacks 'path'") as caught:
        local.require("path")
    assert "path" in caught.value.remedy


def test_changing_a_key_changes_one_line() -> None:
    config = SectionConfig.parse(FILE)
    vm = config.find("100", "vm")
    assert vm is not None
    assert config.with_section(vm.set("state", "stopped")).render() == FILE.replace("started", "stopped")
    assert config.with_section(vm.without("max_restart")).render() == FILE.replace("\tmax_restart 3\n", "")


def test_a_new_key_comes_after_the_last_one_of_its_section() -> None:
    config = SectionConfig.parse(FILE)
    local = config.find("local")
    assert local is not None
    assert config.with_section(local.set("shared", "1")).render() == FILE.replace(
        "\tdisable\n", "\tdisable\n\tshared 1\n"
    )


def test_a_new_section_comes_last_after_a_blank_line() -> None:
    config = SectionConfig.parse("ct: 101\n\tstate started")
    added = config.with_section(Section.of("vm", "100", {"state": "started"}))
    assert added.render() == "ct: 101\n\tstate started\n\nvm: 100\n\tstate started\n"
    assert added.without("101").render() == "vm: 100\n\tstate started\n"


def test_ids_may_repeat_over_types() -> None:
    config = SectionConfig.parse("vm: 100\n\nct: 100\n")
    found = config.find("100", "ct")
    assert found is not None
    assert found.type == "ct"
    assert len(config.without("100", "ct")) == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\tpath /x\n", 1),
        ("dir: local\npath /x\n", 2),
        ("dir: local\n\n\tpath /x\n", 3),
        ("dir: local\n\ndir: local\n", 3),
        ("dir:\n", 1),
        ("dir: a b\n", 1),
    ],
)
def test_a_line_that_is_nothing_is_named_in_the_error(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        SectionConfig.parse(text, "storage.cfg")
    assert caught.value.details == {"path": "storage.cfg", "line": str(line)}


@pytest.mark.parametrize(("key", "value"), [("path", "/x\ndir: evil"), ("pa th", "x"), ("", "x")])
def test_a_value_cannot_smuggle_in_another_line(key: str, value: str) -> None:
    with pytest.raises(InvalidInput):
        Section.of("dir", "local", {key: value})


@pytest.mark.parametrize(("type_", "id_"), [("dir", "a b"), ("", "x"), ("dir", ""), ("dir", "a\n\tpath /")])
def test_a_header_must_be_readable_again(type_: str, id_: str) -> None:
    with pytest.raises(InvalidInput):
        Section.of(type_, id_, {})
