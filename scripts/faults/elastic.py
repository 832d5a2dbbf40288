"""Members that come, go and are replaced, and copies that become fewer and more, while clients go on (docs/operations.md)."""

import json
import shutil
import time

from cluster import Client, Cluster, Failed, Node, check, free_ports, path_of, say, wait_until
from load import store_many

from .healing import in_step, name
from .traffic import Traffic

KEYS, KEYS_IN_CI = 20_000, 6_000
# Of those, deleted before anything changes: they must not come back.
DELETED = 200
SLOTS = 256
# Keys on which strict operations are tried, enough that some are of every node's slots.
STRICT = 100
# Keys that a change may move, as a share of the fewest it could.
MOVED_MAX = 1.3
# For so long a change may go on, on a machine that does other things too.
PATIENCE = 120
# No member's place is given away before it was down for so long.
DOWN_FOR = 60


class Members:
    """The members of a cluster, in an order of their own; clients keep to the same list."""

    def __init__(self, cluster, rows):
        self.nodes, self.rows, self.rf = cluster.nodes, rows, cluster.rf
        self.dear = []  # Changes that moved too much: told at the end, so that the rest is seen, too.

    def named(self, node_name):
        return next(node for node in self.nodes if node.name == node_name)

    def up(self):
        return [node for node in self.nodes if node.process.poll() is None]

    def moved_little(self):
        """As it was told at each change."""
        dear = "".join(f"; {dear}" for dear in self.dear)
        check(not self.dear, f"each change moved at most {MOVED_MAX} times the keys that had to{dear}")

    def epochs(self):
        """Those in force; None for a node that has none, or ends."""
        told = [node.ask("GET", "/cluster") for node in self.up()]
        return {answer.json()["epoch"] if answer.ok else None for answer in told}

    def epoch(self):
        """The one epoch that all have in force."""

        def one():
            found = self.epochs()
            return found.pop() if len(found) == 1 else None

        return wait_until("one epoch is everywhere", one, PATIENCE)

    def changing(self):
        """What is told of the change under way by those that know of one."""
        told = [node.ask("GET", "/cluster/change") for node in self.up()]
        return [answer.json() for answer in told if answer.status == 200]

    def calm(self):
        """Whether nobody knows of a change, and all members have the same epoch."""
        return all(node.ask("GET", "/cluster/change").status == 404 for node in self.up()) and len(self.epochs()) == 1

    def shares(self):
        """How many slots each member keeps, told the same by all."""
        told = [node.ask("GET", "/cluster/ring").json()["slots"] for node in self.up()]
        if any(slots != told[0] for slots in told) or any("before" in slot for slot in told[0]):
            raise Failed("the nodes tell of different rings")
        homes = [replica for slot in told[0] for replica in slot["replicas"]]
        return {node.name: homes.count(node.name) for node in self.nodes}, len(homes) == self.rf * SLOTS

    def plan(self, **wish):
        answer = self.up()[0].ask("POST", "/cluster/plan", json.dumps(wish))
        if answer.status != 200:
            raise Failed(f"a plan of {wish}: {answer}")
        return answer.json()


def fetched(node):
    """Keys it fetched for changes, keys its rounds of anti-entropy moved (each counted at one end), and hints it delivered."""
    transferred = node.metric('a3_transfer_keys_total{direction="received"}')
    return transferred, node.metric("a3_anti_entropy_keys_total"), node.metric("a3_hints_delivered_total")


