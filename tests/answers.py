"""Whether two checkouts give the same answers, bit for bit: masks, weights, errors, bounds, proofs and keys.

    BEFORE/.venv/bin/python tests/answers.py -o before.jsonl      what this Python's fwbench answers
    AFTER/.venv/bin/python tests/answers.py -o after.jsonl        and another's
    python tests/answers.py --compare before.jsonl after.jsonl    what differs, by spec

One thread, and no limits of time: what remains is deterministic. A spec that a checkout refuses is an answer, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
if __name__ == "__main__":  # before numpy comes; a test that imports this file has threads of its own
    os.environ |= ONE_THREAD

COLLECTIONS = ("mini/n016.*", "mini/n032.*", "mini/n064.*")
DIRECTIONS = ("vanilla", "away", "pairwise", "bcg", "bpcg", "dicg", "inface")
STEPS = ("linesearch", "open", "short", "adaptive")
SPECS = (
    *("greedy", "magnitude", "random", "ria", "wanda"),
    *(f"fw(variant={name},steps=200)" for name in DIRECTIONS),
    *(f"wanda+fw(variant=vanilla,step={name},steps=200,rounded=True)" for name in STEPS),
    *("wanda+fw(alpha=0.9,steps=200)", "fw(convexify=shared)", "fw(convexify=row)", "fw(correct=0,steps=200)"),
    *("wanda+fw(alpha=0.5,fixed=ria,steps=200)", "fw(average=polyak,steps=100)", "fw(average=lookahead,steps=100)"),
    *("mirror(steps=200)", "mirror(blocks=4,steps=200)", "pgd(steps=200)", "pdhg(steps=200)"),
    *("bernoulli", "momentum", "unrolled", "random+dwave", "learned_bound"),
    *("push", "push(variant=inface)", "splitting", "wanda+push", "qp"),
    *(f"fw+round(method={name})" for name in ("topk", "randomised", "expectation")),
    *("wanda+swap", "random+swap", "random+swap(enough=0.1)", "random+safeguard", "random+tabu(iterations=2000)"),
    *("random+resplit", "faster"),
    *("dsnot", "random+splice", "thanos", "alps", "iht", "fistapruner", "alternate", "sparsegpt(order=loss)"),
    *("random+ils(rounds=20)", "random+anneal(rounds=2)", "fast", "sparsefw", "sparseswaps"),
    *("refit", "wanda+refit", "wanda+refit(ridge=0)", "reswap", "wanda+swap+reswap", "reswap(ridge=0)"),
    *("sparsegpt", "wanda+sparsegpt(damping=0)", "admm", "wanda+admm(damping=0)"),
    *("bnb(nodes=2000)", "wanda+swap+bnb(nodes=2000)", "bnb(gap=0.02,subtree=50,nodes=2000)"),
    *(f"wanda+swap+bound(kind={kind},seconds=inf)" for kind in ("shared", "shor")),
    *(f"wanda+swap+bound(kind={kind},iterations=40,seconds=inf)" for kind in ("dnn", "mccormick")),
    *(f"wanda+swap+bound(kind={kind},iterations=40,rows=1,seconds=inf)" for kind in ("triangles", "pentagons", "best")),
)
SMALL = tuple(f"{name}(convexify={kind})" for name in ("gurobi", "scip") for kind in ("none", "shared", "row"))
SMALL_UP_TO = 16  # inputs: beyond, those search for long


def answers(selectors: list[str]) -> Iterator[dict[str, Any]]:
    """What this Python's fwbench answers to every spec on every problem; numbers as hex, arrays as SHA-256."""
    from fwbench import pipeline
    from fwbench.problems import collections
    from fwbench.spec import SpecError

    pipeline.load_solvers()
    for selector in selectors:
        for _, problem in collections.load(selector):
            for text in SPECS + (SMALL if problem.n <= SMALL_UP_TO else ()):
                answer = {"problem": problem.name, "hash": problem.hash, "spec": text}
                try:
                    line = pipeline.resolve(text)
                except SpecError as error:
                    yield answer | {"refused": str(error)}
                    continue
                found = pipeline.run(problem, line, seed=1, threads=1)
                row, proof = found.result, found.certificate
                yield answer | {
                    "resolved": line.text,
                    "key": row.key,
                    "mask": _hash(found.keep),
                    "weights": _hash(found.weights),
                    "point": _hash(found.relaxed),
                    "proof": None if proof is None else {name: _hash(proof.arrays[name]) for name in proof.arrays},
                    "error": _hex(row.error),
                    "error of the point": _hex(row.relaxed_error),
                    "bounds of stages": [_hex(stage.lower_bound) for stage in row.stages],
                    "bound, as proved": _hex(row.lower_bound),
                    "bounds of rows, as proved": [_hex(value) for value in found.row_bounds],
                    "counters": dict(row.counters),
                    "words": [str(row.status), str(row.verdict), str(row.proof), row.reason],
                }


def _hex(value: float | None) -> str | None:
    return None if value is None else float(value).hex()


def _hash(array: Any) -> str | None:
    if array is None:
        return None
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()[:16]


def compare(before: Path, after: Path) -> str:
    """A table: for each set of differing entries, on how many problems of which specs, and an example."""
    old, new = (
        {(item["problem"], item["spec"]): item for item in map(json.loads, path.read_text().splitlines())}
        for path in (before, after)
    )
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for key in (key for key in old if key in new):
        names = {**old[key], **new[key]}
        found.setdefault(tuple(name for name in names if old[key].get(name) != new[key].get(name)), []).append(key)
    lines = [f"{len(old.keys() & new.keys())} answers compared, {len(old.keys() ^ new.keys())} in one file only"]
    for differs, keys in sorted(found.items()):
        lines.append(f"{len(keys)} differ in {'; '.join(differs)}" if differs else f"{len(keys)} are the same")
        lines += [f"    {count:3} {spec}" for spec, count in Counter(spec for _, spec in keys).items()]
        lines += [f"    such as {keys[0][1]} on {keys[0][0]}" for _ in differs[:1]]
        lines += [f"        {name}: {old[keys[0]].get(name)} -> {new[keys[0]].get(name)}" for name in differs]
        if "bound, as proved" in differs:
            pairs = [[float.fromhex(side[key].get("bound, as proved") or "0") for side in (old, new)] for key in keys]
            moved = [(after - before) / max(abs(before), 1e-300) for before, after in pairs]
            lines.append(f"    the bounds move by {min(moved):.2g} to {max(moved):.2g} of themselves")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("selectors", nargs="*", default=COLLECTIONS, help="problems, as of fwbench run")
    parser.add_argument("-o", "--output", type=Path, help="file of the answers; else they are printed")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    given = parser.parse_args()
    if given.compare:
        print(compare(*given.compare))
        return
    with given.output.open("w") if given.output else sys.stdout as stream:
        for answer in answers(list(given.selectors)):
            print(json.dumps(answer), file=stream, flush=True)


if __name__ == "__main__":
    main()
