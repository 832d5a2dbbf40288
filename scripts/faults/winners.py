"""Conditions at large: one of many creates a key, ETags stay dead, and two copies that are not both there say so."""

import random
import threading
import time
from collections import Counter as Tally

from cluster import Client, Cluster, Failed, check, path_of, say, wait_until

from .crowd import Crowd
from .versions import Versions

NOTHING_THERE = {"If-None-Match": "*"}


def match(*versions):
    return {"If-Match": ", ".join(f'"{version}"' for version in versions)}


def read(node, key):
    """A linearizable read, asked for until a majority can be had."""

    def answer():
        found = node.get(key, consistency="linearizable")
        return found if found.status in (200, 404) else None

    return wait_until(f"{node.name} reads {key}", answer, 20)


# --- absent ----------------------------------------------------------------------------------------------------------


def absent(options):
    """60 PUTs with If-None-Match: * at once at three nodes: one 201, the others 412 or 409; also with a node killed."""
    with Cluster(rf=3) as cluster, Crowd(cluster.nodes, 60) as crowd:
        rng, statuses = random.Random(options.seed), Tally()
        for turn in range(50):
            statuses += one_creates(cluster, crowd, f"absent-{turn}")
        say(f"  ok  50 keys: {dict(statuses)}")
        statuses = Tally()
        for turn in range(6 if options.ci else 30):
            victim = cluster.nodes[turn % 3]

            def strike():
                time.sleep(rng.uniform(0, 0.03))
                victim.kill()

            statuses += one_creates(cluster, crowd, f"absent-killed-{turn}", strike, victim)
        say(f"  ok  {turn + 1} keys, each while a node is killed: {dict(statuses)}")


def one_creates(cluster, crowd, key, strike=None, victim=None):
    """All create this key at once, and something happens meanwhile; how many were answered which status."""

    def create(index, _node, client):
        return client.ask("PUT", path_of(key), f"by {index}".encode(), NOTHING_THERE)

    answers = crowd.together(create, strike or (lambda: None))
    if victim:
        victim.start().wait_ready()
    statuses = Tally(answer.status for answer in answers)
    winners = [i for i, answer in enumerate(answers) if answer.ok]
    unknown = [i for i, answer in enumerate(answers) if answer.outcome == "unknown"]
    title = f"{key}: {dict(statuses)}"
    if victim is None and (statuses[201] != 1 or set(statuses) - {201, 412, 409}):
        raise Failed(title)
    if len(winners) > 1:
        raise Failed(f"{title}: {winners} all created it: {[answers[i] for i in winners]}")
    # None: nothing is there.
    reads = [read(node, key) for node in cluster.nodes]
    found = {(answer.body if answer.ok else None, answer.version) for answer in reads}
    if len(found) != 1:
        raise Failed(f"{title}: the nodes differ: {found}")
    body, version = found.pop()
    met = {answer.version for answer in answers if answer.status == 412}
    told = {answers[i].version for i in winners} | met
    if told - {version}:
        raise Failed(f"{title}: read {version} {body!r}, but told of {told}")
    allowed = [f"by {i}".encode() for i in winners or unknown] + [None] * (not winners)
    if body not in allowed:
        raise Failed(f"{title}: read {body!r}; created by {winners}, unknown {unknown}")
    return statuses


# --- etags -----------------------------------------------------------------------------------------------------------


class Reborn:
    """One client that creates, replaces and deletes one key over and over, and tries the ETags of the past."""

    def __init__(self, index, nodes, versions):
        self.key, self.rng, self.versions = f"reborn-{index}", random.Random(index), versions
        self.clients = [Client(node.http, 5) for node in nodes]
        self.dead, self.never, self.sent, self.lives, self.refused = [], set(), 0, 0, 0

    def ask(self, method, headers, **query):
        self.sent += 1
        body = f"{self.key} {self.sent}".encode() if method == "PUT" else None
        answer = self.rng.choice(self.clients).ask(method, path_of(self.key, **query), body, headers)
        if answer.ok and method != "GET":
            self.versions.note(self.key, answer.version, body)
        elif answer.outcome == "not_applied" and body:
            self.never.add(body)
        return answer

    def look(self):
        """What stands there; None where a majority cannot be had."""
        answer = self.ask("GET", {}, consistency="linearizable")
        if answer.status not in (200, 404):
            time.sleep(0.01)
            return None
        self.versions.note_read(self.key, answer)
        if answer.body in self.never:
            raise Failed(f"{self.key}: refused for good, and there after all: {answer}")
        return answer

    def live(self):
        """One step: whatever stands there becomes something else; then no ETag of the past is taken for it."""
        before = self.look()
        if before is None:
            return
        if before.status == 404:
            answer = self.ask("PUT", NOTHING_THERE)
            self.lives += answer.ok
        else:
            answer = self.ask(self.rng.choice(("PUT", "DELETE")), match(before.version))
        if answer.ok and before.version:
            self.dead.append(before.version)
        if self.dead:
            self.try_dead(self.dead[-500:])
            self.try_dead([self.rng.choice(self.dead)])

    def try_dead(self, old):
        answer = self.ask(self.rng.choice(("PUT", "DELETE")), match(*old))
        self.refused += answer.status == 412
        # Whatever it was answered, what it wanted to store must never be seen.
        self.never.add(f"{self.key} {self.sent}".encode())
        if answer.ok:
            raise Failed(f"{self.key}: of {len(old)} ETags of the past one is taken again: {answer}")


