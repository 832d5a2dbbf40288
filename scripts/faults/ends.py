"""Values with an end: gone everywhere at once, for good, and without anything to repair."""

import signal
import time

from cluster import Cluster, Failed, check, say, wait_until

from .healing import convergence, counted, in_step, moved, repair

LEVELS = ("one", "quorum", "all", "linearizable")
TTL = 2


def store(cluster, prefix, count):
    """So many values that end in two seconds, written at all nodes in turn; when the last of them does."""
    for number in range(count):
        answer = cluster.nodes[number % len(cluster.nodes)].put(f"{prefix}-{number}", b"short", ttl=f"{TTL}s")
        if answer.status != 201 or "A3-Expires-At" not in answer.headers:
            raise Failed(f"{prefix}-{number}: {answer}")
    return time.time() + TTL


def told(nodes, prefix, count):
    """The statuses that these nodes answer, at every level."""
    return {node.get(f"{prefix}-{number}", consistency=level).status
            for number in range(count) for node in nodes for level in LEVELS}


def records_moved(cluster):
    return moved(cluster.nodes)[1]


def nothing_to_repair(cluster, before, what):
    first = cluster.nodes[0]
    wait_until("all copies are equal", lambda: in_step(first), 30, every=0.2)
    for node in cluster.nodes[:2]:
        ended = repair(node)
        check(ended["sent"] + ended["received"] == 0, f"{what}: a repair held by {node.name} finds nothing to move")
    check(records_moved(cluster) == before, f"{what}: the copies are equal, and no record was moved for it")


def ttl(options):
    """?ttl=2s: 404 on all nodes at every level after 2 s, also on one that slept through it, and nothing to repair."""
    count = 20 if options.ci else 60
    with Cluster(rf=3, ANTI_ENTROPY_INTERVAL="2s") as cluster:
        first, _, last = cluster.nodes
        wait_until("the copies are compared", lambda: in_step(first), 30, every=0.2)
        moved_before = records_moved(cluster)
        ends = store(cluster, "awake", count)
        alive = told(cluster.nodes, "awake", 2)
        if time.time() < ends - 1:
            check(alive == {200}, "before its end every node tells a value, at every level")
        time.sleep(max(0, ends - time.time()))
        check(told(cluster.nodes, "awake", count) == {404}, "after 2 s: 404 on all nodes at every level")
        nothing_to_repair(cluster, moved_before, "awake")

        ends = store(cluster, "paused", count)
        last.send(signal.SIGSTOP)
        time.sleep(max(0, ends + 1 - time.time()))
        last.send(signal.SIGCONT)
        check(told([last], "paused", count) == {404}, "404 at every level on a node that was paused through the end, at once")
        check(told(cluster.nodes, "paused", count) == {404}, "and on the others")
        nothing_to_repair(cluster, moved_before, "paused")

        ends = store(cluster, "dead", count)
        last.kill()
        time.sleep(max(0, ends - time.time()))
        others = [node for node in cluster.nodes if node is not last]
        gone = {node.get(f"dead-{n}", consistency=level).status for n in range(count) for node in others
                for level in ("one", "quorum", "linearizable")}
        check(gone == {404}, "404 on the others while one is dead")
        last.start().wait_ready()
        check(told([last], "dead", count) == {404}, "404 at every level on a node that was dead, as soon as it serves")
        cluster.settle()
        counted(first)
        nothing_to_repair(cluster, moved_before, "dead")
        expired = sum(node.metric("a3_expired_total") for node in cluster.nodes)
        say(f"      tombstones written by the nodes by themselves: {expired:.0f}, of {3 * 3 * count}")
        check(convergence(first, deep="true")["status"] == "equal", "row by row, too")
