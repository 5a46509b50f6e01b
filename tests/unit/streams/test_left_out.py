"""Which positions of a log hold nothing, told from its batches."""

from __future__ import annotations

import pytest

from streams.ingest.log_gaps import Nothing
from streams.rules.chunks import Ranges
from streams.workers.left_out import Batch, LeftOut, left_out

TX, OTHER = 7, 8
DATA = Batch(4, 7, TX, is_transactional=True)
ABORT = Batch(7, 8, TX, is_transactional=True, is_marker=True, aborts=True)
COMMIT = Batch(7, 8, TX, is_transactional=True, is_marker=True)
MARKER_AT_8 = Batch(8, 9, TX, is_transactional=True, is_marker=True)


def walked(after: int, ranges: Ranges = (), markers: int = 0, aborted: int = 0) -> LeftOut:
    return LeftOut(after, Nothing(list(ranges), markers, aborted))


def disproved(after: int, ranges: Ranges = (), markers: int = 0, aborted: int = 0) -> LeftOut:
    return walked(after, ranges, markers, aborted)._replace(is_disproved=True)


@pytest.mark.parametrize(
    ("batches", "aborted", "found"),
    [
        ([DATA, ABORT], [(TX, 4)], walked(8, [(4, 8)], 1, 3)),
        # The next transaction's
        ([DATA, ABORT, Batch(8, 9, TX, is_transactional=True)], [(TX, 4)], disproved(8, [(4, 8)], 1, 3)),
        ([DATA, COMMIT], [], disproved(4)),  # it was committed
        ([DATA, ABORT], [(OTHER, 4)], disproved(4)),  # another was aborted
        ([Batch(4, 5, -1), ABORT], [], disproved(4)),  # an ordinary message
        ([Batch(5, 7, TX, is_transactional=True), ABORT], [(TX, 5)], disproved(4)),  # nothing is known of position 4
        ([DATA, MARKER_AT_8], [(TX, 4)], disproved(7, [(4, 7)], 0, 3)),  # nor of 7
        ([Batch(2, 7, TX, is_transactional=True), ABORT], [(TX, 2)], walked(8, [(4, 8)], 1, 3)),  # begins in a batch
        ([Batch(4, 5, OTHER, is_transactional=True), DATA._replace(first=5), ABORT], [(TX, 5)], disproved(4)),
        ([], [], walked(4)),
    ],
)
def test_positions_hold_nothing_as_far_as_markers_and_aborted_messages_cover_all_of_them(
    batches: list[Batch], aborted: list[tuple[int, int]], found: LeftOut
) -> None:
    """What may be a message ends the walk, for it lies in a hole."""
    assert left_out(batches, aborted, [(4, 9)], LeftOut(4)) == found


def test_all_holes_of_a_chunk_are_told_in_one_walk_over_the_messages_between_them() -> None:
    """Over two answers of the broker; a marker and what is aborted behind it are one range."""
    message = Batch(5, 7, TX, is_transactional=True)
    first = left_out(
        [Batch(3, 5, TX, is_transactional=True, is_marker=True), message], [], [(4, 5), (7, 11)], LeftOut(4)
    )
    assert first == walked(7, [(4, 5)], 1)
    aborted = Batch(8, 10, OTHER, is_transactional=True)
    abort = Batch(10, 11, OTHER, is_transactional=True, is_marker=True, aborts=True)
    second = left_out([COMMIT, aborted, abort], [(OTHER, 8)], [(4, 5), (7, 11)], first)
    assert second == walked(11, [(4, 5), (7, 11)], 3, 2)
