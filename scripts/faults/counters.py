"""Many clients count one key up, each with a condition on what it read; then the key's whole history is proved.

Each value names the operation that wrote it and the one whose value it was made of. So the last value, followed back
through what the clients sent, is the history: an operation is in it or it never happened. What must hold:

- every success is in it, no definite failure is, and of the unknown ones any may be;
- the number is the length of the history: nothing counted twice;
- every value that anybody read, or that a 412 showed, is in it;
- the order is that of real time: who began after another had ended finds at least what that one left.
"""

import json
import threading
import time
from collections import Counter as Tally
from collections import namedtuple

from cluster import Client, Failed, path_of, say, wait_until

from .versions import Versions

# What a client found: the count, the operation that wrote it, and its version (None: there was no value).
Base = namedtuple("Base", "number id version")
ABSENT = Base(0, None, None)
# What a client tried: the value `id` as `base.number + 1`. Times are monotonic seconds.
Attempt = namedtuple("Attempt", "begin end id base node answer")
# What a read or a 412 showed.
Sight = namedtuple("Sight", "begin end base")


class Counter:
    """As a context: the clients count until it ends."""

    def __init__(self, nodes, key="counter", clients=20, timeout=5):
        self.nodes, self.key, self.clients, self.timeout = list(nodes), key, clients, timeout
        self.sent, self.attempts, self.sights, self.wrong = {}, [], [], []
        self.versions = Versions()
        self.successes = 0
        self.going = False

    def __enter__(self):
        self.going, self.begin = True, time.monotonic()
        self.workers = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(self.clients)]
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_):
        self.going = False
        for worker in self.workers:
            worker.join(3 * self.timeout)
        self.seconds = time.monotonic() - self.begin
        if any(worker.is_alive() for worker in self.workers):
            raise Failed("a client of the counter hangs")

    def work(self, index):
        node = self.nodes[index % len(self.nodes)]
        client, turn = Client(node.http, self.timeout), 0
        while self.going:
            try:
                base = self.read(client)
                if base is None:
                    time.sleep(0.01)  # Nobody there, or not enough of them: do not spin.
                    continue
                turn += 1
                self.increment(client, node, base, f"c{index}-{turn}")
            except Exception as problem:  # A defect of an answer is a finding; see `prove`.
                self.wrong.append(f"client {index} at {node.name}: {problem!r}")

    def read(self, client):
        begin = time.monotonic()
        answer = client.ask("GET", path_of(self.key, consistency="linearizable"))
        if answer.status not in (200, 404):
            return None
        return self.saw(begin, answer)

    def saw(self, begin, answer):
        """Notes the value that an answer carries."""
        base = ABSENT
        if answer.status != 404:
            value = json.loads(answer.body)
            if self.sent.get(value["by"]) != answer.body:
                raise Failed(f"{answer} was never sent")
            base = Base(value["n"], value["by"], answer.version)
            self.versions.note(self.key, answer.version, value["by"])
        self.sights.append(Sight(begin, time.monotonic(), base))
        return base

    def increment(self, client, node, base, id):
        value = json.dumps({"n": base.number + 1, "by": id, "on": base.id}).encode()
        condition = {"If-Match": f'"{base.version}"'} if base.version else {"If-None-Match": "*"}
        self.sent[id] = value
        begin = time.monotonic()
        answer = client.ask("PUT", path_of(self.key), value, {**condition, "Prefer": "return=representation"})
        self.attempts.append(Attempt(begin, time.monotonic(), id, base, node.name, answer))
        if answer.ok:
            self.versions.note(self.key, answer.version, id)
            self.successes += 1
        elif answer.status == 412:
            self.refused(begin, answer)

    def refused(self, begin, answer):
        if "Preference-Applied" in answer.headers:
            self.saw(begin, answer)
        elif answer.version:
            raise Failed(f"a 412 without the value that was preferred: {answer}")

    def more(self, successes, seconds):
        """Until so many more were successful."""
        wanted = self.successes + successes
        wait_until(f"{successes} more increments succeed", lambda: self.successes >= wanted, seconds, every=0.02)

    def final(self):
        """What is there when all is over, the same at every node."""
        found = set()
        for node in self.nodes:
            client = Client(node.http, self.timeout)
            found.add(wait_until(f"{node.name} reads the counter", lambda: self.read(client), 20))
        if len(found) != 1:
            raise Failed(f"the nodes differ at the end: {found}")
        return found.pop()

    def prove(self):
        """Proves the whole history; returns how many attempts ended how."""
        final = self.final()
        attempts = {attempt.id: attempt for attempt in self.attempts}
        history, base = [], final
        while base.id is not None:
            history.append(base.id)
            base = attempts[base.id].base
        if final.number != len(history):
            raise Failed(f"the number is {final.number}, its history has {len(history)} increments")
        happened = set(history)
        by_outcome = Tally(attempt.answer.outcome for attempt in self.attempts)
        for attempt in self.attempts:
            outcome = attempt.answer.outcome
            if outcome == "applied" and attempt.id not in happened:
                self.wrong.append(f"lost: {attempt}")
            if outcome == "not_applied" and attempt.id in happened:
                self.wrong.append(f"happened after all: {attempt}")
        self.wrong += [f"gone again: {s}" for s in self.sights if s.base.id is not None and s.base.id not in happened]
        self.wrong += self.versions.wrong + self.out_of_order(happened)
        if self.wrong:
            raise Failed(f"{len(self.wrong)} defects, the first of them: " + "; ".join(self.wrong[:5]))
        found = sum(a.answer.outcome == "unknown" and a.id in happened for a in self.attempts)
        say(f"  ok  the sum is {final.number:,}: {by_outcome['applied']:,} successes and {found} of "
            f"{by_outcome['unknown']} unknown; none of {by_outcome['not_applied']:,} definite failures; each once")
        say(f"  ok  {len(self.sights):,} reads and 412s and all increments are in the order of real time")
        rate = by_outcome["applied"] / self.seconds
        say(f"      {rate:.0f} successes/s over {self.seconds:.0f} s; {self.statuses()}")
        return by_outcome

    def out_of_order(self, happened):
        """Whoever ended before another began came no later in the history, and earlier if the other one is a write."""
        events = [(s.begin, s.end, s.base.number, s) for s in self.sights]
        for attempt in self.attempts:
            # Of an unknown one it is not known when it happened, only that it was after its begin.
            if attempt.id in happened:
                end = attempt.end if attempt.answer.ok else float("inf")
                events.append((attempt.begin, end, attempt.base.number + 1, attempt))
        by_begin, by_end = sorted(events, key=lambda e: e[0]), sorted(events, key=lambda e: e[1])
        wrong, reached, last, ended = [], 0, None, 0
        for begin, _, number, event in by_begin:
            while by_end[ended][1] < begin:
                if by_end[ended][2] > reached:
                    reached, last = by_end[ended][2:]
                ended += 1
            if number < reached + isinstance(event, Attempt):
                wrong.append(f"{event} came after {last}")
        return wrong

    def statuses(self):
        tally = Tally(attempt.answer.status for attempt in self.attempts)
        return "PUTs answered " + ", ".join(f"{status}: {count:,}" for status, count in sorted(tally.items()))
