"""Watches: no last version is missed when nodes are killed, a watch goes on at another node, and whoever sleeps too long is told."""

import base64
import http.client
import json
import random
import socket
import threading
import time

from cluster import Client, Cluster, check, say, wait_until
from load import store_keys

WRITES = 10_000
KEYS = 2_000
# Changes that a node remembers.
REMEMBERED = 100_000
# Of a cursor: what comes before and behind its places, and a place.
HEAD_BYTES, PLACE_BYTES = 1 + 4 + 8 + 4, 2 + 8 + 8


class Watcher:
    """A client that watches until it ends, at one node after the other, each time from where it stood."""

    def __init__(self, nodes, prefix=""):
        self.nodes, self.prefix, self.going = list(nodes), prefix, True
        self.cursor, self.last, self.told, self.began, self.gone = None, {}, 0, 0, None
        self.disorder, self.at, self.connection = 0, 0, None
        self.thread = threading.Thread(target=self.work, daemon=True)

    def __enter__(self):
        self.thread.start()
        wait_until("the watch is in force", lambda: self.cursor, 20)
        return self

    def __exit__(self, *_):
        self.going = False
        try:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        except (AttributeError, OSError):
            # It is between two nodes.
            pass
        self.thread.join()

    def covers(self):
        """How many members its cursor has places of."""
        return (len(base64.urlsafe_b64decode(self.cursor + "===")) - HEAD_BYTES) // PLACE_BYTES

    def work(self):
        while self.going and not self.gone:
            try:
                self.follow(self.nodes[self.at % len(self.nodes)])
            except (OSError, http.client.HTTPException):
                pass
            self.at += 1
            time.sleep(0.1)

    def follow(self, node):
        # A node tells its cursor every ten seconds.
        connection = self.connection = http.client.HTTPConnection("127.0.0.1", node.http, timeout=30)
        headers = {"Last-Event-ID": self.cursor} if self.cursor else {}
        connection.request("GET", f"/watch?prefix={self.prefix}", headers=headers)
        answer = connection.getresponse()
        if answer.status == 410:
            self.gone = json.loads(answer.read())
        if answer.status != 200:
            return
        self.began += 1
        name, data, seen = None, None, {}
        while self.going:
            line = answer.readline()
            if not line:
                return
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data = json.loads(value)
            elif field == "id":
                self.cursor = value
            elif not field:
                if name == "gone":
                    self.gone = data
                    return
                if data:
                    self.take(data, seen)
                name, data = None, None

    def take(self, change, seen):
        key, version = change["key"], change["version"]
        self.disorder += version < seen.get(key, "")
        seen[key] = version
        self.last[key] = max(version, self.last.get(key, ""))
        self.told += 1


def written(nodes, victims, seed):
    """10,000 writes by four clients, meanwhile these nodes are killed and started one after the other; the last version of each key."""
    last, lock, done = {}, threading.Lock(), [0, 0]

    def work(number):
        chance = random.Random(seed * 100 + number)
        clients = {node.http: Client(node.http) for node in nodes}
        for _ in range(WRITES // 4):
            key = f"watched-{chance.randrange(KEYS)}"
            method = "DELETE" if chance.random() < 0.1 else "PUT"
            while True:
                answer = clients[chance.choice(nodes).http].ask(method, f"/kv/{key}", b"v" if method == "PUT" else None)
                if answer.ok:
                    break
                done[1] += 1
                time.sleep(0.02)
            with lock:
                last[key] = max(answer.version, last.get(key, ""))
                done[0] += 1

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for number, victim in enumerate(victims):
        share = (number + 0.3) / len(victims)
        wait_until(f"{share:.0%} of the writes", lambda: done[0] >= WRITES * share, 120)
        victim.kill()
        wait_until("a part of the writes without it", lambda: done[0] >= WRITES * (share + 0.3 / len(victims)), 120)
        victim.start().wait_ready(30)
    for thread in threads:
        thread.join()
    say(f"      {done[0]:,} writes of {len(last):,} keys, {done[1]} refused and sent again")
    return last


def watch(options):
    """A watcher's node is killed mid-write, hints outstanding, and another too: no key's last version is missed; too late is 410."""
    with Cluster(rf=2) as cluster:
        nodes = cluster.nodes
        with Watcher(nodes) as watcher:
            # The node it watches at first, and the next: hints are kept for both, and both forget what they had stored. The
            # second is killed seconds after the first is back, when that covers its slots again.
            last = written(nodes, [nodes[0]], options.seed)
            wait_until("the node that forgot covers its slots again", lambda: watcher.covers() == 3, 40)
            more = written(nodes, [nodes[1]], options.seed + 1)
            last.update({key: max(version, last.get(key, "")) for key, version in more.items()})
            check(watcher.gone is None, f"the watch went on ({watcher.began} times begun): {watcher.gone or 'never gone'}")
            behind = lambda: [key for key, version in last.items() if watcher.last.get(key, "") < version]
            wait_until("every last version is told", lambda: not behind(), 30)
            check(not behind(), f"of {len(last):,} keys each last version was told, {watcher.told:,} changes in all")
            check(watcher.disorder == 0, "in the order of each key's versions")
        sleeping = Watcher(nodes)
        with sleeping:
            pass
        began = time.monotonic()
        store_keys([node.http for node in nodes], REMEMBERED * 2)
        say(f"      {REMEMBERED * 2:,} keys in {time.monotonic() - began:.1f} s while it sleeps")
        sleeping.follow(nodes[2])
        check(sleeping.gone and sleeping.gone["code"] == "watch-gone", f"who sleeps past the window is told: {sleeping.gone and sleeping.gone['detail']}")
