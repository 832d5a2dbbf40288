"""Slow clients, and what a node needs: memory that stays flat, a start that stays short."""

import select
import socket
import time

from cluster import Cluster, Failed, check, say, wait_until
from load import Load, bench, store_keys


def slow(_options):
    """300 connections that never finish their headers and 300 that never finish a body are cut; others are served."""
    with Cluster(rf=2) as cluster:
        node = cluster.nodes[0]
        unfinished = {
            "headers": (b"GET /kv/slow HTTP/1.1\r\nHost: slow\r\nX-Never:", 5),
            "body": (b"PUT /kv/slow HTTP/1.1\r\nHost: slow\r\nContent-Length: 1000\r\n\r\nbegun", 30),
        }
        load = Load([node], keys=100)
        with load:
            begin = time.monotonic()
            open_ones = {}
            for kind, (text, _) in unfinished.items():
                for _ in range(300):
                    connection = socket.create_connection(("127.0.0.1", node.http))
                    connection.sendall(text)
                    open_ones[connection] = kind
            cut = {"headers": [], "body": []}
            while open_ones and time.monotonic() - begin < 40:
                for connection in select_readable(open_ones):
                    try:
                        ended = not connection.recv(4096)
                    except ConnectionResetError:
                        ended = True
                    if ended:
                        cut[open_ones.pop(connection)].append(time.monotonic() - begin)
                        connection.close()
        for kind, (_, deadline) in unfinished.items():
            times = cut[kind]
            known = f"after {min(times):.1f} to {max(times):.1f} s" if times else "none"
            check(len(times) == 300 and max(times) <= deadline + 5, f"{len(times)} of 300 unfinished {kind} cut, {known}")
        check(not load.failures(), f"the load meanwhile: {load.summary()}")
        slowest = max(op.end - op.begin for op in load.ops)
        say(f"      its slowest request took {slowest * 1000:.0f} ms")
        check(node.get("slow").status == 404, "none of the unfinished bodies was stored")


def select_readable(sockets):
    poller = select.poll()
    by_number = {}
    for connection in sockets:
        by_number[connection.fileno()] = connection
        poller.register(connection, select.POLLIN | select.POLLHUP | select.POLLERR)
    return [by_number[number] for number, _ in poller.poll(200)]


def memory(options):
    """An idle node needs at most 40 MiB; memory stays flat over many requests with nobody scraping."""
    with Cluster(rf=2) as cluster:
        time.sleep(3)
        idle = [node.rss_mib() for node in cluster.nodes]
        check(max(idle) <= 40, f"idle nodes hold {', '.join(f'{mib:.1f}' for mib in idle)} MiB, at most 40 allowed")
        # A small set of keys, so that what grows is not the data: the database is mapped into memory.
        keys, done, failed, samples = 5000, 0, 0, []
        ports = [node.http for node in cluster.nodes]
        store_keys(ports, keys)
        while done < options.requests or len(samples) < 6:
            for operation in ("put", "quorum", "one"):
                result = bench(ports, operation, keys, 2, 48)
                done, failed = done + result["requests"], failed + result["failed"]
            samples.append(max(node.rss_mib() for node in cluster.nodes))
            say(f"      after {done:,} requests: {samples[-1]:.1f} MiB")
        # The first third is warming up; what grows without end would still grow after it.
        warm, last = max(samples[: len(samples) // 3]), samples[-1]
        check(last <= warm * 1.1 + 4, f"from {warm:.1f} MiB when warm to {last:.1f} MiB at the end")
        check(failed == 0, f"{failed} of {done:,} requests failed")


def million(options):
    """A node with a million keys is ready within a second of its start."""
    # With three copies every node holds every key.
    with Cluster(rf=3) as cluster:
        begin = time.monotonic()
        store_keys([node.http for node in cluster.nodes], options.keys)
        say(f"      {options.keys:,} keys stored in {time.monotonic() - begin:.0f} s")
        for title, end in (("a clean stop", lambda node: node.stop()), ("kill -9", lambda node: node.kill())):
            for node in cluster.nodes:
                end(node)
                begin = time.monotonic()
                node.start().wait_ready(60)
                took = time.monotonic() - begin
                check(took <= 1, f"{node.name} is ready {took:.2f} s after its start ({title} before)")
        # All three were started within a fraction of a second; they find each other again before a majority can be read.
        cluster.settle()
        for i in (0, options.keys // 2, options.keys - 1):
            answer = cluster.nodes[0].get(f"key-{i:010}")
            if answer.status != 200:
                raise Failed(f"key-{i:010} is answered {answer}")

        def counts():
            return all(node.metric("a3_store_keys") == options.keys for node in cluster.nodes)

        wait_until(f"every node counts {options.keys:,} keys", counts, 60)