class Change:
    """A change of the members: made before it begins, and followed to its end by `ended`. `ideal`: the copies of slots that move
    at least."""

    def __init__(self, members, traffic, title, ideal):
        self.members, self.traffic, self.title, self.ideal = members, traffic, title, ideal
        self.epoch = members.epoch()
        self.before = {node.name: fetched(node) for node in members.up()}
        self.begin, self.progress = time.monotonic(), {}

    def look(self):
        """Whether it is over; what is told of it meanwhile is kept."""
        for told in self.members.changing():
            for member in told["members"]:
                done = self.progress.setdefault(member["node"], member)
                self.progress[member["node"]] = max(done, member, key=lambda m: m["keys"])
        return self.members.calm() and self.members.epoch() > self.epoch

    def ended(self):
        wait_until(f"{self.title}: it ends", self.look, PATIENCE, every=0.1)
        end = time.monotonic()
        say(f"  ok  {self.title}: ended after {end - self.begin:.1f} s, epoch {self.members.epoch()} everywhere")
        say(f"      {self.traffic.record.between(self.begin, end)}")
        self.is_even()
        self.moved()
        self.on_disk()

    def is_even(self):
        shares, whole = self.members.shares()
        uneven = max(shares.values()) - min(shares.values())
        check(whole and uneven <= 1, f"slots are even to within one: {shares}")

    def moved(self):
        zero = (0, 0, 0)
        told = [(fetched(node), self.before.get(node.name, zero)) for node in self.members.up()]
        transferred, repaired, hinted = (sum(now[i] - then[i] for now, then in told) for i in range(3))
        ideal = self.ideal * self.members.rows / SLOTS
        say(f"      keys fetched {transferred:,.0f}, moved by anti-entropy {repaired:,.0f}, by hints {hinted:,.0f}; "
            f"ideal {ideal:,.0f} ({self.ideal} copies of slots)")
        shown = [f"{who} {m['keys']:,} keys, {m['bytes']:,} bytes" for who, m in sorted(self.progress.items()) if m["keys"]]
        say(f"      as the change last told of itself: {'; '.join(shown) or 'nothing'}")
        # A member that was down lacks what clients wrote meanwhile, and what they write while members compare differs.
        most = MOVED_MAX * ideal + 2 * self.traffic.rows
        moved = transferred + repaired
        if moved > most:
            self.members.dear.append(f"{self.title}: {moved:,.0f} keys moved, of {ideal:,.0f} that had to")

    def on_disk(self):
        """Each keeps what is its own, and nothing else."""
        wanted = self.members.rf * self.members.rows
        held = lambda: sum(node.metric("a3_store_keys") for node in self.members.up())
        wait_until(f"{self.members.rf} copies of {self.members.rows:,} keys on all disks", lambda: held() == wanted, 30)


def begun(node, method, path, body=None):
    """Has a change begin. Where no majority answered in time it may have all the same, and is asked for again."""
    undecided = []

    def asked():
        answer = node.ask(method, path, json.dumps(body) if body else None, timeout=60)
        if answer.status == 504:
            undecided.append(answer)
        elif answer.status != 202 and not (undecided and answer.status in (404, 409)):
            raise Failed(f"{method} {path} at {node.name}: {answer}")
        return answer.status != 504

    wait_until(f"{method} {path} is decided", asked, PATIENCE)


def joins(cluster, members, traffic):
    """A fourth node, told where the others are and nothing else."""
    plan = members.plan(change="join", node="n4")
    check(plan["even"] and plan["copies"] <= MOVED_MAX * plan["copies_ideal"], f"planned: {plan['copies']} copies move, "
          f"of {plan['copies_ideal']} at least")
    http, grpc = free_ports(2)
    seeds = ",".join(f"127.0.0.1:{node.grpc}" for node in members.nodes)
    fourth = Node(4, http, grpc, cluster.folder, {"SEEDS": seeds, "REQUEST_TIMEOUT": "5s"})
    change = Change(members, traffic, "n4 joins", plan["copies_ideal"])
    fourth.start().wait_ready(PATIENCE)
    members.nodes.append(fourth)
    change.ended()


