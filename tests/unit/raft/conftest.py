import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from raft_cluster import Authority, Cluster


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def cluster(tmp_path: Path, authority: Authority) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, authority)
    yield cluster
    cluster.stop_all()
