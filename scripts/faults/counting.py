"""Counters that many clients count up at once, in peace and while nodes fail."""

import random
import signal
import time

from cluster import Cluster, Failed, check, say

from .counters import Counter
from .network import Network

GOAL = 100  # Successes a second with 20 clients on one key.


def counter(options):
    """20 clients at three nodes count one key up (If-Match): the sum is exact, every loser gets 412 or 409."""
    with Cluster(rf=3) as cluster:
        count = Counter(cluster.nodes)
        with count:
            time.sleep(5 if options.ci else 15)
        others = [attempt for attempt in count.attempts if attempt.answer.status not in (200, 201, 409, 412)]
        check(not others, f"{count.statuses()} {others[:2]}")
        count.prove()
        rate = count.successes / count.seconds
        say(f"      goal: {GOAL}/s, {'met' if rate >= GOAL else 'MISSED'}")


class Fault:
    """Something that goes wrong with a node, and how that ends."""

    def __init__(self, name, begin, end):
        self.name, self.begin, self.end = name, begin, end


def faults(victim, others, network):
    """What may happen to this node; the other two always reach each other, so a majority is left."""
    return [
        Fault(f"{victim.name} is paused", lambda: victim.send(signal.SIGSTOP), lambda: victim.send(signal.SIGCONT)),
        Fault(f"{victim.name} is cut off", lambda: network.cut(victim, others), lambda: network.heal(victim, others)),
        Fault(f"{victim.name} and {others[0].name} are cut apart",
              lambda: network.cut(victim, others[:1]), lambda: network.heal(victim, others[:1])),
        Fault(f"{victim.name} is killed", victim.kill, victim.start),
    ]


def counter_faults(options):
    """The same while nodes are killed, paused and cut off, also two at once: nothing lost, nothing counted twice."""
    rng = random.Random(options.seed)
    with Network() as network:
        cluster = Cluster(rf=3)
        network.link(cluster.nodes)
        with cluster:
            count = Counter(cluster.nodes)
            with count:
                count.more(20, 15)
                end = time.monotonic() + (20 if options.ci else 60)
                while time.monotonic() < end:
                    victim = rng.choice(cluster.nodes)
                    others = rng.sample(cluster.others(victim), 2)
                    some = faults(victim, others, network)
                    # In their order, so that the killed one is killed last and started by nobody else.
                    drawn = sorted(rng.sample(range(len(some)), rng.choice((1, 1, 2))))
                    strike(count, [some[i] for i in drawn], rng)
                    victim.wait_ready(20)
            tally = count.prove()
            check(tally["unknown"] > 0, f"the faults were felt: {tally['unknown']} unknown")
            cluster.settle()


def strike(count, drawn, rng):
    """Lets it go wrong, sees that the others count on, and ends it."""
    before, begin = count.successes, time.monotonic()
    for fault in drawn:
        fault.begin()
        time.sleep(rng.uniform(0, 1))
    try:
        count.more(20, 20)
        took = time.monotonic() - begin
        time.sleep(rng.uniform(0, 2))
    finally:
        for fault in rng.sample(drawn, len(drawn)):
            fault.end()
    names = " and ".join(fault.name for fault in drawn)
    say(f"      {names}: {count.successes - before} counted, the first 20 in {took:.1f} s")


def rejoin(_options):
    """A node cut off under load: once the cut is over all are healthy again by themselves, though nobody asks them."""
    with Network() as network:
        cluster = Cluster(rf=3)
        network.link(cluster.nodes)
        with cluster:
            for victim in cluster.nodes:
                count = Counter(cluster.nodes, key=f"rejoin-{victim.num}")
                with count:
                    count.more(20, 20)
                    network.cut(victim, cluster.others(victim))
                    count.more(20, 20)
                    time.sleep(3)
                network.heal(victim, cluster.others(victim))
                begin = time.monotonic()
                cluster.settle(20)
                say(f"  ok  {victim.name} was cut off: all are healthy {time.monotonic() - begin:.1f} s after its end")
