"""Moving data: what was exported is imported into an empty cluster, and is the same; twice changes nothing; what was deleted stays so."""

import base64
import http.client
import json
import os
import random
import shutil
import subprocess
import time

from cluster import Cluster, Failed, check, program, say
from load import store_keys

from .listing import Watch, anon_mib

KEYS = 10_000
# Beside those: with an end, and of bytes that are no text.
ENDING, BINARY = 500, 500
DELETED = 1_000
# What exporting and importing may add to what a node has allocated, in MiB, and the lines of the long import that shows it.
MEMORY_MIB = 64
LONG = 100_000


def batch(node, ops):
    for first in range(0, len(ops), 1000):
        answer = node.ask("POST", "/batch?timeout=60s", json.dumps({"ops": ops[first : first + 1000]}).encode(), timeout=70)
        if not answer.ok or not answer.json()["ok"]:
            raise Failed(f"a batch: {answer}"[:500])


def fill(nodes, chance):
    store_keys([node.http for node in nodes], KEYS)
    ends = [{"op": "put", "key": f"ends-{n:05}", "value": str(n), "ttl": f"{n + 1}h", "content_type": "text/plain"} for n in range(ENDING)]
    encoded = lambda size: base64.b64encode(chance.randbytes(size)).decode()
    binary = [{"op": "put", "key_base64": encoded(12), "value_base64": encoded(chance.choice([0, 10, 1000, 20_000]))} for _ in range(BINARY)]
    batch(nodes[0], ends)
    batch(nodes[1], binary)
    for n in range(20):  # Versions of conditional writes.
        key = f"conditional-{n}"
        receipt = nodes[2].put(key, b"1").json()
        if not nodes[0].put(key, b"2", {"If-Match": f'"{receipt["version"]}"'}).ok:
            raise Failed(f"{key} was not changed")
    return KEYS + ENDING + BINARY + 20


def command(*arguments, code=0):
    """`a3` and its arguments: what it said, and how long it took."""
    begin = time.monotonic()
    done = subprocess.run([program(), *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    if done.returncode != code:
        raise Failed(f"a3 {arguments[0]} ended with {done.returncode}, not {code}:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done.stdout, time.monotonic() - begin


def exported(node, path, keys):
    _, took = command("export", path, "--host", node.url)
    text = open(path, "rb").read()
    say(f"      {keys:,} keys, {len(text) / 1e6:.1f} MB exported in {took:.1f} s: {keys / took:,.0f} keys a second")
    return text


def imported(node, path, *more, **counts):
    """The counts of an import, which must be those, and none else."""
    text, took = command("import", path, *more, "--host", node.url, "-o", "json")
    told = json.loads(text)
    lines = sum(counts.values())
    wanted = {name: counts.get(name, 0) for name in ("stored", "unchanged", "older", "expired", "refused")} | {"lines": lines}
    got = {name: told[name] for name in wanted}
    if got != wanted or not told["complete"]:
        raise Failed(f"an import came to {got} (complete: {told['complete']}), not {wanted}; {told['problems'][:3]}")
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"      {shown} in {took:.1f} s: {lines / took:,.0f} lines a second")


def long_import(node):
    """Lines from a generator, more than the node may hold."""

    def pieces():
        for first in range(0, LONG, 1000):
            yield b"".join(b'{"key":"long-%06d","value":"%s"}\n' % (n, b"x" * 500) for n in range(first, first + 1000))

    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", node.http, timeout=600)
    connection.request("POST", "/import", body=pieces(), headers={"Content-Type": "application/x-ndjson"}, encode_chunked=True)
    reply = connection.getresponse()
    told = json.loads(reply.read())
    if (reply.status, told.get("stored")) != (200, LONG):
        raise Failed(f"{LONG:,} lines without versions: {reply.status} {told}"[:500])
    took = time.monotonic() - begin
    say(f"      {LONG:,} lines without versions stored in {took:.1f} s: {LONG / took:,.0f} a second")


def moving(options):
    """Exported, the cluster wiped, imported at another node: the same, byte for byte; and what is newer or deleted stays."""
    with Cluster(rf=2, REQUEST_TIMEOUT="10s") as cluster:
        nodes, folder = cluster.nodes, cluster.folder
        file = lambda name: os.path.join(folder, name)
        keys = fill(nodes, random.Random(options.seed))
        before = exported(nodes[0], file("before.ndjson"), keys)
        rows = exported(nodes[1], file("before.csv"), keys)
        check(len(before.splitlines()) == keys + 1 and rows.count(b"\r\n") > keys, f"{keys:,} keys as lines and as rows")

        for node in nodes:
            node.stop()
            shutil.rmtree(node.data)
        cluster.start()
        check(json.loads(nodes[0].ask("GET", "/kv").body)["items"] == [], "the cluster is wiped")
        imported(nodes[1], file("before.ndjson"), stored=keys)
        after = exported(nodes[2], file("after.ndjson"), keys)
        check(after == before, "exported again it is the same, byte for byte")
        imported(nodes[2], file("before.ndjson"), unchanged=keys)
        imported(nodes[0], file("before.csv"), unchanged=keys)
        check(exported(nodes[0], file("again.ndjson"), keys) == before, "importing twice changes nothing, in either format")

        batch(nodes[0], [{"op": "delete", "key": f"key-{n:010}"} for n in range(DELETED)])
        imported(nodes[1], file("before.ndjson"), unchanged=keys - DELETED, older=DELETED)
        left = exported(nodes[1], file("left.ndjson"), keys - DELETED)
        check(len(left.splitlines()) == keys - DELETED + 1, f"{DELETED:,} deleted keys stay deleted")
        imported(nodes[2], file("before.ndjson"), "--restamp", stored=keys)
        back = [json.loads(line) for line in exported(nodes[0], file("back.ndjson"), keys).splitlines()]
        first = [json.loads(line) for line in before.splitlines()]
        what = lambda lines: [[line.get(name) for name in ("key", "key_base64", "value", "value_base64", "content_type")] for line in lines[:-1]]
        check(what(back) == what(first), "restamped they are back, with the same values")
        newer = all(new["version"] > old["version"] for new, old in zip(back[:-1], first[:-1]))
        moved = max(abs(new["expires_at_ms"] - old["expires_at_ms"]) for new, old in zip(back[:-1], first[:-1]) if "expires_at_ms" in old)
        check(newer and moved < 600_000, f"under greater versions, and their ends moved by {moved} ms at most")

        idle = {node.name: anon_mib(node) for node in nodes}
        with Watch(nodes) as watch:
            long_import(nodes[0])
            exported(nodes[0], file("long.ndjson"), keys + LONG)
        more = max(watch.most[name] - idle[name] for name in idle)
        check(more <= MEMORY_MIB, f"with {more:.0f} MiB more at most, of {MEMORY_MIB}")
