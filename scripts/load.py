"""Clients that write and read while something is done to the nodes, and remember every answer.

Each key belongs to one thread, which writes ever greater numbers to it, one request at a time. So what must hold is
simple: whatever is read is a number that was sent, and none below the last acknowledged one.
"""

import json
import os
import random
import subprocess
import threading
import time
from collections import namedtuple

from cluster import Client, Failed, path_of, program, say

# Times are monotonic seconds; `number` is what a PUT wrote or a GET returned (None: nothing).
Op = namedtuple("Op", "begin end kind key number node status body")


class Key:
    def __init__(self, name):
        self.name = name
        self.sent = 0
        self.acked = 0
        self.version = ""  # Of the last acknowledged write; the texts of versions sort as versions up to the writer.

    def value(self, number):
        return f"{self.name} {number} ".encode().ljust(100, b".")

    def number_in(self, value):
        """The number in a value of this key; a value of another key or damage is an error at once."""
        name, number, _ = value.split(b" ")
        if name.decode() != self.name or value != self.value(int(number)):
            raise Failed(f"{self.name} holds {value!r}, which was never written to it")
        return int(number)


class Load:
    """Threads of clients at `targets`, a list of nodes that may be replaced at any time."""

    def __init__(self, nodes, keys=300, threads=6, reads=0.5, prefix="load", timeout=10):
        self.targets, self.reads, self.timeout, self.threads = list(nodes), reads, timeout, threads
        self.keys = [Key(f"{prefix}-{i:05}") for i in range(keys)]
        self.ops, self.wrong = [], []
        self.going = False
        self.workers = []
        for key in self.keys:
            answer = self.put(Client(self.targets[0].http), self.targets[0], key)
            if answer.status not in (200, 201):
                raise Failed(f"storing {key.name} before the load begins: {answer}")

    def __enter__(self):
        self.ops, self.wrong, self.going = [], [], True
        self.workers = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(self.threads)]
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_):
        self.going = False
        for worker in self.workers:
            worker.join(self.timeout + 5)
        if any(worker.is_alive() for worker in self.workers):
            raise Failed("a client of the load hangs")

    def work(self, index):
        rng, clients = random.Random(index), {}
        mine = self.keys[index::self.threads]
        while self.going:
            node, key = rng.choice(self.targets), rng.choice(mine)
            client = clients.get(node.http) or clients.setdefault(node.http, Client(node.http, self.timeout))
            try:
                ask = self.get if rng.random() < self.reads else self.put
                if ask(client, node, key).status == 0:
                    time.sleep(0.01)  # Nobody there: do not spin.
            except Exception as problem:  # A defect of a value or an answer is a finding; see `verify`.
                self.wrong.append(f"{key.name} at {node.name}: {problem}")

    def note(self, begin, kind, key, number, node, answer):
        self.ops.append(Op(begin, time.monotonic(), kind, key.name, number, node.name, answer.status, answer.body))

    def put(self, client, node, key, **query):
        key.sent += 1
        number, begin = key.sent, time.monotonic()
        answer = client.ask("PUT", path_of(key.name, **query), key.value(number))
        self.note(begin, "PUT", key, number, node, answer)
        if answer.ok:
            version = answer.json()["version"]
            if version <= key.version:
                self.wrong.append(f"{key.name}: version {version} of a later PUT is not above {key.version}")
            key.acked, key.version = number, version
        return answer

    def get(self, client, node, key, **query):
        begin, acked = time.monotonic(), key.acked
        answer = client.ask("GET", path_of(key.name, **query))
        number = key.number_in(answer.body) if answer.status == 200 else None
        self.note(begin, "GET", key, number, node, answer)
        if answer.status == 404 or (number is not None and not acked <= number <= key.sent):
            self.wrong.append(f"{key.name} at {node.name}: read {number}, acknowledged {acked}, sent {key.sent}")
        return answer

    def failures(self):
        return [op for op in list(self.ops) if not 200 <= op.status < 300]

    def every_key(self, nodes, put=True, keys=None, **query):
        """Writes and reads every key at each of these nodes; returns the receipts of the writes by key."""
        receipts = {}
        for node in nodes:
            client = Client(node.http)
            for key in keys or self.keys:
                for ask in (self.put, self.get) if put else (self.get,):
                    answer = ask(client, node, key, **query)
                    if not answer.ok:
                        raise Failed(f"{ask.__name__.upper()} {key.name} {query} at {node.name}: {answer}")
                    if ask == self.put:
                        receipts[key.name] = answer.json()
        return receipts

    def verify(self, nodes, **query):
        """Every acknowledged write is there, or a later one of its key; at each of these nodes."""
        self.every_key(nodes, put=False, **query)
        if self.wrong:
            raise Failed(f"{len(self.wrong)} wrong answers, the first of them: " + "; ".join(self.wrong[:5]))
        acked = sum(op.kind == "PUT" and 200 <= op.status < 300 for op in self.ops)
        say(f"  ok  all {len(self.keys)} keys hold their last acknowledged value ({acked:,} writes acknowledged)")

    def summary(self, ops=None):
        ops = self.ops if ops is None else ops
        failed = [op for op in ops if not 200 <= op.status < 300]
        return f"{len(ops):,} requests, {len(failed)} failed" + (f" (first: {failed[0]})" if failed else "")


def bench(ports, operation, keys, seconds, connections, kind="a3", warmup=1):
    """One run of `a3 bench` with connections spread over these ports; what it counted and measured. The same generator
    speaks to etcd, so that both are measured by one ruler. Operations: put, quorum, one, load (each key once)."""
    command = [program(), "bench", "--output", "json", "--hosts", ",".join(f"127.0.0.1:{port}" for port in ports),
               "--connections", str(connections), "--seconds", str(seconds), "--keys", str(keys), "--prefix", "key-",
               "--value-bytes", "100", "--warmup", "0" if operation == "load" else str(warmup)]
    command += {"put": ["--op", "put"], "quorum": ["--op", "get"], "one": ["--op", "get", "--consistency", "one"],
                "load": ["--load", "--op", "get"]}[operation]
    command += ["--etcd"] if kind == "etcd" else []
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + 900)
    if done.returncode:
        raise Failed(f"a3 bench failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    result = json.loads(done.stdout)
    latency, failed = result["latency_ms"], sum(result["errors"].values())
    return {"requests": result["operations"], "failed": failed, "rate": result["operations_per_second"],
            "p50_ms": latency["p50"], "p99_ms": latency["p99"]}


def store_keys(ports, keys, kind="a3"):
    """Stores each key (`key-` and ten digits) once."""
    bench(ports, "load", keys, 0.1, 64, kind)


def store_many(ports, keys, threads=4, together=1000):
    """The same of many: in batches."""
    numbers, value, failed = iter(range(0, keys, together)), "v" * 100, []

    def work(port):
        client = Client(port, timeout=60)
        for first in numbers:
            ops = [{"op": "put", "key": f"key-{n:010}", "value": value} for n in range(first, min(first + together, keys))]
            answer = client.ask("POST", "/batch?timeout=60s", json.dumps({"ops": ops}).encode())
            if not answer.ok or not answer.json()["ok"]:
                return failed.append(f"a batch from {first} on: {answer}"[:500])

    workers = [threading.Thread(target=work, args=(ports[i % len(ports)],), daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise Failed(failed[0])
