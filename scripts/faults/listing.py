"""Listings: nothing that was there throughout is missed or told twice, and a stream of everything needs little memory."""

import http.client
import json
import random
import threading
import time
import urllib.parse

from cluster import Client, Cluster, Failed, check, say, wait_until
from load import store_keys

# Keys that stay as they are; others come and go around them.
KEYS = 100_000
# What a page of 100 by prefix may take, in a million keys, in seconds; and what a stream may add to a node, in MiB.
PAGE_SECONDS = 0.02
STREAM_MIB = 64


def page(client, cursor=None, **query):
    """A page, and how long it took."""
    if cursor:
        query["cursor"] = cursor
    begin = time.monotonic()
    answer = client.ask("GET", "/kv?" + urllib.parse.urlencode(query))
    took = time.monotonic() - begin
    if answer.status != 200:
        raise Failed(f"a page: {answer}")
    return answer.json(), took


class Writers:
    """Clients that put and delete keys between the steady ones, and put the steady ones anew, until it ends."""

    def __init__(self, nodes, seed):
        self.nodes, self.going, self.done, self.refused = list(nodes), True, 0, 0
        self.threads = [threading.Thread(target=self.work, args=(seed * 100 + i,), daemon=True) for i in range(4)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.going = False
        for thread in self.threads:
            thread.join()

    def work(self, seed):
        chance = random.Random(seed)
        clients = {node.http: Client(node.http) for node in self.nodes}
        while self.going:
            client = clients[chance.choice(self.nodes).http]
            steady = f"/kv/key-{chance.randrange(KEYS):010}"
            method, path = chance.choice(
                [("PUT", steady), ("PUT", f"{steady}-comes"), ("DELETE", f"{steady}-comes"), ("DELETE", f"{steady}-never")]
            )
            answer = client.ask(method, path, b"anew" if method == "PUT" else None)
            self.done += answer.ok
            self.refused += not answer.ok


def listed(nodes, meanwhile):
    """Every key, in pages of 1,000, each at the next node; `meanwhile` is told how many pages there were and says whom to ask."""
    clients = [Client(node.http, timeout=30) for node in nodes]
    found, cursor, pages, slowest, weak = [], None, 0, 0, 0
    while True:
        live = meanwhile(pages)
        told, took = page(clients[live[pages % len(live)]], cursor, limit=1000, timeout="20s")
        found += [item["key"] for item in told["items"]]
        pages, slowest, weak = pages + 1, max(slowest, took), weak + (not told["strict"])
        cursor = told["next"]
        if not cursor:
            say(f"      {len(found):,} keys in {pages} pages, {weak} with a stand-in, the slowest took {slowest * 1000:.0f} ms")
            return found


def complete(found, what):
    """Ascending, and every steady key once."""
    check(all(a < b for a, b in zip(found, found[1:])), f"{what}: in order, none twice")
    steady = [key for key in found if len(key) == len("key-0000000000")]
    missing = {f"key-{i:010}" for i in range(KEYS)} - set(steady)
    check(not missing and len(steady) == KEYS, f"{what}: {len(steady):,} of {KEYS:,} keys that existed throughout, {len(missing)} missed")


def listing(options):
    """100,000 keys listed in pages of 1,000 while others are written and a node is killed: each once, in order."""
    with Cluster(rf=2, REQUEST_TIMEOUT="10s") as cluster:
        nodes = cluster.nodes
        store_keys([node.http for node in nodes], KEYS)
        victim = nodes[2]

        def kill_midway(pages):
            if pages == 50:
                victim.kill()
            return [0, 1, 2] if pages < 50 else [0, 1]

        with Writers(nodes[:2], options.seed) as writers:
            complete(listed(nodes, lambda _: [0, 1, 2]), "with all nodes")
            complete(listed(nodes, kill_midway), f"{victim.name} killed midway")
            complete(listed(nodes, lambda _: [0, 1]), f"without {victim.name}")
            victim.start().wait_ready(30)
            complete(listed(nodes, lambda _: [0, 1]), f"while {victim.name} is back and caught up")
        say(f"      {writers.done:,} writes meanwhile, {writers.refused:,} refused")
        check(writers.done > 1000, "and they were many")
        wait_until("no hint is left", lambda: all(node.hints() == 0 for node in nodes), 60)
        complete(listed(nodes, lambda _: [0, 1, 2]), "at last")


def anon_mib(node):
    """What it has allocated. Pages of the database that are mapped are the system's to take back, and not counted."""
    for line in open(f"/proc/{node.process.pid}/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise Failed(f"no RssAnon for {node.name}")


class Watch:
    """The most that nodes have allocated, looked at all the time."""

    def __init__(self, nodes):
        self.nodes, self.most, self.going = nodes, {node.name: 0 for node in nodes}, True
        self.thread = threading.Thread(target=self.look, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.going = False
        self.thread.join()

    def look(self):
        while self.going:
            for node in self.nodes:
                self.most[node.name] = max(self.most[node.name], anon_mib(node))
            time.sleep(0.05)


def stream(node, slow=0):
    """Everything as lines; how many keys, in order, and how long it took. `slow`: rest so long after each 10,000."""
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", node.http, timeout=60)
    connection.request("GET", "/kv?timeout=20s", headers={"Accept": "application/x-ndjson"})
    reply, count, last = connection.getresponse(), 0, ""
    if reply.status != 200:
        raise Failed(f"a stream: {reply.status} {reply.read()!r}")
    for line in reply:
        told = json.loads(line)
        if "key" not in told:
            end = told
            break
        if told["key"] <= last:
            raise Failed(f"{told['key']} after {last}")
        last, count = told["key"], count + 1
        if slow and count % 10_000 == 0:
            time.sleep(slow)
    connection.close()
    if end.get("end", {}).get("items") != count:
        raise Failed(f"a stream of {count} keys ended with {end}")
    return count, time.monotonic() - begin


def listing_million(options):
    """In a million keys a page of 100 by prefix takes under 20 ms, and all of them are streamed within 64 MiB of memory."""
    with Cluster(rf=2, REQUEST_TIMEOUT="10s") as cluster:
        nodes = cluster.nodes
        begin = time.monotonic()
        store_keys([node.http for node in nodes], options.keys)
        say(f"      {options.keys:,} keys stored in {time.monotonic() - begin:.0f} s")
        time.sleep(10)
        client, chance = Client(nodes[0].http), random.Random(options.seed)
        for delimiter in ({}, {"delimiter": "0"}):
            times = []
            for _ in range(200):
                prefix = f"key-{chance.randrange(options.keys // 1000):07}"
                told, took = page(client, prefix=prefix, limit=100, **delimiter)
                times.append(took)
                if not delimiter and len(told["items"]) != 100:
                    raise Failed(f"{len(told['items'])} keys with the prefix {prefix}")
            times.sort()
            say(f"      a page of 100 by prefix {delimiter or ''}: p50 {times[100] * 1000:.1f} ms, p99 {times[197] * 1000:.1f} ms")
            check(times[100] <= PAGE_SECONDS, f"half of them within {PAGE_SECONDS * 1000:.0f} ms")
        told, took = page(client, delimiter="-", limit=100)
        check([p["prefix"] for p in told["common_prefixes"]] == ["key-"], f"one common prefix of all, in {took * 1000:.1f} ms")
        idle = {node.name: anon_mib(node) for node in nodes}
        for slow in (0, 0.05):
            with Watch(nodes) as watch:
                count, took = stream(nodes[0], slow)
            check(count == options.keys, f"{count:,} keys streamed in {took:.0f} s, {count / took:,.0f} a second{', read slowly' if slow else ''}")
            more = {name: watch.most[name] - idle[name] for name in idle}
            said = ", ".join(f"{name} {idle[name]:.0f} + {more[name]:.1f}" for name in idle)
            check(max(more.values()) <= STREAM_MIB, f"memory meanwhile, MiB: {said}")
