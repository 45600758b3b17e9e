"""Resources: downloaded with pip, checked, cached; a stand-in for pip serves wheels made here."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from fwbench.problems import resources
from fwbench.problems.resources import Resource, ResourceError

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


def test_default_cache(monkeypatch):
    monkeypatch.delenv("FWBENCH_CACHE", raising=False)
    assert resources.cache_folder().name == "fwbench"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lee", "lee-heldout", "wikipedia"])
def test_the_real_ones(cache, name):
    assert resources.sha256_of(resources.fetch(name)) == resources.KNOWN[name].sha256
