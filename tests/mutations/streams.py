"""Deliberate errors in how usage is counted, once, from Kafka into the windows. Their tests need services."""

from __future__ import annotations

from typing import Final

from tests.mutations.mutation import Mutation

STREAMS: Final = "tests/integration/streams"
APPLY: Final = f"{STREAMS}/test_apply.py"
ARRIVALS: Final = f"{STREAMS}/test_further_arrivals.py"
LOGS: Final = f"{STREAMS}/test_logs.py"
FAULTS: Final = f"{STREAMS}/test_faults.py"
LOSS_MODES: Final = f"{STREAMS}/test_loss_modes.py"

MUTATIONS: Final = (
    Mutation(
        "an identity may enter twice",
        "streams/ingest/apply.py",
        "        on conflict (key) do nothing\n        returning position",
        "        on conflict (key) do update set position = excluded.position\n        returning position",
        f"{APPLY}::test_a_resend_counts_once_whatever_its_timestamp",
    ),
    Mutation(
        "quotas are fed cached tokens as input",
        "streams/ingest/apply.py",
        "usage_source, completed_at, 1, input_tokens,",
        "usage_source, completed_at, 1, cache_hit_tokens,",
        f"{ARRIVALS}::test_the_feed_has_no_position_for_each_release_or_moved_correction",
    ),
    Mutation(
        "what is applied already is applied again",
        "streams/rules/chunks.py",
        "return records[max(0, next_position - first) :]",
        "return records",
        f"{APPLY}::test_the_part_of_a_chunk_that_is_applied_already_is_left_out",
    ),
    Mutation(
        "a position may be skipped",
        "streams/rules/chunks.py",
        "    found = [(next_position, first)] if first > next_position else []\n",
        "    found: list[tuple[int, int]] = []\n",
        f"{APPLY}::test_a_gap_is_refused_and_writes_nothing",
    ),
    Mutation(
        "the position is read without its lock",
        "streams/ingest/positions.py",
        ' where source = %s for no key update"',
        ' where source = %s"',
        f"{APPLY}::test_two_workers_with_the_same_chunk_at_the_same_time_apply_it_once",
    ),
    Mutation(
        "another log of the same name is taken for the one before",
        "streams/ingest/positions.py",
        "    if topic_id != source.topic_id:\n",
        "    if False:\n",
        f"{APPLY}::test_another_log_under_the_same_name_is_refused",
    ),
    Mutation(
        "the position moves in a transaction of its own",
        "streams/ingest/apply.py",
        "            positions.advance(self._connection, chunk, records, done)\n"
        '            self._checkpoint("advanced")\n        self._checkpoint("committed")\n',
        '            self._checkpoint("advanced")\n        self._checkpoint("committed")\n'
        "        positions.advance(self._connection, chunk, records, done)\n",
        f"{FAULTS}::test_a_worker_killed_between_any_two_steps_leaves_all_of_a_chunk_or_nothing",
    ),
    Mutation(
        "events' numbers are not noted",
        "streams/ingest/apply.py",
        "from stage where seq is not null group by replica_id, boot_id",
        "from stage where false group by replica_id, boot_id",
        f"{STREAMS}/test_completeness.py::test_a_missing_number_is_a_gap_and_a_late_event_closes_it",
    ),
    Mutation(
        "a superseded event stays in its window",
        "streams/ingest/supersedes.py",
        "        select -1 as sign, request_id,",
        "        select 0 as sign, request_id,",
        f"{ARRIVALS}::test_the_strongest_source_counts_whichever_came_first",
    ),
    Mutation(
        "what was refused is dropped",
        "streams/ingest/positions.py",
        "    if not refused:\n        return\n",
        "    return\n",
        f"{APPLY}::test_bad_messages_are_kept_whole_and_do_not_stop_the_others",
    ),
    Mutation(
        "a log that was cut, and has grown past the position, goes on",
        "streams/ingest/log_watch.py",
        "if epoch > state.leader_epoch:",
        "if False:",
        f"{LOGS}::test_after_another_leader_the_log_must_hold_what_was_applied",
    ),
    Mutation(
        "the bare reader reads what was aborted",
        "streams/workers/consumer.py",
        '"isolation.level": "read_committed"',
        '"isolation.level": "read_uncommitted"',
        f"{LOGS}::test_markers_and_what_was_aborted_are_passed_over_where_the_log_proves_that_nothing_else_is_there[bare]",
    ),
    Mutation(
        "the Faust reader reads what was aborted",
        "streams/workers/fetching.py",
        'consumer._isolation_level = "read_committed"',
        'consumer._isolation_level = "read_uncommitted"',
        f"{LOGS}::test_markers_and_what_was_aborted_are_passed_over_where_the_log_proves_that_nothing_else_is_there[faust]",
    ),
    Mutation(
        "a hole in a log is taken for what was aborted",
        "streams/workers/left_out.py",
        "batch.first if is_empty else batch.after",
        "after if is_empty else batch.after",
        "tests/unit/streams/test_left_out.py",
    ),
    Mutation(
        "whatever a log has is passed over",
        "streams/rules/chunks.py",
        "        if not _within(empty, expected, found):\n",
        "        if expected > found:\n",
        f"{LOGS}::test_a_gap_that_the_log_does_not_explain_stops_the_partition_until_a_person_passes_over_it",
    ),
    Mutation(
        "a worker has no name in its group",
        "streams/workers/worker.py",
        "            consumer_group_instance_id=self._instance,\n",
        "",
        f"{FAULTS}::test_a_worker_takes_its_place_again_under_its_own_name[faust]",
    ),
    Mutation(
        "a worker that waits for the database leaves its group",
        "streams/workers/fetching.py",
        "            cast(_PromptThread, self._thread).waits()\n",
        "",
        f"{FAULTS}::test_a_database_that_is_slow_and_then_stands_still",
    ),
    Mutation(
        "Faust acknowledges by itself",
        "streams/workers/worker.py",
        "schema=ChunkSchema(), acks=False)",
        "schema=ChunkSchema(), acks=True)",
        f"{LOSS_MODES}::test_an_exception_in_the_body_of_a_batch",
    ),
    Mutation(
        "what Kafka was told is taken for the position",
        "streams/ingest/ingestion.py",
        "            empty = self._empty(partition, holes(gap.expected, records))\n",
        "            empty = holes(gap.expected, records)\n",
        f"{LOSS_MODES}::test_a_hint_beyond_everything_is_not_believed[faust]",
    ),
)
