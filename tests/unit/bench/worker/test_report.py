"""Tables as people read them and as JSON keeps them."""

from __future__ import annotations

import json

from bench.worker.report import Column, Row, Section, Target, targets_markdown


def section() -> Section:
    rows = [
        Row("ours", [{"rate": 2_000.0}, {"rate": 4_000.0}, {"rate": 3_000.0}]),
        Row("stock", [{"rate": 1_000.0}]),
        Row("absent", failure="no compiler | at all"),
    ]
    return Section("Pong", [Column("rate", "requests/s"), Column("p99_ms", "ms p99", 1)], rows, "rate", "stock")


def test_a_table_shows_medians_and_their_ratio_to_one_row() -> None:
    expected = [
        "### Pong",
        "",
        "| what | requests/s | ms p99 | times stock |",
        "|---|---|---|---|",
        "| ours | 3,000 | - | 3.00 |",
        "| stock | 1,000 | - | 1.00 |",
        "| absent | left out: no compiler / at all |  |  |",
    ]
    assert expected == section().markdown().splitlines()


def test_a_table_without_what_it_compares_with_has_no_ratio() -> None:
    table = section()
    table.rows = table.rows[:1]
    assert "| what | requests/s | ms p99 |" == table.markdown().splitlines()[2]


def test_a_contender_that_was_not_asked_has_no_median() -> None:
    assert (3_000.0, None, None) == tuple(section().median(name, "rate") for name in ("ours", "absent", "unknown"))


def test_the_document_keeps_every_round() -> None:
    document = json.loads(json.dumps(section().document()))
    assert [[{"rate": 2_000.0}, {"rate": 4_000.0}, {"rate": 3_000.0}], [{"rate": 1_000.0}], []] == [
        row["rounds"] for row in document["rows"]
    ]


def test_a_target_says_whether_it_was_met() -> None:
    targets = [
        Target("a", ">= 1", "2", met=True),
        Target("b", ">= 1", "0", met=False),
        Target("c", ">= 1", "-", met=None),
    ]
    assert [
        "| a | >= 1 | 2 | met |",
        "| b | >= 1 | 0 | **missed** |",
        "| c | >= 1 | - | not seen |",
    ] == targets_markdown(targets).splitlines()[4:]
