"""Graphs as data: nodes with their dependencies, and the capture of streams into one."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cuda.bindings.driver import CUstreamCaptureMode

if TYPE_CHECKING:
    from .process import Process
    from .queue import Operation, Stream
    from .work import Work


class Node:
    """A node of a graph: work, and the nodes that come before it."""

    def __init__(self, graph: Graph, work: Work, dependencies: Iterable[Node]) -> None:
        self.handle = 0
        self.graph, self.work, self.dependencies = graph, work, list(dict.fromkeys(dependencies))


class Graph:
    """A graph. Nodes are listed in the order of their creation, so that dependencies come first."""

    def __init__(self) -> None:
        self.handle = 0
        self.nodes: list[Node] = []

    def add(self, state: Process, work: Work, dependencies: Iterable[Node]) -> Node:
        """Add a node."""
        node = Node(self, work, dependencies)
        state.register(node)
        self.nodes.append(node)
        return node

    def edges(self) -> list[tuple[Node, Node]]:
        """Return the edges as (from, to)."""
        return [(before, node) for node in self.nodes for before in node.dependencies]

    def shape(self) -> list[list[int]]:
        """Return the positions that each node depends on: equal for graphs of the same topology."""
        position = {node: i for i, node in enumerate(self.nodes)}
        return [sorted(position[before] for before in node.dependencies) for node in self.nodes]


class Executable:
    """An instantiated graph: its own copy of the work, which updates replace."""

    def __init__(self, graph: Graph) -> None:
        self.handle = 0
        self.nodes = list(graph.nodes)
        self.shape = graph.shape()
        self.work = [node.work for node in graph.nodes]
        self.last: Operation | None = None

    def order(self, choose: random.Random | None) -> Sequence[int]:
        """Return the positions of the nodes in an order that the dependencies allow: the first such, or any."""
        if choose is None:
            return range(len(self.shape))
        waiting, done, order = set(range(len(self.shape))), set[int](), []
        while waiting:
            ready = sorted(i for i in waiting if done.issuperset(self.shape[i]))
            chosen = choose.choice(ready)
            waiting.remove(chosen)
            done.add(chosen)
            order.append(chosen)
        return order


class Capture:
    """A capture in progress: the graph, the streams that take part and the stream that began it."""

    def __init__(self, graph: Graph, origin: Stream, mode: CUstreamCaptureMode, number: int) -> None:
        self.graph, self.origin, self.mode, self.number = graph, origin, mode, number
        self.thread = threading.get_ident()
        self.streams = [origin]
        self.invalidated = False
        self.finished = False

    def joined(self) -> bool:
        """Whether all captured work comes before the end of the stream that began the capture."""
        reached, waiting = set[Node](), list(self.origin.tail)
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                waiting.extend(node.dependencies)
        return len(reached) == len(self.graph.nodes)
