"""Nodes that die and nodes that hang, under load."""

import signal
import time

from cluster import Client, Cluster, Failed, check, say
from load import Load


def kill(_options):
    """kill -9 of any one node (RF 2): the others answer everything, receipts name the hints, which then drain."""
    with Cluster(rf=2) as cluster:
        load = Load(cluster.nodes)
        for victim in cluster.nodes:
            say(f"  {victim.name} is killed")
            others = cluster.others(victim)
            load.targets = others
            with load:
                time.sleep(1)
                victim.kill()
                time.sleep(2)
            check(not load.failures(), f"the load at the other two: {load.summary()}")
            receipts = load.every_key(others)
            homes = [key for key in load.keys if victim.name in receipts[key.name]["replicas"]]
            unnamed = [k.name for k in homes if victim.name not in receipts[k.name]["hinted"]]
            check(homes and not unnamed, f"the receipts of {len(homes)} keys of {victim.name} name its hints {unnamed[:3]}")
            refused_at_all(load, others[0], homes[0], victim)

            begin = time.monotonic()
            victim.start().wait_ready()
            ready = time.monotonic() - begin
            cluster.drained(10)
            took = time.monotonic() - begin
            check(took <= 10, f"hints drained {took:.1f} s after its start (ready after {ready:.2f} s)")
            cluster.settle()
            for other in others:
                other.stop()
            load.every_key([victim], put=False, keys=homes, consistency="one")
            check(not load.wrong, f"alone, {victim.name} gives the last value of its {len(homes)} keys at `one` {load.wrong[:3]}")
            for other in others:
                other.start()
            cluster.wait_ready()
        load.verify(cluster.nodes)


def refused_at_all(load, node, key, victim):
    """With a home replica of the key down, `all` is 503 and says who was needed, who acked and who did not."""
    for ask in (load.put, load.get):
        answer = ask(Client(node.http), node, key, consistency="all")
        title = f"{ask.__name__.upper()} ?consistency=all with {victim.name} down"
        if answer.status != 503:
            raise Failed(f"{title}: {answer}")
        problem = answer.json()
        named = victim.name in [failed["node"] for failed in problem["failed"]]
        check(named and problem["required"] == 2 and len(problem["acked"]) < 2,
              f"{title}: 503, required {problem['required']}, acked {problem['acked']}, failed {problem['failed']}")


def crash(_options):
    """kill -9 of all three at once under load, and restart: every acknowledged write is there."""
    for rf in (2, 3):
        with Cluster(rf=rf) as cluster:
            load = Load(cluster.nodes)
            for turn in range(3):
                with load:
                    time.sleep(2)
                    for node in cluster.nodes:
                        node.process.kill()
                    time.sleep(0.2)
                for node in cluster.nodes:
                    node.kill()
                acked = sum(op.kind == "PUT" and 200 <= op.status < 300 for op in load.ops)
                say(f"  RF {rf}, turn {turn + 1}: killed after {acked:,} acknowledged writes")
                for node in cluster.nodes:
                    node.start()
                cluster.wait_ready()
                load.verify(cluster.nodes)


def pause(_options):
    """SIGSTOP of any node under load: at most 1 % fail, for at most a second; SIGCONT: nothing stale, hints drain."""
    with Cluster(rf=2) as cluster:
        load = Load(cluster.nodes)
        # These ask the paused node itself: what it answers when it goes on must be as true as any other answer.
        inside = Load(cluster.nodes, keys=40, threads=2, prefix="inside", timeout=20)
        for victim in cluster.nodes:
            say(f"  {victim.name} is stopped")
            load.targets, inside.targets = cluster.others(victim), [victim]
            with load, inside:
                time.sleep(2)
                stopped = time.monotonic()
                victim.send(signal.SIGSTOP)
                try:
                    time.sleep(6)
                finally:
                    victim.send(signal.SIGCONT)
                during = [op for op in list(load.ops) if op.end >= stopped]
                load.targets = cluster.nodes
                begin = time.monotonic()
                time.sleep(3)
            failed = [op for op in during if not 200 <= op.status < 300]
            span = max(op.end for op in failed) - min(op.end for op in failed) if failed else 0
            check(len(failed) <= len(during) / 100, f"while it stood still: {load.summary(during)}")
            check(span <= 1, f"failures within {span:.2f} s")
            slowest = max(op.end - op.begin for op in during)
            say(f"      the slowest request then took {slowest * 1000:.0f} ms")
            cluster.drained(10)
            say(f"  ok  hints drained {time.monotonic() - begin:.1f} s after it went on")
            cluster.settle()
            load.verify(cluster.nodes)
            inside.verify(cluster.nodes)
