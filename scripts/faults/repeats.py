"""Requests that are sent again under their Idempotency-Key."""

import random
import time

from cluster import Cluster, Failed, check, say, wait_until

from .crowd import Crowd
from .winners import NOTHING_THERE, match, read


def idempotent(options):
    """One Idempotency-Key at all nodes at once, and again after kill -9 of the proposer: done once, one answer."""
    with Cluster(rf=3) as cluster, Crowd(cluster.nodes, 6) as crowd:
        rng = random.Random(options.seed)
        for turn in range(6 if options.ci else 30):
            once(cluster, crowd, f"once-{turn}", turn, rng)
        say(f"  ok  {turn + 1} requests, each sent to three nodes at once: done once, one answer before and after kill -9 "
            "of the proposer, half of them amid it; another body under the Idempotency-Key: 422")
        refusal_stays(cluster, "refused")


def once(cluster, crowd, key, turn, rng):
    """The story of one request. Every other one creates, every second pair loses its proposer at once."""
    request = {"Idempotency-Key": f"request-{key}", **(NOTHING_THERE if turn % 2 else {})}
    placement = cluster.nodes[0].ask("GET", f"/cluster/placement?key={key}").json()
    proposer = next(node for node in cluster.nodes if node.name == placement["home_replicas"][0])
    others = cluster.others(proposer)
    amid = turn % 4 < 2

    def strike():
        time.sleep(rng.uniform(0, 0.01))
        proposer.kill()

    answers = crowd.together(lambda _, node, client: client.ask("PUT", f"/kv/{key}", b"the first", request),
                             strike if amid else lambda: None)
    if not amid and {answer.status for answer in answers} - {201, 409}:
        raise Failed(f"{key}, sent at once in peace: {answers}")
    answers.append(definite(others[0], key, b"the first", request))
    told = {(answer.status, answer.version) for answer in answers if answer.ok}
    if len(told) != 1 or next(iter(told))[0] != 201:
        raise Failed(f"{key}, one request: {told}; {answers}")
    first = told.pop()

    second = definite(others[1], key, b"the second", match(first[1]))
    if second.status != 200:
        raise Failed(f"{key}: a write on top of {first}: {second}")
    if not amid:
        proposer.kill()
    again(others, key, request, first, second)
    for node in others:
        another = definite(node, key, b"another", request)
        if another.status != 422:
            raise Failed(f"{key}, another body under its Idempotency-Key at {node.name}: {another}")
    proposer.start().wait_ready()
    cluster.settle()
    again(cluster.nodes, key, request, first, second)


def again(nodes, key, request, first, second):
    """It is answered as at first, and does nothing."""
    for node in nodes:
        answer = definite(node, key, b"the first", request)
        if (answer.status, answer.version) != first:
            raise Failed(f"{key}, sent again to {node.name}: {answer} {answer.version}, at first {first}")
        found = read(node, key)
        if (found.body, found.version) != (b"the second", second.version):
            raise Failed(f"{key}, sent again to {node.name}, did something: {found} {found.version}, not {second}")


def definite(node, key, body, headers):
    """The answer of a PUT that is sent until it is neither unknown nor to be sent again."""

    def answer():
        answered = node.put(key, body, headers)
        return answered if answered.status not in (0, 409, 503, 504) else None

    return wait_until(f"a definite answer for {key} at {node.name}", answer, 20)


def refusal_stays(cluster, key):
    """What was refused under an Idempotency-Key stays refused, though its condition has come true."""
    first, second, third = cluster.nodes
    there = definite(first, key, b"there", {})
    request = {"Idempotency-Key": "request-refused", **NOTHING_THERE}
    answers = [definite(second, key, b"x", request)]
    gone = third.delete(key, match(there.version))
    answers += [definite(node, key, b"x", request) for node in cluster.nodes]
    found = read(first, key)
    check([a.status for a in answers] == [412] * 4 and gone.ok and found.status == 404,
          f"a refusal is remembered too: {[a.status for a in answers]}, and nothing is stored ({found.status})")
