"""Clients that go on while the members change: whichever node they ask, and where it does not answer, one other node once.

What must hold of the plain keys, which all clients share, is what one register would do:

- a read finds no older version than anybody had found or been acknowledged when it began, at whichever node, at quorum and
  at `linearizable`; and a write's version is above it. Only what says that it is strict counts: else a stand-in was
  counted in a replica's place, and the answer does not promise that;
- a version has one content for ever, and that was sent to its key;
- at the end each key has the last acknowledged version, or a later one of a write whose end nobody knows.

Counters are `Counter`: their whole history is proved. Some have one client, others several, which compete.

No request may fail that was tried at two nodes. One exception: of competing conditional writes a few may be told that they
were outbid, their end unknown, and have no luck at a second node either. Writes of one key have one proposer, but when a node
stops or starts the nodes differ for a moment on who that is, and two proposers outbid each other.
"""

import itertools
import random
import threading
import time
import uuid
from collections import namedtuple

from cluster import Answer, Client, Failed, check, path_of, say, wait_until

from .counters import Counter
from .versions import Versions

# Before a client asks another node, and for how long it asks others rather than one that did not answer it, in seconds.
PAUSE, SHUNNED = 0.05, 1
# Of all requests of a load, so many may have been outbid and not answered by a second node.
OUTBID_MAX = 5

# A request as a client saw it, of one or two tries. Times are monotonic seconds.
Asked = namedtuple("Asked", "begin end kind tries fate strict")
DONE, OUTBID, FAILED = "done", "outbid", "failed"


def order(version):
    """A version as versions are compared."""
    return tuple(int(part, 16) for part in version.split("-"))


def answered(answer):
    """Whether a client has no reason to ask again: it was done, or refused for good."""
    return 200 <= answer.status < 500


def outbid(answer):
    """Whether another proposer was the reason, and no node that failed."""
    told = answer.json() if answer.status == 504 else {}
    return (told.get("outcome"), told.get("acked"), told.get("failed")) == ("unknown", [], [])


def fate(kind, tried):
    """What a client has of its request, all in all."""
    if answered(tried[-1]):
        return DONE
    return OUTBID if kind == "competing" and any(map(outbid, tried)) else FAILED


class Second(Answer):
    """The answer of the second try. What the first one did is unknown still, unless this one was done or the first one was not."""

    def __init__(self, first, last):
        super().__init__(last.status, last.headers, last.body, last.sent)
        self.first = first

    @property
    def outcome(self):
        if not self.ok and self.first.outcome == "unknown":
            return "unknown"
        return super().outcome

    def __repr__(self):
        return f"{self.first!r}, then {super().__repr__()}"


class Roamer:
    """A client that knows the nodes, a list that others may change, and asks any of them; after a moment another one, where that
    did not answer. `repeats`: its writes say of the second try that it is the same request (`Idempotency-Key`)."""

    def __init__(self, nodes, record, kind, seed, timeout, repeats=False):
        self.nodes, self.record, self.kind, self.timeout, self.repeats = nodes, record, kind, timeout, repeats
        self.rng, self.clients, self.shunned = random.Random(seed), {}, {}

    def some(self, *but):
        """A node to ask: any, rather one that lately answered."""
        now, nodes = time.monotonic(), [node for node in list(self.nodes) if node not in but] or but
        return self.rng.choice([node for node in nodes if self.shunned.get(node.name, 0) < now] or nodes)

    def ask(self, method, path, body=None, headers=None):
        headers = dict(headers or {})
        if self.repeats and method == "PUT":
            headers["Idempotency-Key"] = uuid.uuid4().hex
        begin, asked = time.monotonic(), [self.some()]
        answer = self.at(asked[0], method, path, body, headers)
        tried = [answer]
        if not answered(answer):
            time.sleep(PAUSE)
            self.shunned[asked[0].name] = time.monotonic() + SHUNNED
            asked.append(self.some(asked[0]))
            tried.append(self.at(asked[1], method, path, body, headers))
            answer = Second(*tried)
        strict = answer.headers.get("A3-Strict") != "false"
        op = Asked(begin, time.monotonic(), self.kind, len(asked), fate(self.kind, tried), strict)
        self.record.note(op, method, path, " then ".join(node.name for node in asked), answer)
        return answer

    def at(self, node, *request):
        if node.http not in self.clients:
            self.clients[node.http] = Client(node.http, self.timeout)
        return self.clients[node.http].ask(*request)