def leaves(members, traffic):
    """n2 leaves while n1 is down, which comes back with a topology of long ago."""
    first, second, third = (members.named(which) for which in ("n1", "n2", "n3"))
    old = members.epoch()
    first.stop()
    # These two move nothing, so nobody waits for n1.
    for zone in ("somewhere", None):
        change = Change(members, traffic, f"n3 stands in zone {zone}", 0)
        begun(second, "PUT", "/cluster/members/n3", {"zone": zone})
        wait_until(f"{change.title}: it ends", change.look, PATIENCE)
    say(f"  ok  n1 is down with epoch {old}, the others are at {members.epoch()}")

    plan = members.plan(change="leave", node="n2")
    check(plan["even"] and plan["copies"] <= MOVED_MAX * plan["copies_ideal"], f"planned: {plan['copies']} copies move, "
          f"of {plan['copies_ideal']} at least")
    change = Change(members, traffic, "n2 leaves", plan["copies_ideal"])
    begun(third, "POST", "/cluster/members/n2/leave")

    def held_up():
        """Whether the others are done, and n1 alone is waited for."""
        change.look()
        told = members.changing()
        return told and all([w["node"] for w in t["waiting_for"]] == ["n1"] for t in told) and told[0]

    told = wait_until("the change waits for n1 alone", held_up, PATIENCE, every=0.2)
    check(told["epoch"] > old, f"it waits for n1, which is down: {told['waiting_for'][0]['reason']}")
    say(f"      that far after {time.monotonic() - change.begin:.1f} s")
    traffic.more(1000)
    if not members.changing():
        raise Failed("the change ended without n1")
    begin = time.monotonic()
    first.start().wait_ready(PATIENCE)
    # It is followed at those that stay; clients find out for themselves.
    code = second.exit_code(PATIENCE)
    say(f"  ok  n1 is back and n2 ended by itself with exit code {code} after "
        f"{time.monotonic() - begin:.1f} s: {last_words(second)}")
    traffic.more(500)
    members.nodes.remove(second)
    change.ended()
    removed_stays_out(second)


def last_words(node):
    """What a node said last that ended because it is no member."""
    said = [line.split("a3: ", 1)[-1] for line in node.tail(8).splitlines() if "is not a member of cluster" in line]
    if not said:
        raise Failed(f"{node.name} did not say why it ended:\n{node.tail()}")
    return repr(said[-1][:180] + "...")


def removed_stays_out(node):
    """One that left is no member, whoever starts it again."""
    open(node.log, "w").close()
    code = node.start().exit_code(60)
    check(code not in (0, -9), f"{node.name} started again with its old directory: exit code {code}, {last_words(node)}")


def replaced(members, traffic, which, slots, meanwhile=lambda: None):
    """Killed, wiped, and started empty under its number; that is done while it waits."""
    node = members.named(which)
    before = members.epoch()
    # Clients ask nodes that live, or that say themselves that they cannot; what was under way at this one is lost to them.
    members.nodes.remove(node)
    node.kill()
    shutil.rmtree(node.data)
    change = Change(members, traffic, f"an empty {which} takes the place of a killed one", slots)
    members.nodes.append(node.start())

    def waits():
        """Whether it says what it waits for."""
        answer = node.ask("GET", "/readyz?verbose", timeout=2)
        return answer.status == 503 and b"waits for the place of another instance" in answer.body and answer

    told = wait_until(f"{which} says what it waits for", waits, 30)
    waiting = next(part["detail"] for part in told.json()["checks"] if not part["ok"])
    say(f"  ok  it waits: {waiting[-300:]!r}")
    meanwhile()
    node.wait_ready(DOWN_FOR + PATIENCE)
    took = time.monotonic() - change.begin
    check(took >= DOWN_FOR and members.epoch() == before + 1, f"it is a member {took:.1f} s after the kill")
    change.ended()


def copies(members, traffic, rf):
    plan = members.plan(change="replication-factor", rf=rf)
    change = Change(members, traffic, f"{members.rf} copies become {rf}", plan["copies_ideal"])
    begun(members.nodes[-1], "PUT", "/cluster/replication-factor", {"rf": rf})
    members.rf = rf
    change.ended()


def stored_are_there(members, keys):
    """What nobody touched is there at every node, and what was deleted is not."""
    for node in members.nodes:
        client = Client(node.http, 70)
        for first in range(0, keys, 1000):
            ops = [{"op": "get", "key": name(n)} for n in range(first, min(first + 1000, keys))]
            answer = client.ask("POST", "/batch?timeout=60s", json.dumps({"ops": ops}).encode())
            if not answer.ok:
                raise Failed(f"a batch at {node.name}: {answer}")
            for n, result in enumerate(answer.json()["results"], first):
                wanted = 404 if n < DELETED else 200
                if result["status"] != wanted or (wanted == 200 and result["record"]["value"] != "v" * 100):
                    raise Failed(f"{name(n)} at {node.name}: {result}")
    say(f"  ok  {keys - DELETED:,} keys that nobody touched are there at every node, and {DELETED} deleted ones are not")


