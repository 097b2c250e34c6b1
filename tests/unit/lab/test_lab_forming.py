"""What `up` reads from, and writes through, the commands that people use."""

import pytest

from kvorum.errors import CommandFailed
from lab.forming import find_token, with_shared_storage


def test_the_token_is_found_among_other_words() -> None:
    output = "Valid for 1 hour, once:\n\n  kv1.abc.def.0123\n\nRun on the new node ...\n"
    assert find_token(output) == "kv1.abc.def.0123"


def test_output_without_a_token_is_an_error_that_quotes_it() -> None:
    with pytest.raises(CommandFailed) as caught:
        find_token("no quorum\n")
    assert "no quorum" in caught.value.remedy


def test_the_shared_storage_is_added_once() -> None:
    before = "dir: local\n\tpath /var/lib/vz\n"
    after = with_shared_storage(before)
    assert after.startswith(before)
    assert "dir: shared\n\tpath /srv/shared\n" in after and "\tshared 1\n" in after
    assert with_shared_storage(after) == after


def test_an_empty_storage_cfg_gets_nothing_else() -> None:
    assert with_shared_storage("").startswith("dir: shared\n")
