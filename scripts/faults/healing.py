"""Copies that drifted apart become equal again: by anti-entropy alone, at a cost that follows the difference."""

import os
import shutil
import statistics
import time

from cluster import Client, Cluster, Failed, check, path_of, say, wait_until
from load import bench, store_keys

# No hint outlives this; nodes drop old ones once a minute.
NO_HINTS = {"HINT_WINDOW": "1s", "HINT_BYTES_MAX": "1MiB"}
# Rounds come only when they are asked for, or a peer comes back.
NO_ROUNDS = {"ANTI_ENTROPY_INTERVAL": "24h"}


def name(number):
    return f"key-{number:010}"


def change(node, numbers, text, consistency="one"):
    """Writes these keys at one node."""
    client = Client(node.http)
    for number in numbers:
        answer = client.ask("PUT", path_of(name(number), consistency=consistency), f"{text} {number}".encode())
        if not answer.ok:
            raise Failed(f"{name(number)} at {consistency}: {answer}")
    client.close()


def spread(keys, count):
    """`count` of the keys, all over them."""
    return [number * keys // count for number in range(count)]


def convergence(node, **query):
    text = "&".join(f"{name}={value}" for name, value in query.items())
    answer = node.ask("GET", "/cluster/convergence" + (f"?{text}" if text else ""), timeout=310)
    if not answer.ok:
        raise Failed(f"GET /cluster/convergence at {node.name}: {answer}")
    return answer.json()


def in_step(node, **query):
    """Whether every chunk of every pair is equal."""
    return convergence(node, **query)["status"] == "equal"


def counted(node):
    """Until every node knows its sums again: after a crash it reads all its rows for that."""

    def known():
        pairs = convergence(node)["pairs"]
        return all(pair["chunks"] and all(chunk["status"] != "unknown" for chunk in pair["chunks"]) for pair in pairs)

    wait_until("the sums are known", known, 60, every=0.2)


def named(node):
    """The keys that differ anywhere."""
    pairs = convergence(node, keys="true")["pairs"]
    silent = [pair for pair in pairs if "keys" not in pair]
    if silent:
        raise Failed(f"not every pair was compared: {silent}")
    return {key["key"] for pair in pairs for key in pair["keys"]}


def hints_are_gone(cluster, without):
    """Until nobody keeps a hint for a node that is down; nodes drop old ones once a minute."""
    alive = [node for node in cluster.nodes if node is not without]
    time.sleep(1)  # A write at `one` is answered before its hint is kept.
    wait_until("hints are dropped", lambda: sum(node.hints() for node in alive) == 0, 130, every=1)


def moved(cluster):
    """Bytes of all rounds so far, both ways, each counted once; and records."""
    sent = sum(node.metric('a3_anti_entropy_bytes_total{direction="sent"}') for node in cluster.nodes)
    return sent, sum(node.metric("a3_anti_entropy_keys_total") for node in cluster.nodes)


def repair(node):
    """A repair by hand, to its end."""
    answer = node.ask("POST", "/repair")
    if answer.status != 202:
        raise Failed(f"POST /repair: {answer}")
    place = answer.headers["Location"]
    operation = lambda: node.ask("GET", place).json()
    wait_until("the repair ends", lambda: operation()["state"] != "running", 600)
    ended = operation()
    if ended["state"] != "done":
        raise Failed(f"the repair ended as {ended}")
    return ended


def drift(options):
    """A node misses 10,000 writes at `one` and their hints; after its return they are named, and healed within 60 s."""
    keys, changes = options.keys, 10_000
    with Cluster(rf=3, **NO_HINTS) as cluster:
        first, _, last = cluster.nodes
        store_keys([node.http for node in cluster.nodes], keys)
        cluster.drained(30)
        wait_until("all copies are equal", lambda: in_step(first), 60, every=0.5)
        last.kill()
        changed = spread(keys, changes)
        change(first, changed, "changed")
        hints_are_gone(cluster, last)
        time.sleep(6)  # What is younger than 5 s is in flight, and not compared.
        start = moved(cluster)[0]
        last.start().wait_ready()
        came_back = time.monotonic()
        counted(first)
        say(f"      its rows were summed up anew {time.monotonic() - came_back:.1f} s after its start")
        missing = named(first)
        expected = {name(number) for number in changed}
        check(missing == expected, f"convergence names {len(missing):,} keys, exactly those that were changed")
        named_at = moved(cluster)[0]
        wait_until("all copies are equal", lambda: in_step(first), 60, every=0.5)
        took = time.monotonic() - came_back
        check(took <= 60, f"all copies are equal {took:.1f} s after its return")
        say(f"      naming them for both pairs moved {(named_at - start) / changes:.0f} bytes a key")
        cost = (moved(cluster)[0] - named_at) / changes
        check(cost <= 800, f"{cost:.0f} bytes moved beside each differing record")
        client = Client(last.http)
        wrong = [n for n in changed if client.ask("GET", path_of(name(n), consistency="one")).body != f"changed {n}".encode()]
        check(not wrong, f"the node that was down serves all {changes:,} by itself")


def cost(options):
    """What a round costs: in step, and with 1, 10 and 1,000 differing keys."""
    keys = options.keys
    with Cluster(rf=3, **NO_HINTS, **NO_ROUNDS) as cluster:
        first, _, last = cluster.nodes
        store_keys([node.http for node in cluster.nodes], keys)
        cluster.drained(30)
        time.sleep(6)
        rows = []
        for differing in (0, 1, 10, 1000):
            if differing:
                last.kill()
                change(first, spread(keys, differing), f"round of {differing}")
                hints_are_gone(cluster, last)
                time.sleep(6)
                last.start().wait_ready()
                counted(first)
            before = moved(cluster)
            # The round that its return brings may come first; then the one that is asked for finds nothing.
            repair(first)
            after = moved(cluster)
            wait_until("all copies are equal", lambda: in_step(first), 60, every=0.5)
            rows.append((differing, after[0] - before[0], after[1] - before[1]))
        say(f"      {keys:,} keys; bytes of lists and digests of a repair with both peers")
        for differing, bytes_moved, records in rows:
            say(f"      {differing:>6} differing: {bytes_moved:>10,.0f} bytes, {records:.0f} records")


def pressure(options):
    """While a node takes every key from the others, clients keep 0.6 of their rate and their p99 stays within 3 times."""
    keys, clients_keys, turns = options.keys, 1000, 3
    # A disk that stalls for a second, on a machine that does other things too, is told by the latencies.
    with Cluster(rf=3, REQUEST_TIMEOUT="10s", **NO_HINTS) as cluster:
        first, second, last = cluster.nodes
        last.stop()
        database = os.path.join(last.data, "a3.db")
        shutil.copy(database, database + ".before")
        store_keys([first.http, second.http], keys)
        hints_are_gone(cluster, last)
        turned = [beside_a_repair(cluster, keys, clients_keys, database, turn) for turn in range(turns)]
        rates, waits = ([turn[what] for turn in turned] for what in (0, 1))
        rate, wait = statistics.median(rates), statistics.median(waits)
        check(rate >= 0.6, f"{rate:.2f} of the rate without a repair ({', '.join(f'{r:.2f}' for r in rates)})")
        check(wait <= 3, f"p99 {wait:.2f} times that without a repair ({', '.join(f'{w:.2f}' for w in waits)})")


def beside_a_repair(cluster, keys, clients_keys, database, turn):
    """The rate and the p99 of clients beside a repair of all keys, as shares of those without."""
    first, second, last = cluster.nodes

    def load(times=1):
        return [bench([node.http for node in cluster.nodes], "put", clients_keys, 3, 32) for _ in range(times)]

    def given():
        return sum(node.metric('a3_anti_entropy_keys_total{direction="sent"}') for node in (first, second))

    def median(results, what):
        return statistics.median(result[what] for result in results)

    without = []
    if turn:
        # Its disk is put back to what it was before the keys were stored.
        without += load(2)
        last.stop()
        shutil.copy(database + ".before", database)
    before, began = given(), time.monotonic()
    last.start().wait_ready()
    beside = []
    # Those that the clients write are repaired by that.
    while given() - before < keys - clients_keys:
        if time.monotonic() - began > 600:
            raise Failed(f"{given() - before:,.0f} of {keys:,} keys repaired within ten minutes")
        at = given()
        results = load()
        # Rounds begin a moment after a return: until then nothing is repaired.
        (beside if given() > at else without).extend(results)
    took = time.monotonic() - began
    # The machine may have become slower or faster meanwhile: without is what lies before and after.
    time.sleep(6)
    without += load(3)
    say(f"      {keys:,} differing keys repaired {took:.0f} s after its return, beside the load")
    for name, results in (("without", without), ("beside the repair", beside)):
        rate, p50, p99 = (median(results, what) for what in ("rate", "p50_ms", "p99_ms"))
        failed = sum(result["failed"] for result in results)
        say(f"      {name:<18} {rate:>8,.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {failed} failed ({len(results)} runs)")
    time.sleep(6)
    check(not named(first), "no key differs")
    return [median(beside, what) / median(without, what) for what in ("rate", "p99_ms")]
