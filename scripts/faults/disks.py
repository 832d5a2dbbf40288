"""Disks that fail, fill up, lose files and flip bits: what was acknowledged stays, and what is wrong is never served."""

import contextlib
import glob
import json
import os
import random
import re
import subprocess
import time

from cluster import Client, Cluster, Failed, Skipped, check, debian, path_of, run, say, spawn, wait_until
from load import Load


# --- a sync that fails -----------------------------------------------------------------------------------------------


def eio(_options):
    """Each fsync of a node fails (EIO): it acknowledges nothing more, ends with a failure, and serves after a restart."""
    with Cluster(rf=2) as cluster:
        load = Load(cluster.nodes)
        victim = cluster.nodes[1]
        trace = os.path.join(cluster.folder, "strace")
        with load:
            time.sleep(1)
            failing_syncs(victim, trace)
            code = victim.exit_code(20)
            ended = time.time()
            time.sleep(1)
        began, syncs = injected(trace)
        check(code not in (0, -9), f"it ended by itself, {ended - began:.2f} s after the first sync that failed, exit code {code}")
        check(syncs == 1, f"no sync was tried again: {syncs} of them failed")
        offset = time.time() - time.monotonic()
        late = [op for op in load.ops
                if op.kind == "PUT" and 200 <= op.status < 300 and op.begin + offset > began + 0.05
                and victim.name in json.loads(op.body)["acked"]]
        check(not late, f"nothing that began later was acknowledged by its disk {late[:1]}")
        load.verify(cluster.others(victim))
        victim.start()
        cluster.wait_ready()
        cluster.drained(20)
        load.verify(cluster.nodes)
        check(victim.metric("a3_store_set_aside_total") == 0, "its database was as good as before")
        with load:
            time.sleep(1)
        check(not load.failures(), f"and it serves: {load.summary()}")


def failing_syncs(node, trace):
    """From now on each fsync and fdatasync of the node fails with EIO."""
    debian("strace", "strace")
    tracer = spawn(
        ["strace", "-f", "-qq", "-ttt", "-y", "-o", trace, "-e", "trace=fsync,fdatasync",
         "-e", "inject=fsync,fdatasync:error=EIO", "-p", str(node.process.pid)],
        trace + ".log",
    )
    time.sleep(0.3)
    if tracer.poll() is not None and node.process.poll() is None:
        raise Skipped(f"strace cannot be attached here: {open(trace + '.log').read().strip()}")


def injected(trace):
    """When the first sync failed, and how many did."""
    lines = [line for line in open(trace, errors="replace") if "(INJECTED)" in line]
    if not lines:
        raise Failed(f"no sync failed; {trace} is empty")
    return float(re.search(r"\d{9,}\.\d+", lines[0]).group()), len(lines)


# --- a disk without space --------------------------------------------------------------------------------------------


def full(_options):
    """A full disk: 507, or a hint on another node; writes go on by themselves when there is space, nothing is lost."""
    with small_disk() as disk:
        alone(disk)
    with small_disk() as disk:
        among_others(disk)


@contextlib.contextmanager
def small_disk(mib=24):
    """A file system of that size, of which `ballast` can take what is left."""
    if os.geteuid() != 0:
        raise Skipped("mounting a small tmpfs needs root")
    folder = run("mktemp", "-d").strip()
    try:
        run("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "a3-small", folder)
    except Failed as problem:
        os.rmdir(folder)
        raise Skipped(f"a tmpfs cannot be mounted here: {problem}") from None
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], stdin=subprocess.DEVNULL, check=False)
        os.rmdir(folder)


def fill(disk):
    """Takes all its space; returns the file that does."""
    ballast = os.path.join(disk, "ballast")
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while file.write(bytes(65536)) == 65536:
            pass
    return ballast


