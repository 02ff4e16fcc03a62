"""The model of cost at scale: its arithmetic on one case by hand, and docs/scale.md, which prints what it computes."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scale_model import BLOCK_S, Machine, Work, day_seconds, step_of, step_seconds, tables

WORK = Work(batch=100, lookups=3, pooled=2, dim=4, table_rows=1000, flops=50, parameters=60, log_bytes=10, read_s=0.01)
MACHINE = Machine(
    name="slate",
    flops_per_s=1000,
    memory_bytes_per_s=1e4,
    local_bytes_per_s=800,
    link_bytes_per_s=100,
    node_workers=2,
    hop_s=0.25,
    fixed_s=7,
    readers=2,
    storage_bytes_per_s=50,
    copy_bytes_per_s=500,
)


def test_a_step_by_hand() -> None:
    """Catches a factor that is lost: 4 workers on 2 nodes, row-wise."""
    parts = step_seconds(WORK, MACHINE, 4, "row_wise")
    assert parts["head"] == 100 * 50 / 1000
    # 300 lookups of 4 x (3 x 4 + 2) bytes, and partial sums of 4 x 100 rows of 2 x 4 floats, twice.
    assert parts["tables"] == pytest.approx((300 * 56 + 2 * 4 * 3200) / 1e4)
    # 3 x 3,200 bytes to 3 others, of which 2 are on the other node: 6,400 bytes at 100, 3,200 at 800; twice.
    assert parts["embeddings"] == pytest.approx(2 * 64)
    # 60 floats, three quarters of them: 180 bytes, two thirds of them to the other node; twice.
    assert parts["all_reduce"] == pytest.approx(2 * 1.2)
    # 300 ids of 8 bytes, three quarters of them: 1,800 bytes, two thirds of them to the other node.
    assert parts["ids"] == pytest.approx(12)
    assert parts["small_sum"] == 2 * 3 * 0.25
    assert parts["readers"] == 100 * 0.01 / 2
    assert parts["splitter"] == pytest.approx(400 / 65_536 * BLOCK_S)
    assert step_of(parts) == (pytest.approx(5 + 4.24 + 128 + 2.4 + 7), "embeddings")


def test_other_shardings_and_one_node() -> None:
    """Catches exchange that is counted on one worker, and a table-wise one that grows with the workers."""
    alone = step_seconds(WORK, MACHINE, 1, "row_wise")
    assert alone["embeddings"] == alone["all_reduce"] == alone["ids"] == alone["small_sum"] == 0
    two = step_seconds(WORK, MACHINE, 2, "row_wise")
    assert two["embeddings"] == pytest.approx(2 * 3200 / 800)
    assert step_seconds(WORK, MACHINE, 4, "table_wise")["embeddings"] == pytest.approx(2 * 3200 * 3 / 4 * 2 / 3 / 100)


def test_a_day_by_hand() -> None:
    """Catches a step too few at a day's end, and a part that runs beside the device's and is added to it."""
    slow = replace(MACHINE, hop_s=100.0)
    step, binds = step_of(step_seconds(WORK, slow, 4, "row_wise"))
    assert (step, binds) == (600.0, "small_sum")
    day = day_seconds(WORK, slow, 4, 65_536, "row_wise")
    assert day["steps"] == 164 * 600  # 65,536 rows in steps of 400
    assert day["stall_of_a_save"] == 1000 * 5 * 4 / 4 / 500
    assert day["requests"] == pytest.approx(655_360 / 2**26 + 2 * 4)
    assert day["reader_cores"] == pytest.approx(655.36)
    assert day["rows_per_s"] == pytest.approx(400 / 600)


def test_the_page_shows_what_the_model_computes() -> None:
    """Catches a page whose tables are of other constants."""
    page = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    missing = [text.partition("\n")[0] for text in tables() if text.partition("\n\n")[2] not in page]
    assert missing == []
