"""Copies that drifted apart become equal again: by anti-entropy alone, at a cost that follows the difference."""

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


def agreements(node, **query):
    """How every chunk of every pair agrees."""
    pairs = convergence(node, **query)["pairs"]
    return [chunk["agreement"] for pair in pairs for chunk in pair.get("chunks", [])] + [
        "error" for pair in pairs if pair.get("error")
    ]


def in_step(node, **query):
    return set(agreements(node, **query)) == {"equal"}


def named(node):
    """The keys that differ anywhere."""
    return {key for pair in convergence(node, keys="true")["pairs"] for key in pair["keys"]}


def hints_are_gone(cluster, without):
    """Until nobody keeps a hint for a node that is down; nodes drop old ones once a minute."""
    alive = [node for node in cluster.nodes if node is not without]
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
        before, _ = moved(cluster)
        last.start().wait_ready()
        came_back = time.monotonic()
        missing = named(first)
        expected = {name(number) for number in changed}
        check(missing == expected, f"convergence names {len(missing):,} keys, exactly those that were changed")
        wait_until("all copies are equal", lambda: in_step(first), 60, every=0.5)
        took = time.monotonic() - came_back
        check(took <= 60, f"all copies are equal {took:.1f} s after its return")
        # Naming them moved lists too: it is counted with the rest.
        cost = (moved(cluster)[0] - before) / changes
        check(cost <= 1600, f"{cost:.0f} bytes moved beside each differing record, naming and healing together")
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
                wait_until("it is counted", lambda: "unknown" not in agreements(first), 60)
            before = moved(cluster)
            # The round that its return brings may come first; then the one that is asked for finds nothing.
            repair(first)
            wait_until("all copies are equal", lambda: in_step(first), 60, every=0.5)
            after = moved(cluster)
            rows.append((differing, after[0] - before[0], after[1] - before[1]))
        say(f"      {keys:,} keys; bytes of lists and digests of a repair with both peers")
        for differing, bytes_moved, records in rows:
            say(f"      {differing:>6} differing: {bytes_moved:>10,.0f} bytes, {records:.0f} records")


def pressure(options):
    """While every key of a node is repaired, clients keep 0.6 of their rate and their p99 stays within 3 times."""
    keys = options.keys
    with Cluster(rf=3, **NO_HINTS) as cluster:
        ports = [node.http for node in cluster.nodes]
        first, second, last = cluster.nodes
        store_keys(ports, keys)
        idle, busy = [], []
        for turn in range(3):
            last.kill()
            store_keys([first.http, second.http], keys)
            last.start().wait_ready()
            began = time.monotonic()
            while True:
                result = bench(ports, "put", 1000, 3, 32)
                if in_step_but_for_load(first):
                    break
                busy.append(result)
                if time.monotonic() - began > 600:
                    raise Failed("not repaired within ten minutes")
            say(f"      {keys:,} differing keys repaired beside the load in {time.monotonic() - began:.0f} s")
            idle += [bench(ports, "put", 1000, 3, 32) for _ in range(3)]
        rate = [statistics.median(r["rate"] for r in results) for results in (idle, busy)]
        p99 = [statistics.median(r["p99_ms"] for r in results) for results in (idle, busy)]
        check(rate[1] >= 0.6 * rate[0], f"{rate[1]:,.0f} requests a second beside the repair, {rate[0]:,.0f} without")
        check(p99[1] <= 3 * p99[0], f"p99 {p99[1]:.1f} ms beside the repair, {p99[0]:.1f} ms without")


def in_step_but_for_load(node):
    """Whether nothing differs but what is in flight."""
    return not named(node)