def fill(cluster, keys):
    store_many([node.http for node in cluster.nodes], keys)
    ops = [{"op": "delete", "key": name(n)} for n in range(DELETED)]
    answer = cluster.nodes[0].ask("POST", "/batch?timeout=60s", json.dumps({"ops": ops}).encode(), timeout=70)
    if not answer.ok or not answer.json()["ok"]:
        raise Failed(f"deleting: {answer}")


def elastic(options):
    """Under load a node joins, one leaves, a killed one is replaced, RF goes to 2 and back: nothing lost, stale or failed."""
    keys = KEYS_IN_CI if options.ci else KEYS
    with Cluster(rf=3, REQUEST_TIMEOUT="5s") as cluster:
        fill(cluster, keys)
        traffic = Traffic(cluster.nodes)
        members = Members(cluster, keys - DELETED + traffic.rows)
        with traffic:
            begin = time.monotonic()
            traffic.more(4000)
            say(f"      before: {traffic.record.between(begin, time.monotonic())}")
            joins(cluster, members, traffic)
            leaves(members, traffic)
            replaced(members, traffic, "n3", SLOTS)
            copies(members, traffic, 2)
            copies(members, traffic, 3)
            begin = time.monotonic()
            traffic.more(4000)
            say(f"      afterwards: {traffic.record.between(begin, time.monotonic())}")
        traffic.prove()
        stored_are_there(members, keys)
        wait_until("all copies are equal", lambda: in_step(members.nodes[0], deep="true"), 60, every=0.5)
        say("  ok  all copies are equal")
        members.moved_little()


def strict_everywhere(node):
    """Keys of all slots, each created, written and read at the strict levels."""
    client = Client(node.http, 20)
    for n in range(STRICT):
        key = f"strict-{n}"
        created = client.ask("PUT", path_of(key), b"1", {"If-None-Match": "*"})
        written = client.ask("PUT", path_of(key, consistency="linearizable"), b"2")
        changed = client.ask("PUT", path_of(key), b"3", {"If-Match": f'"{written.version}"'})
        read = client.ask("GET", path_of(key, consistency="linearizable"))
        if not (created.status == 201 and written.ok and changed.ok and read.body == b"3"):
            raise Failed(f"{key}: {created}, {written}, {changed}, {read}")
    say(f"  ok  {STRICT} keys created, written, changed and read, all strictly, at {node.name}")


def refused_meanwhile(members, node, victim):
    """With one of its two replicas gone, a strict operation is refused, and the node that is missing named."""
    for n in range(STRICT):
        answer = node.put(f"refused-{n}", b"1", {"If-None-Match": "*"})
        if answer.status != 201:
            told = answer.json()
            missing = [failed["reason"] for failed in told["failed"] if failed["node"] == victim.name]
            check(answer.status == 503 and told["outcome"] == "not_applied" and missing, f"a strict write to a slot of {victim.name} is "
                  f"{answer.status}, {told['outcome']}: {victim.name} {missing}")
            return
        members.rows += 1
    raise Failed(f"{STRICT} strict writes went on without {victim.name}")


def survivor(options):
    """RF 2, one of three killed and wiped: the new one is in by itself, and strict operations of its slots go on."""
    keys = KEYS_IN_CI
    with Cluster(rf=2, REQUEST_TIMEOUT="5s") as cluster:
        fill(cluster, keys)
        victim, others = cluster.nodes[1], [cluster.nodes[0], cluster.nodes[2]]
        # At two copies strict operations need both, so that only plain ones go on meanwhile.
        plain = Traffic(cluster.nodes, strict=0, counters=())
        members = Members(cluster, keys - DELETED + plain.rows)
        shares, _ = members.shares()
        with plain:
            plain.more(1000)
            replaced(members, plain, victim.name, shares[victim.name], lambda: refused_meanwhile(members, others[0], victim))
            plain.more(1000)
        plain.prove()
        strict_everywhere(victim)
        begin = time.monotonic()
        counters = Traffic(cluster.nodes, keys=100)
        with counters:
            counters.more(3000)
        counters.prove()
        say(f"  ok  strict operations go on: {counters.record.between(begin, time.monotonic())}")
        stored_are_there(members, keys)
        wait_until("all copies are equal", lambda: in_step(others[0], deep="true"), 60, every=0.5)
        say("  ok  all copies are equal")
        members.moved_little()
