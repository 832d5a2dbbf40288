"""Stamps are issued once: through kill -9, a clock that is set back, and a directory that is wiped."""

import random
import shutil
import threading
import time

from cluster import Client, Cluster, Failed, check, path_of, say, wait_until

from .clocks import Skewed
from .versions import Versions

# How far the clock is set back at each start, in seconds: within the reservation, beyond it, and each time further.
BACK = [0, -1, -8, -20, -60, -61, -120, -200]


class Writer:
    """Clients at one node that write to a few keys, with and without conditions, and read them."""

    def __init__(self, node, versions, keys=12, threads=4):
        self.node, self.versions, self.threads, self.stored, self.lost, self.wrong = node, versions, threads, 0, 0, []
        self.keys = [f"stamp-{i}" for i in range(keys)]
        self.turn = 0

    def __enter__(self):
        self.going, self.turn = True, self.turn + 1
        self.workers = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(self.threads)]
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_):
        self.going = False
        for worker in self.workers:
            worker.join(15)

    def work(self, index):
        rng, client, known, sent = random.Random(index), Client(self.node.http, 5), {}, 0
        while self.going:
            try:
                key, sent = rng.choice(self.keys), sent + 1
                value = f"{key} {self.turn}-{index}-{sent}".encode()
                condition = {"If-Match": f'"{known[key]}"'} if key in known and rng.random() < 0.3 else {}
                answer = client.ask("PUT", path_of(key), value, condition)
                if answer.ok:
                    self.stored += 1
                    self.versions.note(key, answer.version, value)
                elif answer.outcome == "unknown":
                    self.lost += 1
                elif answer.status == 0:
                    time.sleep(0.01)
                if answer.version:
                    known[key] = answer.version
                if rng.random() < 0.2:
                    self.versions.note_read(key, client.ask("GET", path_of(key)))
            except Exception as problem:
                self.wrong.append(repr(problem))

    def look(self, nodes, **query):
        """Reads every key at these nodes: what was stored though its answer was lost shows its version here."""
        for node in nodes:
            for key in self.keys:
                self.versions.note_read(key, node.get(key, **query))


def stamps(options):
    """kill -9 and a clock set back at each start, under load: no stamp is issued twice; a wiped node issues none."""
    for count, rf in ((1, 1), (3, 3)):
        with Cluster(count, rf=rf) as cluster:
            node, versions = cluster.nodes[0], Versions()
            clock, writer = Skewed(cluster), Writer(node, versions)
            node.stop()
            node.start(**clock.env).wait_ready()
            cluster.settle()
            for back in BACK * (1 if options.ci else 3):
                stored = writer.stored
                with writer:
                    wait_until("writes go on", lambda: writer.stored > stored + 100, 20)
                    node.kill()
                clock.set(back)
                node.start(**clock.env).wait_ready()
                writer.look([node], consistency="one")
            writer.look(cluster.nodes)
            wrong = writer.wrong + versions.wrong
            say(f"      {count} nodes, RF {rf}: {writer.stored:,} writes stored and {writer.lost} without an answer")
            check(not wrong, f"{len(versions.contents):,} versions, each of one value and one key {wrong[:3]}")
            if count > 1:
                wiped(cluster, node)


def wiped(cluster, node):
    """A node whose directory is gone is not who it was: it stays out and says why."""
    node.kill()
    shutil.rmtree(node.data)
    node.start()
    end, tried = time.monotonic() + 8, 0
    while time.monotonic() < end and node.process.poll() is None:
        answers = [node.put("wiped", b"x"), node.put("wiped", b"x", {"If-None-Match": "*"})]
        tried += len(answers)
        if any(answer.ok for answer in answers):
            raise Failed(f"{node.name}, its directory wiped, stores: {answers}")
        time.sleep(0.05)
    code = node.process.poll()
    why = node.tail(2) if code is not None else node.ask("GET", "/readyz?verbose").body.decode()
    check(code != 0, f"{node.name}, its directory wiped, stores nothing in {tried} tries; exit code {code}:\n{why}")
    found = cluster.nodes[1].get("wiped", consistency="linearizable")
    check(found.status == 404 and node.name in why, "nothing came of it, and it says who it cannot be")