def alone(disk):
    with Cluster(count=1, rf=1) as cluster:
        node = cluster.nodes[0]
        node.stop()
        node.data = os.path.join(disk, "node")
        node.start().wait_ready()
        client, stored, answer = Client(node.http), {}, None
        ballast = None
        for n in range(4000):
            key, value = f"fill-{n:05}", os.urandom(4096)
            answer = client.ask("PUT", path_of(key), value)
            if not answer.ok:
                break
            stored[key] = value
            if n == 300:
                ballast = fill(disk)
        check(answer.status == 507 and answer.outcome == "not_applied", f"full after {len(stored)} keys: {answer.status}, {answer.outcome}")
        read = client.ask("GET", path_of("fill-00001"))
        check(read.ok, "it is read from meanwhile")
        check(node.process.poll() is None and node.ask("GET", "/livez").ok, "the node lives")
        os.remove(ballast)

        def writes():
            return client.ask("PUT", path_of("after"), b"v").ok

        wait_until("it writes again by itself", writes, 10)
        say("  ok  with space again it writes, without a restart")
        node.kill()
        node.start().wait_ready()
        client = Client(node.http)
        lost = [key for key, value in stored.items() if client.ask("GET", path_of(key)).body != value]
        check(not lost, f"all {len(stored)} acknowledged keys are there after kill -9 {lost[:3]}")


def among_others(disk):
    with Cluster(rf=2) as cluster:
        victim = cluster.nodes[1]
        victim.stop()
        os.rename(victim.data, victim.data + ".moved")
        run("cp", "-a", victim.data + ".moved", os.path.join(disk, "node"))
        victim.data = os.path.join(disk, "node")
        victim.start()
        cluster.wait_ready()
        load = Load(cluster.nodes)
        with load:
            time.sleep(1)
            ballast = fill(disk)
            hinted = fillers(cluster, victim)
            time.sleep(2)
            os.remove(ballast)
            time.sleep(2)
        odd = [op for op in load.failures() if op.status not in (503, 507)]
        check(hinted, f"{len(hinted)} new keys of {victim.name} were acknowledged, with a hint on another node")
        check(not odd, f"the load meanwhile: {load.summary()}")
        check(victim.process.poll() is None, f"{victim.name} lives")
        cluster.drained(30)
        say(f"  ok  with space again {victim.name} took its hints")
        load.verify(cluster.nodes)
        client = Client(victim.http)
        lost = [key for key, value in hinted.items() if client.ask("GET", path_of(key, consistency="one")).body != value]
        check(not lost, f"{victim.name} gives what was hinted meanwhile {lost[:3]}")


def fillers(cluster, victim):
    """Writes new keys until the victim has refused twenty; what was acknowledged with a hint for it."""
    hinted, client = {}, Client(cluster.nodes[0].http)
    for n in range(4000):
        key, value = f"filler-{n:05}", os.urandom(4096)
        answer = client.ask("PUT", path_of(key), value)
        if answer.ok and victim.name in answer.json()["hinted"]:
            hinted[key] = value
        if len(hinted) == 20:
            break
    return hinted


# --- damage ----------------------------------------------------------------------------------------------------------