class Record:
    """Every request, and those that failed though they were tried twice."""

    def __init__(self):
        self.asked, self.failed = [], []

    def note(self, op, method, path, where, answer):
        self.asked.append(op)
        if op.fate == FAILED:
            when = time.strftime("%H:%M:%S", time.gmtime(time.time() - op.end + op.begin))
            self.failed.append(f"begun {when}, failed {op.end - op.begin:.1f} s later: {method} {path} at {where}: {answer}")

    def between(self, begin, end):
        """What was answered then, for a person."""
        ops = [op for op in list(self.asked) if begin <= op.end < end]
        took = sorted(op.end - op.begin for op in ops) or [0]
        again, weak = sum(op.tries > 1 for op in ops), sum(not op.strict for op in ops)
        rate, p99 = len(ops) / max(end - begin, 0.001), took[len(took) * 99 // 100]
        lost, failed = (sum(op.fate == what for op in ops) for what in (OUTBID, FAILED))
        return (f"{rate:.0f} requests/s, p99 {p99 * 1000:.0f} ms; {again} asked twice, {lost} outbid, {failed} failed; "
                f"{weak} not strict")


class RoamingCounter(Counter):
    """A counter whose clients roam; every other one names its requests."""

    def __init__(self, nodes, record, key, clients, timeout):
        super().__init__(nodes, key, clients, timeout)
        self.nodes, self.record = nodes, record

    def work(self, index):
        kind = "competing" if self.clients > 1 else "alone"
        client = Roamer(self.nodes, self.record, kind, f"{self.key}-{index}", self.timeout, index % 2 == 1)
        somewhere = namedtuple("Somewhere", "name")("a node")
        for turn in itertools.count():
            if not self.going:
                return
            try:
                base = self.read(client)
                if base is None:
                    time.sleep(0.01)
                else:
                    self.increment(client, somewhere, base, f"c{index}-{turn}")
            except Exception as problem:  # A defect of an answer is a finding; see `prove`.
                self.wrong.append(f"client {index}: {problem!r}")

    def refused(self, begin, answer):
        """Without the value where it repeats an earlier answer to a request that was named."""
        if "Preference-Applied" in answer.headers:
            self.saw(begin, answer)


class Cell:
    """A plain key, and what is known of it."""

    def __init__(self, name):
        self.name, self.sent, self.numbers, self.lock = name, {}, itertools.count(1), threading.Lock()
        self.known = (0, 0, 0)  # The greatest version that an ended strict request told of.
        self.acked = (0, 0, 0)  # And that any write was acknowledged with.

    def next(self):
        number = next(self.numbers)
        value = f"{self.name} {number} ".encode().ljust(100, b".")
        self.sent[value] = number
        return value

    def saw(self, version, strict, acked):
        with self.lock:
            self.known = max(self.known, version) if strict else self.known
            self.acked = max(self.acked, version) if acked else self.acked


class Traffic:
    """As a context: clients that ask `nodes`, a list that may be changed at any time, until it ends."""

    def __init__(self, nodes, keys=400, plain=4, strict=2, counters=(1, 2, 3, 3, 3), timeout=20):
        self.nodes, self.timeout, self.record, self.versions = nodes, timeout, Record(), Versions()
        self.cells = [Cell(f"roam-{i:04}") for i in range(keys)]
        self.wrong, self.going = [], False
        # What each thread does: how often it reads, and at which level.
        self.kinds = [("quorum", 0.5)] * plain + [("linearizable", 1.0)] * strict
        self.counters = [RoamingCounter(nodes, self.record, f"roam-counter-{i}", n, timeout) for i, n in enumerate(counters)]
        # All is there from now on, so that a 404 is wrong.
        first = Roamer(nodes, self.record, "first", 0, timeout)
        for cell in self.cells:
            self.write(first, cell)
        for counter in self.counters:
            counter.increment(first, nodes[0], counter.read(first), "first")
        self.rows = keys + len(counters)

    def __enter__(self):
        self.going = True
        self.workers = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(len(self.kinds))]
        for worker in self.workers:
            worker.start()
        for counter in self.counters:
            counter.__enter__()
        return self

    def __exit__(self, *_):
        self.going = False
        for counter in self.counters:
            counter.going = False
        for counter in self.counters:
            counter.__exit__()
        for worker in self.workers:
            worker.join(3 * self.timeout)
        if any(worker.is_alive() for worker in self.workers):
            raise Failed("a client hangs")

    def work(self, index):
        level, reads = self.kinds[index]
        client, rng = Roamer(self.nodes, self.record, level, index, self.timeout), random.Random(index)
        while self.going:
            cell = rng.choice(self.cells)
            try:
                if rng.random() < reads:
                    self.read(client, cell, level)
                else:
                    self.write(client, cell)
            except Exception as problem:  # As above.
                self.wrong.append(f"{cell.name}: {problem!r}")

    def write(self, client, cell):
        value, before = cell.next(), cell.known
        answer = client.ask("PUT", path_of(cell.name), value)
        if answer.ok:
            version, strict = answer.version, answer.json()["strict"]
            if strict and order(version) <= before:
                self.wrong.append(f"{cell.name}: acknowledged as {version}, not above {before}")
            self.versions.note(cell.name, version, value)
            cell.saw(order(version), strict, acked=True)

    def read(self, client, cell, level):
        before = cell.known
        answer = client.ask("GET", path_of(cell.name, consistency=level))
        if answer.status == 404:
            self.wrong.append(f"{cell.name} is absent at {level}: {answer}")
        if answer.status == 200:
            self.check_read(cell, level, answer, before)
        return answer

    def check_read(self, cell, level, answer, least):
        """Whether it may be read by somebody who has to find that version at least."""
        version, strict = order(answer.version), answer.headers.get("A3-Strict") != "false"
        if answer.body not in cell.sent:
            self.wrong.append(f"{cell.name} holds {answer.body!r}, which was never sent")
        if strict and version < least:
            self.wrong.append(f"{cell.name}: {answer.version} read at {level} after {least}")
        self.versions.note(cell.name, answer.version, answer.body)
        cell.saw(version, strict, acked=False)

    def more(self, requests, seconds=60):
        """Until so many more were answered."""
        wanted = len(self.record.asked) + requests
        wait_until(f"{requests} more requests are answered", lambda: len(self.record.asked) >= wanted, seconds)

    def prove(self):
        """Once all is over, at the nodes that are left."""
        self.never_went_back()
        for counter in self.counters:
            counter.prove()
        asked, failed = self.record.asked, self.record.failed
        if failed:
            shown = "; ".join(failed[:3])[:3000]
            raise Failed(f"{len(failed)} of {len(asked):,} requests failed twice, the first of them: {shown}")
        twice, lost = sum(op.tries > 1 for op in asked), sum(op.fate == OUTBID for op in asked)
        say(f"  ok  none of {len(asked):,} requests failed; {twice:,} were answered by a second node")
        check(lost <= OUTBID_MAX, f"{lost} were outbid, at most {OUTBID_MAX}: competing writes have one proposer, but for moments")

    def never_went_back(self):
        """Each key is what it was last acknowledged to be, or later; and so was all that was read."""
        for node in self.nodes:
            client = Roamer([node], self.record, "end", 0, self.timeout)
            for cell in self.cells:
                for level in ("quorum", "linearizable"):
                    least = max(cell.known, cell.acked)
                    answer = self.read(client, cell, level)
                    if answer.status != 200 or order(answer.version) < least:
                        self.wrong.append(f"lost: {cell.name} at {node.name} is {answer}, acknowledged was {least}")
        self.wrong += self.versions.wrong
        if self.wrong:
            raise Failed(f"{len(self.wrong)} wrong answers, the first of them: " + "; ".join(self.wrong[:5])[:3000])
        say(f"  ok  {len(self.cells)} keys have their last acknowledged version at every node, and nothing older was ever read")
