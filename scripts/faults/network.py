"""A network of the script's own, whose links between nodes can be cut.

The script moves into a network namespace that has no name: it ends with the last process in it, however that comes
about. Each node runs in a group of its own, by which the firewall tells who opened a connection; connections of the mesh
are marked with their link when they are opened, and a cut link drops what they carry, in both directions. Clients are
not of the mesh and are let through.
"""

import ctypes
import os

from cluster import Failed, Skipped, debian, run

CLONE_NEWNET = 0x40000000
GROUPS = 61000  # The group of node n is this and n.


class Network:
    """As a context: this script's main thread, and what it starts, are in a network of their own."""

    def __init__(self):
        self.cuts = []  # The marks of the links that are cut now.

    def __enter__(self):
        if os.geteuid() != 0:
            raise Skipped("only root can have a network namespace of its own to cut links in")
        debian("iproute2", "ip")
        debian("nftables", "nft")
        self.outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            enter("unshare", CLONE_NEWNET)
        except OSError as problem:
            os.close(self.outside)
            raise Skipped(f"no network namespace can be had here: {problem}") from None
        try:
            run("ip", "link", "set", "lo", "up")
            self.firewall("table inet cuts { set cut { type mark; }; }")
        except Failed as problem:
            self.__exit__()
            raise Skipped(f"no firewall can be had here: {problem}") from None
        return self

    def __exit__(self, *_):
        enter("setns", self.outside, CLONE_NEWNET)
        os.close(self.outside)

    def firewall(self, rules):
        run("nft", rules)

    def link(self, nodes):
        """Tells their links; call it before they start."""
        marks = []
        for node in nodes:
            node.group = GROUPS + node.num
            marks += [f"meta skgid {node.group} tcp dport {other.grpc} ct mark set {mark(node, other)}"
                      for other in nodes if other is not node]
        rules = "; ".join([*marks, "ct mark @cut drop"])
        self.firewall(f"table inet cuts {{ chain out {{ type filter hook output priority 0; {rules}; }}; }}")

    def cut(self, one, others):
        """Cuts the links between this node and those; a link that is cut twice must be healed twice."""
        self.change(self.cuts + [mark(one, other) for other in others])

    def heal(self, one, others):
        left = list(self.cuts)
        for other in others:
            left.remove(mark(one, other))
        self.change(left)

    def change(self, cuts):
        self.cuts = cuts
        elements = ", ".join(map(str, sorted(set(cuts))))
        self.firewall("flush set inet cuts cut" + (f"; add element inet cuts cut {{ {elements} }}" if cuts else ""))


def mark(one, other):
    return min(one.num, other.num) * 256 + max(one.num, other.num)


def enter(call, *arguments):
    """One of the two calls that change a thread's namespace (Python has them from 3.12)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