def etags(options):
    """Keys deleted and created again by condition, nodes killed: no ETag comes back to life or has two values."""
    with Cluster(rf=3) as cluster:
        versions, wrong, going = Versions(), [], [True]
        keys = [Reborn(index, cluster.nodes, versions) for index in range(6)]

        def work(key):
            while going[0]:
                try:
                    key.live()
                except Exception as problem:
                    wrong.append(str(problem) if isinstance(problem, Failed) else repr(problem))

        workers = [threading.Thread(target=work, args=(key,), daemon=True) for key in keys]
        for worker in workers:
            worker.start()
        end, kills = time.monotonic() + (10 if options.ci else 40), 0
        while time.monotonic() < end:
            victim = cluster.nodes[kills % 3]
            victim.kill()
            time.sleep(0.5)
            victim.start().wait_ready()
            kills += 1
            before = [key.refused for key in keys]
            wait_until("every key goes on", lambda: wrong or all(k.refused > b + 2 for k, b in zip(keys, before)), 20)
            if wrong:
                break
        going[0] = False
        for worker in workers:
            worker.join(20)
        cluster.settle()
        lives, refused = sum(key.lives for key in keys), sum(key.refused for key in keys)
        say(f"      {kills} kills, {lives} lives of {len(keys)} keys, {refused} tries with old ETags refused")
        if wrong:
            raise Failed("; ".join(wrong[:3]))
        check(not versions.wrong, f"{len(versions.contents)} versions, each of one value {versions.wrong[:3]}")
        old = sum(len(key.dead) for key in keys)
        for key in keys:
            # By now every copy is there: each of the past, one by one, is refused and nothing else.
            answers = Tally(key.ask("PUT", match(version)).status for version in key.dead)
            if set(answers) - {412}:
                raise Failed(f"{key.key}: with each of its old ETags {dict(answers)}")
        check(old > 0, f"each of {old} old ETags by itself, at the end: 412")


# --- rf2 -------------------------------------------------------------------------------------------------------------


def rf2(_options):
    """RF 2, a home replica down: what needs both is 503 and not applied; other keys go on, these when it is back."""
    with Cluster(rf=2) as cluster:
        victim = cluster.nodes[0]
        others = cluster.others(victim)
        keys = [f"rf2-{i}" for i in range(60)]
        homes = {key: victim.put(key, b"before").json()["replicas"] for key in keys}
        hit = [key for key in keys if victim.name in homes[key]]
        spared = [key for key in keys if key not in hit]
        check(hit and spared, f"of 60 keys {len(hit)} are at home at {victim.name}")
        versions = {key: read(victim, key).version for key in keys}
        writes = {
            "If-Match": lambda node, key: node.put(key, b"after", match(versions[key])),
            "If-None-Match": lambda node, key: node.put(key, b"after", NOTHING_THERE),
            "DELETE with If-Match": lambda node, key: node.delete(key, match(versions[key])),
            "Idempotency-Key": lambda node, key: node.put(key, b"after", {"Idempotency-Key": f"{key}-once"}),
            "PUT ?consistency=linearizable": lambda node, key: node.put(key, b"after", consistency="linearizable"),
            "DELETE ?consistency=linearizable": lambda node, key: node.delete(key, consistency="linearizable"),
        }

        victim.kill()
        for title, write in writes.items():
            for turn, key in enumerate(hit):
                refused(title, write(others[turn % 2], key), victim)
            say(f"  ok  {victim.name} down, {title}: 503 not_applied for all {len(hit)}, {victim.name} named")
        unread = [others[turn % 2].get(key, consistency="linearizable") for turn, key in enumerate(hit)]
        check({a.status for a in unread} == {503}, "GET ?consistency=linearizable: 503")
        for turn, key in enumerate(spared):
            answer = others[turn % 2].put(key, b"meanwhile", match(versions[key]))
            if answer.status != 200:
                raise Failed(f"{key}, at home at {homes[key]}, with {victim.name} down: {answer}")
        say(f"  ok  the other {len(spared)} go on")

        victim.start().wait_ready()
        cluster.settle()
        for turn, key in enumerate(hit):
            node = cluster.nodes[turn % 3]
            found, stored = read(node, key), node.put(key, b"again", match(versions[key]))
            if (found.body, stored.status) != (b"before", 200):
                raise Failed(f"{key}, {victim.name} back: {found}, then If-Match with the ETag of old: {stored}")
        say(f"  ok  {victim.name} back: all {len(hit)} are as they were, their ETags still match")


def refused(title, answer, victim):
    if answer.status != 503:
        raise Failed(f"{title} with {victim.name} down: {answer}")
    problem = answer.json()
    named = victim.name in [each["node"] for each in problem["failed"]]
    honest = problem["outcome"] == "not_applied" and problem["required"] == 2 and len(problem["acked"]) < 2
    if not (named and honest):
        raise Failed(f"{title} with {victim.name} down: {answer}")
