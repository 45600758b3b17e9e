"""The cache of compiled kernels: two processes that fill it at once, and files that change."""

import importlib
import pkgutil
from pathlib import Path
from types import FunctionType

import pytest
from numba.core.dispatcher import Dispatcher

import fwbench.solvers
from fwbench.solvers.numerics import jit

SOURCE = "def half(a):\n    return a / 2 if a > 2 else a\n"


def load(path: Path) -> FunctionType:
    """The function as a process of its own would load it."""
    names: dict[str, FunctionType] = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    return names["half"]


def test_two_processes_that_compile_at_once_do_not_mix_up_their_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "half.py"
    path.write_text(SOURCE)
    first, second = (jit.njit(load(path)) for _ in range(2))
    files = first._cache._cache_file
    save_data = files._save_data

    def while_the_second_saves(name: str, data: object) -> None:
        second(5.5)
        save_data(name, data)

    monkeypatch.setattr(second._cache._cache_file, "_load_index", dict)  # both read the index before either wrote it
    monkeypatch.setattr(files, "_save_data", while_the_second_saves)
    first(5)
    third = jit.njit(load(path))
    assert (third(5), third(5.5), third(7), third(1.5)) == (2.5, 2.75, 3.5, 1.5)
    assert sum(third.stats.cache_hits.values()) == 2


def test_code_of_an_older_file_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    for source, expected in ((SOURCE, 2.5), (SOURCE.replace("/ 2", "/ 4"), 1.25)):
        path.write_text(source)
        assert jit.njit(load(path))(5.0) == expected


def test_a_kernel_is_compiled_anew_where_a_file_has_changed_from_which_it_calls() -> None:
    def sources(file: str) -> set[str]:
        place = Path(fwbench.solvers.__path__[0])
        return {str(path.relative_to(place).with_suffix("")) for path in jit._sources(place / file)}

    found = sources("weight_update/reswap_numba.py")
    assert {"weight_update/reswap_numba", "numerics/extremes", "numerics/jit"} <= found
    assert not any(name.startswith("local_search") for name in found)
    assert {"local_search/screens", "local_search/swap_numba"} <= sources("local_search/tabu_numba.py")
    wanted = {
        "numerics/jit",
        "numerics/extremes",
        "frank_wolfe/active_set",
        "frank_wolfe/oracle",
        "frank_wolfe/kernels",
    }
    assert wanted <= sources("frank_wolfe/loop_numba.py")


def test_every_kernel_is_compiled_by_it() -> None:
    found = 0
    for module in pkgutil.walk_packages(fwbench.solvers.__path__, "fwbench.solvers."):
        if module.name.endswith("_triton"):
            continue  # imported where there is a GPU
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Dispatcher):
                assert isinstance(value._cache, jit._Cache), f"{module.name}.{name}"
                found += 1
    assert found > 60
