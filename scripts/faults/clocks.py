"""Nodes whose wall clock is wrong (libfaketime moves it; timers keep running true)."""

import glob
import os
import random
import time

from cluster import Cluster, Failed, check, debian, say, wait_until
from load import Load

LIBRARY = "/usr/lib/*/faketime/libfaketime.so.1"


class Skewed:
    """The environment of a node whose clock this object moves, at its start and while it runs."""

    def __init__(self, cluster, offset=0):
        debian("faketime", "faketime")
        self.file = os.path.join(cluster.folder, f"clock-{id(self)}")
        self.set(offset)
        self.env = {
            "LD_PRELOAD": glob.glob(LIBRARY)[0],
            "FAKETIME_TIMESTAMP_FILE": self.file,
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds):
        with open(self.file + ".new", "w") as new:
            new.write(f"{seconds:+d}s\n")
        os.replace(self.file + ".new", self.file)


def restart(node, skewed):
    node.stop()
    node.start(**skewed.env).wait_ready()


def minute(_options):
    """A clock 60 s behind or ahead loses nothing: the later PUT wins, from whichever node."""
    for offset in (-60, 60):
        with Cluster(rf=2) as cluster:
            say(f"  n2's clock is off by {offset} s")
            restart(cluster.nodes[1], Skewed(cluster, offset))
            cluster.settle()
            load = Load(cluster.nodes)
            with load:
                time.sleep(3)
            check(not load.failures(), f"the load at all three: {load.summary()}")
            load.verify(cluster.nodes)
            later_wins(cluster)


def later_wins(cluster):
    """Keys written at one node after the other; each node must then read the last value."""
    rng = random.Random(1)
    for i in range(100):
        writers = [rng.choice(cluster.nodes) for _ in range(4)]
        for turn, node in enumerate(writers):
            answer = node.put(f"later-{i}", f"{turn}".encode())
            if not answer.ok:
                raise Failed(f"PUT later-{i} at {node.name}: {answer}")
        for node in cluster.nodes:
            answer = node.get(f"later-{i}")
            if answer.body != b"3":
                names = [writer.name for writer in writers]
                raise Failed(f"later-{i}, written at {names} in turn, reads {answer} at {node.name}")
    say("  ok  100 keys written at node after node read as written last, at every node")


def hour(_options):
    """One hour ahead: the node refuses to coordinate writes, poisons no key, and recovers when set right."""
    with Cluster(rf=2) as cluster:
        odd, skewed, tried = cluster.nodes[1], Skewed(cluster), []
        restart(odd, skewed)
        cluster.settle()
        load = Load(cluster.nodes)
        load.targets = cluster.others(odd)

        def set_wrong(change):
            with load:
                change()
                wait_until("n2 refuses writes", lambda: refuses(odd, tried), 15)
                say(f"  ok  n2 refuses: {odd.put('refused', b'x').json()['detail']}")
                steady = all(refuses(odd, tried) for _ in range(20))
            check(steady, "it goes on refusing")
            check(not load.failures(), f"the load at the other two: {load.summary()}")
            unpoisoned(cluster, load, tried)

        def set_right(change):
            change()
            wait_until("n2 takes writes again", lambda: odd.put("right-again", b"x").ok, 40)
            unpoisoned(cluster, load, tried)

        say("  n2's clock jumps an hour ahead while it runs, and back")
        set_wrong(lambda: skewed.set(3600))
        set_right(lambda: skewed.set(0))

        def start_wrong():
            skewed.set(3600)
            odd.stop()
            odd.start(**skewed.env)

        def start_right():
            odd.stop()
            odd.start().wait_ready()

        say("  n2 starts with a clock an hour ahead, and again with the right one")
        set_wrong(start_wrong)
        set_right(start_right)
        load.every_key(cluster.nodes)
        load.verify(cluster.nodes)


def refuses(node, tried):
    """Whether a PUT there is refused for its clock; every key that was tried is remembered."""
    key = f"tried-{len(tried)}"
    tried.append(key)
    answer = node.put(key, b"from the odd clock")
    return answer.status == 503 and answer.json()["code"] == "clock-skew"


def unpoisoned(cluster, load, tried):
    """Whatever was tried with the wrong clock, the nodes with the right one write and read every key."""
    good = [node for node in cluster.nodes if node.num != 2]
    load.every_key(good)
    if load.wrong:
        raise Failed(f"wrong answers: {load.wrong[:5]}")
    for key in tried:
        for turn, node in enumerate(good):
            value = f"{node.name} {turn}".encode()
            stored, read = node.put(key, value), good[1 - turn].get(key)
            if not stored.ok or read.body != value:
                raise Failed(f"{key}, tried at the odd clock: PUT at {node.name} {stored}, GET then {read}")
    say(f"  ok  {len(load.keys)} keys and {len(tried)} tried with the wrong clock are written and read at n1 and n3")
