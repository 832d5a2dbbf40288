"""Who is who: a member is its data directory, whatever its ports; and what must be refused."""

import shutil
import time

from cluster import Cluster, Failed, Node, check, free_ports, say, wait_until
from load import Load


def members(node):
    """What a node says of the cluster: its id, and each member's instance and addresses."""
    cluster = node.ask("GET", "/cluster").json()
    return cluster["cluster_id"], {m["id"]: m["instance"] for m in cluster["members"]}


def ports(_options):
    """All restarted on other ports, then on each other's ports: they come back, nothing lands on the wrong node."""
    with Cluster(rf=2) as cluster:
        load = Load(cluster.nodes)
        before = members(cluster.nodes[0])
        copies = cluster.rf * len(load.keys)
        held = holdings(cluster, copies)

        def again(title, assign):
            for node in cluster.nodes:
                node.stop()
            assign()
            cluster.point()
            for node in cluster.nodes:
                node.start()
            cluster.wait_ready()
            check(all(members(n) == before for n in cluster.nodes), f"{title}: every node names the same members as before")
            check(holdings(cluster, copies) == held, f"{title}: every node holds the keys it held: {held}")
            with load:
                time.sleep(1)
            check(not load.failures(), f"{title}: the load: {load.summary()}")
            load.verify(cluster.nodes)

        def others():
            fresh = free_ports(6)
            for i, node in enumerate(cluster.nodes):
                node.http, node.grpc = fresh[2 * i], fresh[2 * i + 1]

        def turned():
            used = [(node.http, node.grpc) for node in cluster.nodes]
            for node, (http, grpc) in zip(cluster.nodes, used[1:] + used[:1]):
                node.http, node.grpc = http, grpc

        again("other ports", others)
        again("each other's ports", turned)

        say("  n1 and n2 swap ports while n3 goes on")
        first, second = cluster.nodes[:2]
        first.stop(), second.stop()
        first.http, second.http, first.grpc, second.grpc = second.http, first.http, second.grpc, first.grpc
        cluster.point()
        first.start(), second.start()
        cluster.wait_ready()
        cluster.drained(10)
        check(holdings(cluster, copies) == held, "every node holds the keys it held")
        load.verify(cluster.nodes)


def holdings(cluster, copies):
    """How many keys each node has on its own disk, once they are all the copies there must be."""

    def counts():
        found = {node.name: int(node.metric("a3_store_keys")) for node in cluster.nodes}
        return found if sum(found.values()) == copies else None

    return wait_until(f"the nodes hold {copies} copies", counts, 15)


def refusals(_options):
    """A directory in use, a number that lives, a foreign cluster's node: each refused with a message."""
    with Cluster(rf=2) as cluster:
        seeds = ",".join(f"127.0.0.1:{node.grpc}" for node in cluster.nodes)

        def refused(title, node, *words):
            code = node.exit_code(20)
            text = node.tail(40)
            said = [line for line in text.splitlines() if any(word in line for word in words)]
            check(code not in (0, -9) and said, f"{title}: exit code {code}, {said[-1].strip(' |') if said else text}")

        twin = stranger(cluster, 2, seeds)
        twin.data = cluster.nodes[1].data
        refused("a second process on n2's directory", twin.start(), cluster.nodes[1].data)

        double = stranger(cluster, 2, seeds)
        refused("another node that calls itself n2", double.start(), "n2")

        foreign = stranger(cluster, 4, None)
        foreign.start().wait_ready()
        foreign.stop()
        foreign.settings["SEEDS"] = seeds
        refused("a node of another cluster", foreign.start(), "cluster")

        cluster.settle()
        Load(cluster.nodes, keys=50).verify(cluster.nodes)


def stranger(cluster, num, seeds):
    """A node with a directory and ports of its own that the cluster does not know."""
    http, grpc = free_ports(2)
    settings = {"REPLICATION_FACTOR": "2", "CLUSTER_SIZE": "3", "SEEDS": seeds} if seeds else {}
    node = Node(num, http, grpc, cluster.folder, settings)
    node.data += f"-stranger-{http}"
    node.log += f"-stranger-{http}"
    return node


def seeds(_options):
    """Nodes wait for their seeds and form one cluster; a founder with a wiped directory founds no second one."""
    cluster = Cluster(rf=2)
    try:
        for node in cluster.nodes[1:]:
            node.start()
        for node in cluster.nodes[1:]:
            wait_until(f"{node.name} answers", lambda n=node: n.ask("GET", "/livez").ok, 10)
        time.sleep(3)
        for node in cluster.nodes[1:]:
            answer = node.ask("GET", "/readyz?verbose")
            check(answer.status == 503, f"{node.name} waits for its seeds: {answer.body.decode()[:400]!r}")
        cluster.nodes[0].start()
        cluster.wait_ready()
        founded = members(cluster.nodes[0])
        check(all(members(node) == founded for node in cluster.nodes), f"one cluster forms: {founded[0]}")
        load = Load(cluster.nodes, keys=50)

        founder = cluster.nodes[0]
        founder.stop()
        shutil.rmtree(founder.data)
        founder.start()
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline and founder.process.poll() is None:
            if founder.ready():
                raise Failed(f"n1, its directory wiped, serves: {founder.ask('GET', '/cluster')}")
            time.sleep(0.1)
        code = founder.process.poll()
        end = "waits, not ready" if code is None else f"ended with exit code {code}"
        check(code != 0, f"n1, its directory wiped, founds nothing; it {end}:\n{founder.tail(4)}")
        others = cluster.nodes[1:]
        check(all(members(node) == founded for node in others), "n2 and n3 name the same members as before")
        load.verify(others)
    finally:
        cluster.close()
