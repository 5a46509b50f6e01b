"""Which positions of a log hold nothing, told from its batches."""

from __future__ import annotations

import pytest

from streams.workers.left_out import Batch, LeftOut, left_out

TX, OTHER = 7, 8
DATA = Batch(4, 7, TX, is_transactional=True)
ABORT = Batch(7, 8, TX, is_transactional=True, is_marker=True, aborts=True)
COMMIT = Batch(7, 8, TX, is_transactional=True, is_marker=True)


@pytest.mark.parametrize(
    ("batches", "aborted", "found"),
    [
        ([DATA, ABORT], [(TX, 4)], LeftOut(8, 1, 3)),
        ([DATA, ABORT, Batch(8, 9, TX, is_transactional=True)], [(TX, 4)], LeftOut(8, 1, 3)),  # the next transaction's
        ([DATA, COMMIT], [], LeftOut(4)),  # it was committed
        ([DATA, ABORT], [(OTHER, 4)], LeftOut(4)),  # another was aborted
        ([Batch(4, 5, -1), ABORT], [], LeftOut(4)),  # an ordinary message
        ([Batch(5, 7, TX, is_transactional=True), ABORT], [(TX, 5)], LeftOut(4)),  # nothing is known of position 4
        ([DATA, Batch(8, 9, TX, is_transactional=True, is_marker=True)], [(TX, 4)], LeftOut(7, 0, 3)),  # nor of 7
        ([Batch(2, 7, TX, is_transactional=True), ABORT], [(TX, 2)], LeftOut(8, 1, 3)),  # it begins within a batch
        ([Batch(4, 5, OTHER, is_transactional=True), DATA._replace(first=5), ABORT], [(TX, 5)], LeftOut(4)),
        ([], [], LeftOut(4)),
    ],
)
def test_positions_hold_nothing_as_far_as_markers_and_aborted_messages_cover_all_of_them(
    batches: list[Batch], aborted: list[tuple[int, int]], found: LeftOut
) -> None:
    assert left_out(batches, aborted, 4) == found
