"""The house style that a machine can see."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("kvorum", "clusterfs", "ha", "agent", "lab", "bench")
FILES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    if (ROOT / name).is_file()
]
PYTHON = [path for path in FILES if path.suffix == ".py"]
SOURCES = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in ROOMS]
PACKAGES = [path for path in SOURCES if path.name == "__init__.py"]

MAX_LINES = 700
MAX_FUNCTION_LINES = 70
# The standard library's serialiser, which runs what it reads. Spelled so that this file does not contain the word.
SERIALISER = "pick" + "le"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(ROOMS)


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_files_and_functions_are_short_enough_to_read(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("path", PACKAGES, ids=name)
def test_every_package_says_why_it_exists_and_what_stays_out(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(text.split()) >= 15, "a package's docstring says why it exists and what stays out of it"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_unpickles(path: Path) -> None:
    """No import, name, attribute or string of the source speaks of it; comments and docstrings may."""
    tree = ast.parse(path.read_text())
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        words = [getattr(node, field, None) for field in ("id", "attr", "name", "module")]
        if isinstance(node, ast.Constant) and id(node) not in documented:
            words.append(node.value)
        assert not any(isinstance(word, str) and SERIALISER in word.lower() for word in words), ast.dump(node)[:200]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_shell_and_no_loose_ends(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"shell\s*=\s*True|os\.system\(|os\.popen\(", text)
    assert not re.search(r"#.*\b(TODO|FIXME|XXX|HACK)\b", text)


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = sorted(int(path.name[:4]) for path in FILES if path.parent == ROOT / "docs" / "adr")
    assert numbers == list(range(1, len(numbers) + 1))


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for path in (path for path in FILES if path.suffix == ".md"):
        for target in re.findall(
            r"`((?:docs|proto|tests|kvorum|clusterfs|ha|agent|lab|vagrant)/[\w./-]+)`", path.read_text()
        ):
            if not target.startswith("kvorum/v1") and not (ROOT / target).exists():
                broken.append(f"{name(path)}: {target}")
    assert broken == []
