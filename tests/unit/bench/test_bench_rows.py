"""Figures become rows, and the peer's messages are what its servers take."""

import json

from bench import etcd
from bench.rows import Burst, Row, as_json, of_pairs, quantile, table


def test_the_ratio_is_the_median_of_the_pairs_and_not_of_the_medians() -> None:
    assert of_pairs([10.0, 200.0, 30.0], [10.0, 100.0, 10.0]) == 2.0


def test_a_burst_is_read_by_its_quantiles_and_its_rate() -> None:
    burst = Burst(tuple(number / 1000 for number in range(1, 101)), duration_s=5.0)
    assert (burst.rate, burst.p50_ms, burst.p99_ms, burst.worst_ms) == (20.0, 51.0, 100.0, 100.0)
    assert quantile([7.0], 0.99) == 7.0


def test_a_missed_bar_is_printed_as_missed_and_no_bar_as_nothing() -> None:
    rows = [
        Row("g", "fast", "1 ms", "etcd 2 ms", 2.0, ">= 1.0x", is_met=True),
        Row("g", "slow", "3 ms", "etcd 1 ms", 1 / 3, ">= 1.0x", is_met=False, figures={"ours_ms": 3.0}),
        Row("g", "beside", "4 ms"),
    ]
    lines = table(rows).splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["met", "MISSED", "ms"]
    assert "0.33x" in lines[3]
    back = json.loads(json.dumps(as_json(rows)))
    assert (back[1]["verdict"], back[1]["figures"]) == ("MISSED", {"ours_ms": 3.0})


def test_a_message_for_etcd_has_its_fields_by_number() -> None:
    found = etcd.fields(etcd.put(b"key", b"v" * 300))
    assert found == {1: b"key", 2: b"v" * 300}
    assert etcd.fields(etcd.get(b"key", serializable=True)) == {1: b"key", 7: 1}
    assert etcd.fields(etcd.get(b"key", serializable=False)) == {1: b"key"}
    assert etcd.fields(b"\x20" + etcd.varint(2**63 + 5)) == {4: 2**63 + 5}
