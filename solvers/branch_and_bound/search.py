"""Branch and bound of one block: subtrees, each with its own convexification, best first (``bnb``).

A subtree is searched depth first by the kernel for a number of nodes; what it leaves open become subtrees of their own,
smaller and with a diagonal made for them. The least bound of the open ones bounds the block at any time.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fwbench.solvers.branch_and_bound import search_numba as kernel
from fwbench.solvers.branch_and_bound.certificate import Tree, safe_diagonal
from fwbench.solvers.branch_and_bound.relaxation_numba import FINE
from fwbench.solvers.semidefinite.row import RowForm, tangent_bound
from fwbench.solvers.semidefinite.search_diagonal import PENALTY, best_diagonal
from fwbench.verify import tree as proof
from fwbench.verify.rounding import EPS

CLOSE = 3e-10  # relative: a bound this close to the incumbent prunes; the checker has room for its rounding up to 1e-9
EFFORT = 30  # steps of a node's relaxation, in multiples of its variables
RESTARTS = 4  # perturbed descents at the start, in multiples of the variables
SCOUT = 300  # nodes of a first search, which tells what stays split deep in the tree
EVEN = 3.0  # an even share in the worth of diagonals, in means of what was seen split
HIDDEN = 1e-15  # of its terms: a mask's error that is less is rounding
PAIRS = 2e8  # but no more than this over m², so that wide blocks start in seconds


class UnprovableError(ArithmeticError):
    """What is left to prove is less than float64 rounds off."""


@dataclass(frozen=True)
class BinaryProgram:
    """``min vᵀQv + lᵀv + constant`` over masks of ``m`` variables, ``counts[g]`` ones in each of the equal groups."""

    Q: np.ndarray  # (m, m), positive semidefinite
    counts: np.ndarray  # (groups,)
    linear: np.ndarray | None = None  # l (m,); None: 0, and no mask is below 0
    constant: float = 0.0

    @property
    def least(self) -> float:
        """What ``l`` and the constant alone say: no mask is below it, as ``vᵀQv ≥ 0``."""
        if self.linear is None:
            return 0.0
        groups = np.sort(self.linear.reshape(len(self.counts), -1), axis=1)
        return float(groups[np.arange(groups.shape[1]) < self.counts[:, None]].sum()) + self.constant

    def terms(self, pruned: np.ndarray) -> tuple[float, float]:
        """What a mask costs, bool ``(m,)``, and the sum of the absolute values of its terms."""
        chosen = np.flatnonzero(pruned)
        Q = self.Q[np.ix_(chosen, chosen)]
        if self.linear is None:
            return float(Q.sum()), float(np.abs(Q).sum())
        linear = self.linear[chosen]
        size = float(np.abs(Q).sum() + np.abs(linear).sum()) + abs(self.constant)
        return float(Q.sum() + linear.sum()) + self.constant, size


@dataclass
class Node:
    """A subtree: what is fixed, the point it starts from, and once searched its proof and the subtrees left open."""

    fixed: np.ndarray  # (m,) int8, -1 free
    u: np.ndarray  # (m,)
    bound: float
    diagonal: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # of the free variables
    steps: np.ndarray | None = None  # uint8, as ``fwbench.verify.tree`` names them
    variables: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))  # of BRANCH and FIX
    points: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))
    children: list[Node] = field(default_factory=list)


@contextlib.contextmanager
def _alarm(seconds: float, stop: np.ndarray) -> Iterator[None]:
    """Set ``stop[0]`` after so many seconds."""
    if seconds > threading.TIMEOUT_MAX:
        yield
        return
    timer = threading.Timer(max(0.0, seconds), stop.fill, (True,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@dataclass
class Search:
    """Search of one block; units are those of ``scale`` so that the incumbent is about 1."""

    block: BinaryProgram
    pruned: np.ndarray  # (m,) bool, the incumbent
    gap: float
    seed: int
    budget: int = 5000  # nodes of a subtree before its open ones get diagonals of their own

    def __post_init__(self) -> None:
        m = self.pruned.size
        self.size = m // len(self.block.counts)
        self.value, terms = self.block.terms(self.pruned)
        self.nodes = self.diagonals = self.serial = 0
        self.psc, self.seen, self.split = np.zeros((3, 2, m))
        self.open: list[tuple[float, int, Node]] = []
        self.root: Node | None = None
        self.unprovable = False  # what is left to prove is less than float64 rounds off
        if self._trivial:
            return
        self.hidden, linear = HIDDEN, self.block.linear
        self.scale = self.value
        if linear is not None:  # then terms may cancel, and a mask's error be anything
            self.hidden = max(HIDDEN, m * EPS)
            if not abs(self.value) > self.hidden * terms:
                terms = float(self.block.Q.diagonal().sum() + np.abs(linear).sum())
            self.scale = max(abs(self.value), self.hidden * terms)
        self.Q = self.block.Q / self.scale
        self.linear = np.zeros(m) if linear is None else linear / self.scale
        self.constant = self.block.constant / self.scale
        self.rho = PENALTY * float(self.Q.diagonal().mean())
        self.tolerance = max(CLOSE, self.gap)

    @property
    def done(self) -> bool:
        return self._trivial or (self.root is not None and not self.open)

    @property
    def target(self) -> float:
        value = self.value / self.scale
        return value * (1 - math.copysign(self.tolerance, value))

    @property
    def _trivial(self) -> bool:
        """Whether no search is needed: nothing costs less than nothing, and the linear term."""
        return self.value - CLOSE * abs(self.value) <= self.block.least

    def _start(self, stop: np.ndarray) -> None:
        """A better incumbent by perturbed descent; where its terms cancel to their last bits there is none to prove."""
        m = self.pruned.size
        starts = np.arange(len(self.block.counts) + 1) * self.size
        v = self.pruned.astype(np.float64)
        rounds = max(20, min(RESTARTS * m, int(PAIRS / m**2)))
        kernel.perturbed(self.Q, self.linear, starts, v, rounds, self.seed, stop)
        self._improve(v > 0.5)
        _, terms = self.block.terms(self.pruned)
        self.unprovable = (self.value if self.block.linear is None else abs(self.value)) <= self.hidden * terms

    def _plant(self) -> None:
        """The root alone."""
        u = np.repeat(self.block.counts / self.size, self.size)
        fixed = np.where((u == 0) | (u == 1), u, -1).astype(np.int8)
        self.root = Node(fixed, u, self.block.least / self.scale)
        self.open = [(self.root.bound, 0, self.root)]

    def run(self, left: Callable[[], float], nodes: int) -> None:
        """Search until done, out of time (``left`` tells the seconds), past so many nodes, or at rounding's end."""
        if self._trivial:
            return
        stop = np.zeros(1, dtype=bool)  # the kernel looks at it before each node, and within it
        self.deadline = time.monotonic() + left()
        with _alarm(left(), stop), contextlib.suppress(UnprovableError):
            if self.root is None:
                self._start(stop)
                self._plant()
                self._expand(min(SCOUT, self.budget, nodes), stop)
                if self.open and left() > 0 and self.nodes < nodes:
                    self._plant()  # anew: what was learned of branching and diagonals is worth more than those nodes
            while self.open and left() > 0 and self.nodes < nodes:
                self._expand(min(self.budget, nodes - self.nodes), stop)
                if self.open and self.open[0][0] >= self.target:
                    self.open = []  # leaves as they are
        if self.open:
            self._cut_back()

    def _cut_back(self) -> None:
        """Give up what was found under a subtree where that proves less than the bound which it began with.

        A subtree's diagonal serves its deep nodes, and proves little while nodes near its root are still open.
        """
        assert self.root is not None
        order, stack = [], [self.root]
        while stack:
            node = stack.pop()
            order.append(node)
            stack += node.children
        proved: dict[int, float] = {}
        for node in reversed(order):
            if node.steps is not None:
                proved[id(node)] = min([self.target, *(proved[id(child)] for child in node.children)])
                if proved[id(node)] >= min(node.bound, self.target):
                    continue
                node.steps, node.children = None, []
            proved[id(node)] = node.bound
        self.open, stack = [], [self.root]
        while stack:
            node = stack.pop()
            stack += node.children
            if node.steps is None and node.bound < self.target:
                self.serial += 1
                self.open.append((node.bound, self.serial, node))
        heapq.heapify(self.open)

    def lower(self) -> float:
        """The block's bound now, as ``tree`` proves it."""
        if self._unsearched:
            return self._simplest()[0]
        lower = min([self.target, *(bound for bound, _, _ in self.open)]) * self.scale
        return max(0.0, lower) if self.block.linear is None else lower

    def _expand(self, budget: int, stop: np.ndarray) -> None:
        """Search the open subtree of the least bound; what it leaves open joins the others."""
        _, _, node = self.open[0]
        self._search(node, budget, stop)
        heapq.heappop(self.open)
        for child in node.children:
            self.serial += 1
            heapq.heappush(self.open, (child.bound, self.serial, child))

    def _search(self, node: Node, budget: int, stop: np.ndarray) -> None:
        free = np.flatnonzero(node.fixed < 0)
        ones = np.flatnonzero(node.fixed == 1)
        group = free // self.size
        groups, first = np.unique(group, return_index=True)
        start = np.append(first, free.size).astype(np.int64)
        need = (self.block.counts - (node.fixed.reshape(-1, self.size) == 1).sum(axis=1))[groups].astype(np.int64)
        Q = np.ascontiguousarray(self.Q[np.ix_(free, free)])
        b = 2 * self.Q[np.ix_(free, ones)].sum(axis=1) + self.linear[free]
        constant = float(self.Q[np.ix_(ones, ones)].sum() + self.linear[ones].sum()) + self.constant
        node.diagonal = self._diagonal(Q, b, free, start, need, constant)
        d = node.diagonal.astype(np.float64) / self.scale
        Q[np.diag_indices_from(Q)] -= d
        mask = np.zeros(free.size)
        psc, seen, split = (sums[:, free].copy() for sums in (self.psc, self.seen, self.split))
        at = self.value / self.scale - constant
        best, nodes, steps, points, fixings, starts, bounds = kernel.explore(
            Q,
            b + d,
            start,
            need,
            node.u[free].astype(np.float64),
            mask,
            at,
            constant,
            self.tolerance,
            budget,
            EFFORT,
            psc,
            seen,
            split,
            stop,
        )
        self.psc[:, free], self.seen[:, free], self.split[:, free] = psc, seen, split
        self.nodes += nodes
        if best < at:
            pruned = node.fixed == 1
            pruned[free] = mask > 0.5
            self._improve(pruned)
        code = steps[:, kernel.CODE].astype(np.uint8)
        node.steps, node.points = code, points
        node.variables = free[steps[(code >= proof.BRANCH) & (code < proof.POINT), kernel.OPERAND]].astype(np.uint16)
        for fixing, point, bound in zip(fixings, starts, bounds, strict=True):
            fixed, u = node.fixed.copy(), node.u.copy()
            fixed[free], u[free] = fixing, point
            node.children.append(Node(fixed, u, float(bound) + constant))
        node.u = node.u.astype(np.float32)  # needed only if it is cut back

    def _diagonal(
        self, Q: np.ndarray, b: np.ndarray, free: np.ndarray, start: np.ndarray, need: np.ndarray, constant: float
    ) -> np.ndarray:
        if free.size == 0:
            return np.zeros(0, np.float32)
        self.diagonals += 1
        target = self.target * (1 + math.copysign(1e-6, self.target)) - constant
        if not self.unprovable:
            d = best_diagonal(Q, b, start, need, self.rho, target, self._deeper(free), self.deadline)
            with contextlib.suppress(ValueError):
                return safe_diagonal(self.block.Q, free, self.size, d * self.scale, self.rho * self.scale)
        self.unprovable = True
        raise UnprovableError

    def _deeper(self, free: np.ndarray) -> np.ndarray:
        """What a unit of each diagonal is worth deeper down: what was split in pruned nodes, and an even share."""
        seen = self.split[kernel.SUM, free] / np.maximum(self.split[kernel.NUMBER, free], 1)
        mean = float(seen.mean())
        return np.ones(free.size) if mean == 0 else (seen / mean + EVEN) / (1 + EVEN)

    def _improve(self, pruned: np.ndarray) -> None:
        value, _ = self.block.terms(pruned)
        if value < self.value:
            self.value, self.pruned = value, pruned.copy()

    @property
    def _unsearched(self) -> bool:
        """Whether there is no tree, or none that says more than what is known without one."""
        simple = self._trivial and self.block.linear is not None
        return self.root is None or self.root.steps is None or simple

    def _simplest(self) -> tuple[float, Tree]:
        """A bound without a search and its proof: of the linear term, or if that is better the incumbent's tangent."""
        nothing = Tree(0.0)
        nothing.nothing()
        if self.block.linear is None:
            return 0.0, nothing
        block, choice = self.block, (self.block.counts > 0) & (self.block.counts < self.size)
        free, d = np.flatnonzero(np.repeat(choice, self.size)), np.zeros(self.pruned.size)
        with contextlib.suppress(ValueError):
            own = safe_diagonal(block.Q, free, self.size, d[free], 0.0)
            d[free] = own
            form = RowForm(block.Q, block.counts, block.linear, offset=block.constant)
            lower = tangent_bound(form, d, 0.0, self.pruned)
            if lower > block.least:
                tangent, steps = Tree(0.0), np.array([proof.POINT, proof.LEAF], np.uint8)
                tangent.subtree(own, steps, np.zeros(0, np.uint16), (self.pruned[free] * FINE).astype(np.uint16))
                return lower, tangent
        return block.least, nothing

    def tree(self) -> Tree:
        """The proof of ``lower()``; open nodes become leaves with the bounds they have."""
        if self._unsearched:
            return self._simplest()[1]
        assert self.root is not None
        tree = Tree(self.rho * self.scale)
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node.steps is None:
                tree.leaf((node.u[node.fixed < 0] * FINE + 0.5).astype(np.uint16))
            else:
                tree.subtree(node.diagonal, node.steps, node.variables, node.points)
                stack += reversed(node.children)
        return tree
