"""The command line's promises: help everywhere with no cluster in sight, stable exit codes, remedies on standard error."""

import subprocess
import sys
from pathlib import Path

import pytest
import rich_click as click
from click.testing import CliRunner

from kvorum.cli.guest_verbs import parse_settings
from kvorum.cli.main import EXIT_CODES, LazyGroup, root
from kvorum.client.connection import _with_port
from kvorum.errors import InvalidInput

NOUNS = ["cluster", "node", "guest", "vm", "ct", "task", "ha", "store", "lab"]


def commands() -> list[list[str]]:
    """Every command with its path, as a person types it."""
    context = click.Context(root)
    found = []
    for noun in NOUNS:
        group = root.get_command(context, noun)
        assert isinstance(group, click.Group), noun
        found += [[noun, verb] for verb in group.list_commands(context)]
    return found


def kvorum(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "kvorum"
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(root, [*command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_the_root_lists_every_noun() -> None:
    assert isinstance(root, LazyGroup)
    assert set(NOUNS) <= set(root.list_commands(click.Context(root)))


def test_an_unreachable_agent_exits_with_7_and_says_what_to_check() -> None:
    result = kvorum("-c", "unix:/nonexistent/agent.sock", "guest", "list")
    assert result.returncode == EXIT_CODES["UNREACHABLE"] == 7
    assert "cannot reach the agent" in result.stderr
    assert "kvorum-agent" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_network_target_without_credentials_exits_with_2_and_says_how_to_get_some() -> None:
    result = kvorum("-c", "127.0.0.1:1", "guest", "list")
    assert result.returncode == 2
    assert "kvorum cluster credentials" in result.stderr


def test_an_unknown_verb_exits_with_2() -> None:
    assert kvorum("vm", "explode").returncode == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str) -> None:
    assert "kvorum" in kvorum("completion", shell).stdout


def test_completion_finds_nouns_and_verbs() -> None:
    program = Path(sys.executable).parent / "kvorum"
    environment = {"_KVORUM_COMPLETE": "bash_complete", "COMP_WORDS": "kvorum vm mig", "COMP_CWORD": "2"}
    result = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "migrate" in result.stdout


def test_settings_are_split_at_the_first_equal_sign() -> None:
    assert parse_settings(("memory=512", "net0=virtio,bridge=vmbr0")) == {
        "memory": "512",
        "net0": "virtio,bridge=vmbr0",
    }


@pytest.mark.parametrize("setting", ["memory", "=512", ""])
def test_what_is_no_setting_is_refused(setting: str) -> None:
    with pytest.raises(InvalidInput):
        parse_settings((setting,))


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("n1", "n1:8005"),
        ("n1:9", "n1:9"),
        ("10.0.0.1", "10.0.0.1:8005"),
        ("fd00::1", "[fd00::1]:8005"),
        ("[fd00::1]", "[fd00::1]:8005"),
        ("[fd00::1]:9", "[fd00::1]:9"),
    ],
)
def test_a_target_without_a_port_means_the_agents(target: str, address: str) -> None:
    assert _with_port(target) == address
