"""When a collection is to be ingested: the decision alone, over made-up sources, clocks and runs."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rag_pipeline.core.files import SourceFile
from rag_pipeline.core.stages.raw_files import Known
from rag_pipeline.core.watching import (
    LONGEST_PAUSE,
    REMOTE_SECONDS,
    REQUESTS_PER_TICK,
    Changes,
    Cursor,
    Seen,
    Watch,
    compare,
    decide,
    digest_of,
    pause,
)

NOW = 1_800_000_000.0
ADDED = Changes(added=3, changed=1)


def seen(digest: str | None = "d1", **fields: object) -> Seen:
    return Seen(**{"settings": "s1", "digest": digest, **fields})


def tick(cursor: Cursor, now: float = NOW, **fields: object) -> tuple[list[str], Cursor]:
    """Why runs of one collection are asked for."""
    requests, cursor = decide(cursor, {"docs": seen(**fields)}, now)
    return [request.why for request in requests], cursor


def test_what_was_added_and_changed_is_asked_for_once():
    why, cursor = tick(Cursor(), changes=ADDED)
    assert why == ["3 added, 1 changed"]
    assert tick(cursor)[0] == []
    assert tick(cursor, digest="d2", changes=Changes(removed=2))[0] == ["2 removed"]


def test_a_listing_that_the_manifest_has_already_needs_no_run():
    why, cursor = tick(Cursor(), changes=Changes())
    assert (why, cursor.watches["docs"].digest) == ([], "d1")


def test_one_run_at_a_time_and_another_after_it():
    _, cursor = tick(Cursor(), changes=ADDED)
    why, cursor = tick(cursor, digest="d2", changes=ADDED, busy=True)
    assert why == []
    assert tick(cursor, digest="d2", changes=ADDED, ended="success")[0] == ["3 added, 1 changed"]


def test_a_young_file_waits_and_holds_up_no_other():
    why, cursor = tick(Cursor(), changes=Changes(young=1))
    assert (why, cursor.watches["docs"].digest) == ([], "")
    why, cursor = tick(cursor, changes=Changes(added=1, young=1))
    assert (why, cursor.watches["docs"].digest) == (["1 added"], "")
    assert tick(cursor, changes=Changes(added=1))[0] == ["1 added"]


def test_changed_settings_are_asked_for_but_not_those_first_seen():
    _, cursor = tick(Cursor(), changes=Changes())
    assert tick(cursor)[0] == []
    assert tick(cursor, settings="s2")[0] == ["settings changed"]
    assert tick(tick(cursor, settings="s2")[1], settings="s2")[0] == []


def test_a_failed_run_is_asked_for_again_later_and_later():
    _, cursor = tick(Cursor(), changes=ADDED)
    now, waited = NOW, []
    for _ in range(10):
        why, cursor = tick(cursor, now, ended="failure")
        assert why == []
        failed = now
        while not why:
            now += 5
            why, cursor = tick(cursor, now)
        waited.append(now - failed)
    assert waited[:3] == [30, 60, 120]
    assert waited[-1] == LONGEST_PAUSE
    assert why == ["the last 10 runs failed"]
    assert tick(tick(cursor, now, ended="success")[1], now + LONGEST_PAUSE * 2)[0] == []


def test_a_canceled_run_is_left_alone_until_something_changes():
    _, cursor = tick(Cursor(), changes=ADDED)
    _, cursor = tick(cursor, ended="canceled")
    assert tick(cursor, NOW + LONGEST_PAUSE * 2)[0] == []
    assert tick(cursor, digest="d2", changes=ADDED)[0] == [str(ADDED)]


def test_a_failing_source_backs_off_and_comes_back():
    _, cursor = tick(Cursor(), changes=Changes())
    why, cursor = tick(cursor, digest=None, error="cannot list it")
    assert (why, cursor.reasons()) == ([], ["cannot list it"])
    assert not cursor.is_due("docs", NOW + 29)
    assert cursor.is_due("docs", NOW + 30)
    # Not looked at meanwhile: nothing is known to have changed, and nothing is asked for.
    assert tick(cursor, NOW + 5, digest=None, settings="s2")[0] == []
    why, cursor = tick(cursor, NOW + 30, digest="d2", changes=ADDED)
    assert (why, cursor.reasons()) == ([str(ADDED)], [])


def test_a_remote_source_is_listed_at_an_interval_of_its_own():
    _, cursor = tick(Cursor(), remote=True, changes=Changes())
    assert not cursor.is_due("docs", NOW + REMOTE_SECONDS - 1)
    assert cursor.is_due("docs", NOW + REMOTE_SECONDS)
    assert Cursor().is_due("docs", NOW)


def test_a_tick_asks_for_so_many_and_the_next_for_the_others():
    many = {f"c{number:03}": seen(changes=ADDED) for number in range(REQUESTS_PER_TICK + 7)}
    first, cursor = decide(Cursor(), many, NOW)
    covered = {name: replace(each, changes=None) for name, each in many.items()}
    second, _ = decide(
        cursor, covered | {name: many[name] for name in many.keys() - {r.collection for r in first}}, NOW
    )
    assert (len(first), len(second)) == (REQUESTS_PER_TICK, 7)
    assert {request.collection for request in first + second} == many.keys()


def test_removed_and_made_again_a_collection_repeats_no_key():
    (first,), cursor = decide(Cursor(), {"docs": seen(changes=ADDED)}, NOW)
    _, cursor = decide(cursor, {}, NOW + 5)
    (second,), _ = decide(cursor, {"docs": seen(changes=ADDED)}, NOW + 10)
    assert first.key != second.key


# Properties

seens = st.builds(
    Seen,
    settings=st.sampled_from(["s1", "s2"]),
    remote=st.booleans(),
    busy=st.booleans(),
    ended=st.sampled_from([None, "success", "failure", "canceled"]),
    digest=st.sampled_from([None, "d1", "d2", "d3"]),
    changes=st.sampled_from([None, Changes(), Changes(young=1), ADDED, Changes(removed=1, young=1)]),
    error=st.sampled_from([None, None, None, "cannot list it"]),
)
histories = st.lists(st.tuples(st.integers(1, 5000), st.dictionaries(st.sampled_from("abc"), seens)), max_size=12)


@given(histories)
def test_whatever_happens_keys_are_new_and_nothing_busy_is_asked_for(history):
    cursor, now, keys = Cursor(), NOW, []
    for seconds, collections in history:
        now += seconds
        requests, following = decide(cursor, collections, now)
        again, _ = decide(Cursor.from_json(cursor.to_json()), collections, now + 0.5)
        assert [r.key for r in again if r.collection in cursor.watches] == [
            r.key for r in requests if r.collection in cursor.watches
        ]
        assert not {request.collection for request in requests} & {n for n, each in collections.items() if each.busy}
        assert set(following.watches) == set(collections)
        keys += [request.key for request in requests]
        cursor = following
    assert len(keys) == len(set(keys))


@given(histories)
def test_one_collection_never_depends_on_another(history):
    together, alone, now = Cursor(), Cursor(), NOW
    for seconds, collections in history:
        now += seconds
        only = {name: each for name, each in collections.items() if name == "a"}
        requests, together = decide(together, collections, now)
        requests_alone, alone = decide(alone, only, now)
        assert [each for each in requests if each.collection == "a"] == requests_alone
        assert together.watches.get("a") == alone.watches.get("a")


@given(histories)
def test_a_cursor_survives_being_written_and_read(history):
    cursor, now = Cursor(), NOW
    for seconds, collections in history:
        now += seconds
        _, cursor = decide(cursor, collections, now)
        assert Cursor.from_json(cursor.to_json()) == cursor


def test_an_undisturbed_collection_takes_few_bytes_of_the_cursor():
    cursor = Cursor({f"c{number:03}": Watch(int(NOW), 12, "ABCDEFGHIJKL", "ABCDEFGHIJKL") for number in range(1000)})
    assert len(cursor.to_json()) < 60_000


@given(st.integers(1, 10_000))
def test_a_pause_grows_up_to_an_hour(failures):
    assert 30 <= pause(failures) <= pause(failures + 1) <= LONGEST_PAUSE


# Listings against the manifest

files = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(
        lambda size, age: (size, age),
        st.integers(0, 3),
        st.sampled_from([0.5, 10.0, 20.0]),
    ),
)


def listing(named: dict[str, tuple[int, float]]) -> dict[str, SourceFile]:
    return {
        path: SourceFile(path, size, None if age < 2 else str(NOW - age), NOW - age)
        for path, (size, age) in named.items()
    }


@given(files, files)
def test_a_listing_is_compared_with_the_manifest_file_by_file(before, after):
    manifest = {path: Known(file.size, file.stamp, b"") for path, file in listing(before).items()}
    changes = compare(listing(after), manifest, NOW)
    assert changes.removed == len(before.keys() - after.keys())
    settled = {path for path, (_, age) in after.items() if age >= 2}
    assert changes.added == len(settled - before.keys())
    assert changes.changed == len({path for path in settled & before.keys() if before[path] != after[path]})
    assert changes.added + changes.changed + changes.young <= len(after)


@given(files, st.randoms())
def test_a_digest_depends_on_no_order(named, random):
    shuffled = list(listing(named).values())
    random.shuffle(shuffled)
    assert digest_of(shuffled) == digest_of(listing(named).values())


def test_what_was_removed_before_is_neither_gone_again_nor_known():
    removed = {"a": Known(1, "1", b"", removed=True)}
    assert compare({}, removed, NOW) == Changes()
    assert compare({"a": SourceFile("a", 1, "1", 1.0)}, removed, NOW) == Changes(added=1)
