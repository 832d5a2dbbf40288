"""Deleted keys stay deleted, and are forgotten in the end."""

import os
import sqlite3
import time

from cluster import Cluster, check, path_of, wait_until

from .healing import NO_HINTS, NO_ROUNDS, hints_are_gone, in_step

# Tombstones are kept at least so long, in seconds.
GRACE = 2
LEVELS = ("one", "quorum", "all", "linearizable")
KEYS = 40


def key(number):
    return f"gone-{number}"


def told(node):
    return node.ask("GET", "/tombstones").json()


def absent(nodes, numbers, levels=LEVELS):
    """What is wrong, where not all of these keys are 404 at every node and level."""
    for node in nodes:
        for number in numbers:
            for level in levels:
                answer = node.ask("GET", path_of(key(number), consistency=level))
                if answer.status != 404:
                    return f"{key(number)} at {node.name}, {level}: {answer}"
    return None


def left(node):
    """Tombstones, and registers without a record, in the database of a node that was stopped."""
    database = sqlite3.connect(f"file:{os.path.join(node.data, 'a3.db')}?mode=ro", uri=True)
    with database:
        tombstones = database.execute("SELECT count(*) FROM records WHERE value IS NULL AND large IS NULL").fetchone()[0]
        orphans = database.execute(
            "SELECT count(*) FROM registers g WHERE NOT EXISTS "
            "(SELECT 1 FROM records r WHERE r.slot = g.slot AND r.key = g.key)"
        ).fetchone()[0]
        floors = database.execute("SELECT count(*) FROM floors WHERE written > 0").fetchone()[0]
    database.close()
    return tombstones, orphans, floors


def total(nodes, metric):
    return sum(node.metric(metric) for node in nodes)


def tombstones(_options):
    """A key deleted while a replica is down, whose hints are dropped, stays deleted; then its tombstone is purged everywhere."""
    # No rounds but those of purging, and one after the return: what the replica missed, it has from them alone.
    with Cluster(rf=3, GC_GRACE=f"{GRACE}s", **NO_HINTS, **NO_ROUNDS) as cluster:
        nodes = cluster.nodes
        one, down = nodes[0], nodes[2]
        for number in range(KEYS):
            if number % 2:
                # These have a register.
                assert one.put(key(number), b"first", headers={"If-None-Match": "*"}).ok
            else:
                assert one.put(key(number), b"first", consistency="all").ok
        assert one.put("kept", b"stays", consistency="all").ok
        down.kill()
        for number in range(KEYS):
            headers = {"If-Match": "*"} if number % 4 == 1 else {}
            answer = one.delete(key(number), headers=headers)
            assert answer.ok, answer
        began = time.monotonic()

        def waits():
            return told(one)["waiting_for"] == [{"node": down.name, "reason": "unreachable"}]

        wait_until(f"/tombstones names {down.name}", waits, 20)
        # So that it hears of the deletes by comparing copies alone.
        hints_are_gone(cluster, down)
        dropped = total(nodes[:2], "a3_hints_dropped_total")
        check(dropped > 0, f"{dropped:.0f} hints of {KEYS} deletes were dropped, and none is left")
        time.sleep(max(0, 10 * GRACE + 1 - (time.monotonic() - began)))
        check(waits(), f"/tombstones names {down.name} after {time.monotonic() - began:.0f} s, and nobody else")
        kept = [member["tombstones"] for member in told(one)["members"]]
        check(kept == [KEYS, KEYS, None], f"every tombstone is kept meanwhile {kept}")
        # `all` needs the one that is down.
        problem = absent(nodes[:2], range(KEYS), [level for level in LEVELS if level != "all"])
        check(problem is None, "404 at every other level meanwhile" if problem is None else problem)

        down.start()
        down.wait_ready()
        # At `one` it answers with what it has, until it was told; `all` needs the others to have noticed.
        problem = absent(nodes, range(0, KEYS, 5), ("quorum", "linearizable"))
        check(problem is None, "404 at a quorum of every node after its return" if problem is None else problem)
        wait_until("the copies agree", lambda: in_step(one), 40)
        check(total(nodes, "a3_hints_delivered_total") == 0, "the copies agree, and no hint was delivered")
        # It serves before the others have heard so, and until then they say 503 at `all`.
        wait_until("all reach it", lambda: all(n.get("kept", consistency="all").status == 200 for n in nodes), 20)
        problem = wait_until_absent(nodes)
        check(problem is None, "404 at every level of every node from then on" if problem is None else problem)

        def purged():
            status = told(one)
            return status["tombstones"] == 0 and not status["waiting_for"]

        try:
            wait_until("the tombstones are purged", purged, 60, every=0.5)
        except Exception:
            print(told(one))
            raise
        check(absent(nodes, range(KEYS)) is None, "404 at every level of every node once they are purged")
        check(one.get("kept").body == b"stays", "what was not deleted is there")
        wait_until("the copies agree", lambda: in_step(one), 20)
        again = one.put(key(1), b"second", headers={"If-None-Match": "*"})
        check(again.status == 201, "a purged key can be created anew")
        check(down.get(key(1), consistency="linearizable").body == b"second", "and is read everywhere")
        counted = total(nodes, "a3_tombstones_purged_total")
        check(counted >= 3 * KEYS, f"the metric counts {counted:.0f} purged")
        # The registers go with a later floor, where they were used since.
        time.sleep(6 * GRACE)
        for node in nodes:
            node.stop()
            tombstones, orphans, floors = left(node)
            check(
                (tombstones, orphans) == (0, 0) and floors > 0,
                f"{node.name}'s database has {tombstones} tombstones, {orphans} registers without a record, {floors} floors",
            )


def wait_until_absent(nodes):
    """Watches for as long as a floor takes, and longer: nothing may come back."""
    until = time.monotonic() + 5 * GRACE
    while time.monotonic() < until:
        problem = absent(nodes, range(0, KEYS, 5))
        if problem:
            return problem
    return absent(nodes, range(KEYS))
