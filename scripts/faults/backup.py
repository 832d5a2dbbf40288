"""Backups: one node comes back from an older copy of itself, and nothing that happened since is undone."""

import os
import shutil
import subprocess
import time

from cluster import Client, Cluster, Node, check, free_ports, path_of, program, say, wait_until
from load import Load, store_many

from .disks import converged

KEYS = 20_000
# Deleted and purged after the backup was taken.
GONE = 200
GRACE = 2


def a3(node, *arguments):
    """One command, with the settings of that node; what it printed."""
    environment = node.environment(A3_HOST=node.url)
    done = subprocess.run([program(), *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def key(number):
    return f"gone-{number:04}"


def absent(nodes, levels):
    """What is wrong, where not all of the deleted keys are 404."""
    for node in nodes:
        client = Client(node.http)
        for number in range(GONE):
            for level in levels:
                answer = client.ask("GET", path_of(key(number), consistency=level))
                if answer.status != 404:
                    return f"{key(number)} at {node.name}, {level}: {answer}"
    return None


def backup(_options):
    """A node restored from a backup taken under load: few keys travel, nothing acknowledged is lost, nothing deleted comes back."""
    with Cluster(rf=3, GC_GRACE=f"{GRACE}s") as cluster:
        one, victim = cluster.nodes[0], cluster.nodes[1]
        store_many([node.http for node in cluster.nodes], KEYS)
        for number in range(GONE):
            # Half of them have a register.
            assert one.put(key(number), b"old", headers={"If-None-Match": "*"} if number % 2 else {}).ok
        load = Load(cluster.nodes)
        file = os.path.join(cluster.folder, "n2.db")
        with load:
            time.sleep(1)
            code, text = a3(victim, "backup", file)
            time.sleep(1)
        check(code == 0, f"a backup under load: {text.strip().splitlines()[-1]}")
        check(not load.failures(), f"the load meanwhile: {load.summary()}")
        check(sorted(os.listdir(victim.data)) == sorted(["a3.db", "a3.db-shm", "a3.db-wal", "identity", "lock"]), "nothing is left of it")

        twin(cluster, victim, file)
        purged_since(one, cluster.nodes)
        comes_back(cluster, victim, file, load)
        everything_lost(cluster, file)


def twin(cluster, victim, file):
    """A restored copy beside the living original does not take its place."""
    http, grpc = free_ports(2)
    double = Node(victim.num, http, grpc, cluster.folder, victim.settings)
    double.data += "-twin"
    double.log += "-twin"
    code, text = a3(double, "restore", file)
    check(code == 0, f"restored beside the living one: {text.splitlines()[0]}")
    code = double.start().exit_code(20)
    said = [line for line in double.tail(5).splitlines() if "lives as instance" in line]
    check(code == 78 and said, f"it does not start beside it: exit code {code}")


def purged_since(one, nodes):
    for number in range(GONE):
        assert one.delete(key(number), headers={"If-Match": "*"} if number % 4 == 1 else {}).ok

    def purged():
        told = one.ask("GET", "/tombstones").json()
        return told["tombstones"] == 0 and not told["waiting_for"]

    wait_until("the tombstones are purged", purged, 60, every=0.5)
    check(absent(nodes, ["quorum"]) is None, f"{GONE} keys are deleted since, and their tombstones purged on every node")


def comes_back(cluster, victim, file, load):
    others = cluster.others(victim)
    load.targets = others
    with load:
        time.sleep(1)
        victim.kill()
        shutil.rmtree(victim.data)
        code, text = a3(victim, "restore", file)
        check(code == 0 and "a3 serve" in text, f"restored: {text.splitlines()[0]}")
        began = time.monotonic()
        victim.start()
        time.sleep(1)
    check(not load.failures(), f"the load at the others meanwhile: {load.summary()}")
    victim.wait_ready(150)
    say(f"  ok  {victim.name} serves {time.monotonic() - began:.0f} s later (its old instance had to be down for 60 s)")
    received = victim.metric("a3_transfer_keys_total")
    dropped = victim.metric("a3_transfer_keys_dropped_total")
    held = victim.metric("a3_store_keys")
    check(received < KEYS / 4, f"{received:.0f} of {held:.0f} keys were fetched")
    check(dropped >= GONE, f"{dropped:.0f} keys of the backup were dropped, as they were purged since")
    problem = absent(cluster.nodes, ["one", "quorum", "linearizable"])
    check(problem is None, "404 for each of these at every node" if problem is None else problem)
    cluster.settle(60)
    converged(cluster, 60)
    load.verify(cluster.nodes)
    load.verify([victim], consistency="one")
    problem = absent(cluster.nodes, ["one", "all", "linearizable"])
    check(problem is None, "and still, once all copies are equal" if problem is None else problem)
    epochs = {node.ask("GET", "/cluster").json()["epoch"] for node in cluster.nodes}
    check(epochs == {2}, f"a new instance took its place: epoch {epochs}")


def everything_lost(cluster, file):
    """Where no member is left a restored one waits, and says so."""
    last = cluster.nodes[1]
    for node in cluster.nodes:
        node.kill()
    shutil.rmtree(last.data)
    code, _ = a3(last, "restore", file)
    assert code == 0
    last.start()

    def waits():
        answer = last.ask("GET", "/readyz?verbose")
        return answer.status == 503 and "no member answers" in answer.body.decode()

    wait_until("it waits for its members", waits, 20)
    say("  ok  with no member left it waits, and /readyz?verbose says for whom")
