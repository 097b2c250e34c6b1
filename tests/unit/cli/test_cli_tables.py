"""Tables where there is no terminal, or a narrow one: whole words, for `awk` and for copying."""

import pytest

from kvorum.cli.output import print_table

UPID = "UPID:n1:00000004:000C21FE:6B03CCA1:vzcreate:101:root@pam:"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")


def test_nothing_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"node": "n1", "upid": UPID, "state": "ok"}], columns=("node", "upid", "state"))
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["NODE", "UPID", "STATE"]
    assert row.split() == ["n1", UPID, "ok"]


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"name": "[bold]db[/bold] :bug:"}], columns=("name",))
    assert "[bold]db[/bold] :bug:" in capsys.readouterr().out


def test_no_rows_leave_the_header(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([], columns=("id", "name"))
    assert capsys.readouterr().out.split() == ["ID", "NAME"]
