"""Copies that drifted apart become equal again: by anti-entropy alone, at a cost that follows the difference."""

import json
import statistics
import time

from cluster import Client, Cluster, Failed, check, path_of, say, wait_until
from load import bench, store_keys, store_many

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
        answer = client.ask("PUT", path_of(name(number), consistency=consistency, timeout="10s"), f"{text} {number}".encode())
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


def moved(nodes):
    """Bytes of all rounds so far, both ways, each counted once; and records."""
    sent = sum(node.metric('a3_anti_entropy_bytes_total{direction="sent"}') for node in nodes)
    return sent, sum(node.metric("a3_anti_entropy_keys_total") for node in nodes)


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
        start = moved(cluster.nodes)[0]
        last.start().wait_ready()
        came_back = time.monotonic()
        counted(first)
        say(f"      its rows were summed up anew {time.monotonic() - came_back:.1f} s after its start")
        missing = named(first)
        expected = {name(number) for number in changed}
        check(missing == expected, f"convergence names {len(missing):,} keys, exactly those that were changed")
        named_at = moved(cluster.nodes)[0]
        wait_until("all copies are equal", lambda: in_step(first), 60, every=0.5)
        took = time.monotonic() - came_back
        check(took <= 60, f"all copies are equal {took:.1f} s after its return")
        say(f"      naming them for both pairs moved {(named_at - start) / changes:.0f} bytes a key")
        cost = (moved(cluster.nodes)[0] - named_at) / changes
        check(cost <= 800, f"{cost:.0f} bytes moved beside each differing record")
        client = Client(last.http)
        wrong = [n for n in changed if client.ask("GET", path_of(name(n), consistency="one")).body != f"changed {n}".encode()]
        check(not wrong, f"the node that was down serves all {changes:,} by itself")


def cost(options):
    """What a round costs a pair: in step, and with 1, 10 and 1,000 differing keys."""
    keys = options.keys
    with Cluster(2, rf=2, **NO_HINTS, **NO_ROUNDS) as cluster:
        first, last = cluster.nodes
        store_many([node.http for node in cluster.nodes], keys)
        time.sleep(6)
        rows = []
        for differing in (0, 1, 10, 1000):
            before = moved(cluster.nodes)
            if differing:
                # In good order: it need not read all its rows for its sums, of which there may be many.
                last.stop(60)
                change(first, spread(keys, differing), f"round of {differing}")
                hints_are_gone(cluster, last)
                time.sleep(6)
                # The counters of the other begin anew. Its return may bring a round; then the one that is asked for finds nothing.
                before = moved([first])
                last.start()
                cluster.settle()
            repair(first)
            # A round is counted at its end. Asking whether all is equal would be counted too.
            wait_until("it is counted", lambda: moved(cluster.nodes)[1] - before[1] >= differing, 60)
            after = moved(cluster.nodes)
            wait_until("all copies are equal", lambda: in_step(first), 60, every=0.5)
            rows.append((differing, after[0] - before[0], after[1] - before[1]))
        say(f"      {keys:,} keys; bytes of lists and digests of a repair of a pair")
        for differing, bytes_moved, records in rows:
            say(f"      {differing:>6} differing: {bytes_moved:>10,.0f} bytes, {records:.0f} records")


def pressure(options):
    """While a node takes every key from the others, clients keep 0.6 of their rate and their p99 stays within 3 times."""
    keys, clients_keys, chunks = options.keys, 1000, 16
    # A disk that stalls for a second, on a machine that does other things too, is told by the latencies.
    with Cluster(rf=3, REQUEST_TIMEOUT="10s", **NO_HINTS, **NO_ROUNDS) as cluster:
        first, second, last = cluster.nodes
        last.stop()
        store_keys([first.http, second.http], keys)
        hints_are_gone(cluster, last)
        # All start together: whoever sees another one return holds a round with it, and the repairs here are to be the only ones.
        first.stop()
        second.stop()
        for node in cluster.nodes:
            node.start()
        cluster.wait_ready(60)
        counted(first)
        load = lambda: bench([node.http for node in cluster.nodes], "put", clients_keys, 3, 32)
        before, seconds, shares, results = load(), 0, [], []
        for chunk in range(chunks):
            beside, took = beside_repairs((first, second), chunk, load)
            after = load()
            seconds += took
            # The machine may become slower or faster meanwhile: without is what lies before and after.
            without = {what: (before[what] + after[what]) / 2 for what in ("rate", "p99_ms")}
            shares.append([median(beside, what) / without[what] for what in ("rate", "p99_ms")])
            results += beside
            before = after
        given = sum(node.metric('a3_anti_entropy_keys_total{direction="sent"}') for node in (first, second))
        # Those that the clients write are repaired by that.
        check(given >= keys - clients_keys, f"{given:,.0f} keys given to a node that had none of them")
        check(seconds <= 600, f"in {seconds:.0f} s, {given / seconds:,.0f} a second, beside the load")
        time.sleep(6)
        check(not named(first), "no key differs")
        failed = sum(result["failed"] for result in results)
        say(f"      medians beside it: {median(results, 'rate'):,.0f}/s, p99 {median(results, 'p99_ms'):.1f} ms, {failed} failed")
        rate, wait = (statistics.median(share[what] for share in shares) for what in (0, 1))
        say("      rate and p99, each as a share of that without: " + ", ".join(f"{r:.2f} {w:.2f}" for r, w in shares))
        check(rate >= 0.6, f"{rate:.2f} of the rate without a repair")
        check(wait <= 3, f"p99 {wait:.2f} times that without a repair")


def median(results, what):
    return statistics.median(result[what] for result in results)


def beside_repairs(nodes, chunk, load):
    """Runs of the load while these nodes repair a chunk, and the seconds that took."""
    begun = [(node, node.ask("POST", "/repair", json.dumps({"chunks": [chunk]}))) for node in nodes]
    if any(answer.status != 202 for _, answer in begun):
        raise Failed(f"POST /repair: {begun}")
    places = [(node, answer.headers["Location"]) for node, answer in begun]
    look = lambda: [node.ask("GET", place).json() for node, place in places]
    runs = []
    while any(operation["state"] == "running" for operation in look()):
        runs.append(load())
    ended = look()
    if any(operation["state"] != "done" for operation in ended):
        raise Failed(f"a repair ended as {ended}")
    # In the last run the repairs ended.
    runs = runs[:-1] or runs or [load()]
    return runs, max(operation["ended_ms"] - operation["started_ms"] for operation in ended) / 1000
