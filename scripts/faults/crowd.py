"""Clients that send at one moment."""

import threading
from concurrent.futures import ThreadPoolExecutor

from cluster import Client


class Crowd:
    """So many clients, spread over the nodes, each with a connection of its own. Used as a context."""

    def __init__(self, nodes, size, timeout=10):
        self.seats = [(node, Client(node.http, timeout)) for node, _ in zip(list(nodes) * size, range(size))]
        self.pool = ThreadPoolExecutor(size)
        self.gate = threading.Barrier(size + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.pool.shutdown()

    def together(self, ask, meanwhile=lambda: None):
        """What `ask(index, node, client)` returns for each of them, all called at once; the caller does its own part
        when they have begun."""

        def one(index):
            self.gate.wait(30)
            return ask(index, *self.seats[index])

        asked = [self.pool.submit(one, index) for index in range(len(self.seats))]
        self.gate.wait(30)
        meanwhile()
        return [each.result() for each in asked]
