"""The table of `docs/internals/raft-changes.md` names, for each fault, a test that shows it and one that shows ours."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_fault_is_shown_on_the_library_and_not_on_ours() -> None:
    text = (ROOT / "docs/internals/raft-changes.md").read_text()
    table = text.partition("## Shown on the library as it comes")[2].partition("\n## ")[0]
    rows = [re.findall(r"`(test_\w+)`", line) for line in table.splitlines() if line.startswith("| ")][1:]
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    tests = set(re.findall(r"^(?:async )?def (test_\w+)", sources, re.MULTILINE))
    assert len(rows) >= 20
    assert {name for row in rows for name in row} <= tests
    assert all(row[0].startswith("test_stock_") and not row[-1].startswith("test_stock_") for row in rows)
    named = {name for row in rows for name in row}
    assert {name for name in tests if name.startswith("test_stock_")} <= named, "each is in the table"