def quarantine(options):
    """A truncated file, a lost log, a lost database: kept aside, rebuilt from the others, equal without an operator."""
    with Cluster(rf=3, GC_GRACE="24h") as cluster:
        load = Load(cluster.nodes)
        victim = cluster.nodes[2]
        file = os.path.join(victim.data, "a3.db")
        number = 0
        for what, clean, harm in (
            ("the file cut to half", True, lambda: os.truncate(file, os.path.getsize(file) // 2)),
            ("the log deleted after kill -9", False, lambda: os.remove(file + "-wal")),
            ("the database deleted", True, lambda: os.remove(file)),
        ):
            number += 1
            say(f"  {what}")
            with load:
                time.sleep(1)
            if clean:
                victim.stop()
            else:
                victim.kill()
            harm()
            load.targets = cluster.others(victim)
            with load:
                victim.start()
                time.sleep(1)
                victim.wait_ready(60)
            load.targets = cluster.nodes
            check(not load.failures(), f"the load at the others meanwhile: {load.summary()}")
            cluster.settle(30)
            kept = glob.glob(file + ".damaged-*[0-9]")
            check(victim.metric("a3_store_set_aside_total") == 1, f"it was moved aside ({len(kept)} kept so far) and counted")
            converged(cluster, 60)
            load.verify(cluster.nodes)
            load.verify([victim], consistency="one")
        epochs = {node.ask("GET", "/cluster").json()["epoch"] for node in cluster.nodes}
        check(epochs == {1 + number}, f"each time a new instance took its place: epoch {epochs}")


def flips(options):
    """200 flipped bits in a stopped node's database: never a wrong value or a 404 at any level, all repaired in the end."""
    rng, seen = random.Random(options.seed), 0
    with Cluster(rf=3) as cluster:
        load = Load(cluster.nodes, keys=2000)
        victim = cluster.nodes[rng.randrange(3)]
        for bits in (1, 5, 200):
            victim.stop()
            file = os.path.join(victim.data, "a3.db")
            with open(file, "r+b") as database:
                content = bytearray(database.read())
                for _ in range(bits):
                    bit = rng.randrange(8 * len(content))
                    content[bit // 8] ^= 1 << bit % 8
                database.seek(0)
                database.write(content)
            say(f"  {bits} bits flipped in {len(content):,} bytes of {victim.name}")
            victim.start()
            served = served_right(load, victim)
            say(f"  ok  {served} answers of {victim.name} meanwhile, none of them a wrong value")
            cluster.settle(30)
            converged(cluster, 120, restart=victim)
            load.verify(cluster.nodes)
            load.verify([victim], consistency="one")
            # Of its last life: one that it ended by itself shows in the next as a database set aside.
            seen += victim.metric("a3_store_damaged_rows_total") + victim.metric("a3_store_set_aside_total")
            say(f"      damaged rows and databases counted so far: {seen:g}")
        check(seen > 0, "what was damaged was noticed and counted")


def served_right(load, victim):
    """Reads every key at the victim at each level while it comes back. An absent key is as wrong as another value: a replica
    that cannot say whether it holds a key says that, and another one is asked."""
    served, client, deadline = 0, Client(victim.http), time.monotonic() + 60
    for level in ("one", "quorum", "all", "linearizable"):
        for key in load.keys:
            if victim.process.poll() is not None:  # It met a damaged page and stopped: what starts it again does so.
                victim.start()
            answer = client.ask("GET", path_of(key.name, consistency=level))
            if answer.status == 200:
                number = key.number_in(answer.body)
                if not key.acked <= number <= key.sent:
                    raise Failed(f"{key.name} at {level}: {number}, acknowledged {key.acked}")
                served += 1
            elif answer.status == 404:
                raise Failed(f"{key.name} at {level}: {answer}")
            elif answer.status == 0 and time.monotonic() < deadline:
                time.sleep(0.02)
    return served


def converged(cluster, seconds, restart=None):
    """Until all copies are equal, as their rows say, in everything that was written before this was called: what is younger
    than five seconds is under way, and not compared."""
    began, told, written_ms = time.monotonic(), None, time.time() * 1000

    def equal():
        nonlocal told
        if restart is not None and restart.process.poll() is not None:
            restart.start().wait_ready(60)
        told = cluster.nodes[0].ask("GET", "/cluster/convergence?deep=true", timeout=60)
        if not told.ok or told.json()["status"] != "equal":
            return False
        chunks = [chunk for pair in told.json()["pairs"] for chunk in pair["chunks"]]
        return all((chunk["equal_up_to_ms"] or 0) >= written_ms for chunk in chunks)

    try:
        wait_until("the copies are equal", equal, seconds, every=0.5)
    except Failed as problem:
        raise Failed(f"{problem}; at last {told}") from None
    say(f"  ok  all copies equal, row by row, {time.monotonic() - began:.1f} s later")
