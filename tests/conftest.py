"""What all tests share: a picture of the machine before the first of them, for `tests/zz_after` to compare with."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from leftovers import Traces, observe

before = pytest.StashKey[Traces]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write golden files anew instead of comparing with them")


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[before] = observe()


@pytest.fixture(scope="session")
def traces_before(request: pytest.FixtureRequest) -> Traces:
    return request.config.stash[before]
