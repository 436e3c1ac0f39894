"""Builds `edgebuild-run` from `runtime-min/`: for a target with zig, for this machine's sanitizers with clang.

A build is keyed by the contents of its sources and everything else that shapes its bytes, and appears in the cache
by one rename; asking again for the same one only reads the sources.
"""

import hashlib
import importlib.metadata
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgebuild.core.cache import cache_dir
from edgebuild.core.errors import CompileError, EnvironmentProblem
from edgebuild.core.resources import resource
from edgebuild.core.zig import zig_cc


@dataclass(frozen=True)
class Sdist:
    """A source package that holds the C sources of a library, pinned by version and SHA-256."""

    package: str
    version: str
    sha256: str
    library: str
    folder: str  # of the library's sources, inside the package
    library_version: str
    licence: str  # of the library, as SPDX names it


SODIUM = Sdist(
    "pynacl",
    "1.6.2",
    "018494d6d696ae03c7e656e5e74cdfd8ea1326962cc401bcf018f1ed8436811c",
    "libsodium",
    "pynacl-1.6.2/src/libsodium",
    "1.0.20",
    "ISC",
)
ZSTD = Sdist(
    "zstandard",
    "0.25.0",
    "7713e1179d162cf5c7906da876ec2ccb9c3a9dcbdffef0cc7f70c3667a205f0b",
    "zstd",
    "zstandard-0.25.0/zstd",
    "1.5.7",
    "BSD-3-Clause",
)
LIBRARIES = (SODIUM, ZSTD)
"""What is linked into `edgebuild-run` beside its own sources."""
GLIBC = "2.28"

_SANITIZERS = "address,undefined"
_SOURCE_FOLDERS = ("cmake", "fuzz", "include", "src", "tests", "tools")


@dataclass(frozen=True)
class Build:
    """One way to build `runtime-min/`: the compiler's command, CMake's settings, and what to build."""

    compiler: tuple[str, ...]
    compiler_version: str
    settings: dict[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ("edgebuild-run",)


def runtime_binary(triple: str, *, sanitize: bool = False) -> Path:
    """Path of `edgebuild-run` for `triple`, stripped; with `sanitize` for this machine, with ASan and UBSan.

    Raises EnvironmentProblem when a tool or libsodium's source cannot be had, CompileError when the build fails.
    """
    return build_runtime(sanitized_build() if sanitize else release_build(triple)) / "edgebuild-run"


def release_build(triple: str) -> Build:
    """The build that devices get."""
    settings = {"CMAKE_SYSTEM_NAME": "Linux", "CMAKE_SYSTEM_PROCESSOR": triple.split("-", maxsplit=1)[0]}
    return Build(tuple(zig_cc(triple, GLIBC)), importlib.metadata.version("ziglang"), settings)


def delta_encoder() -> Path:
    """The library that encodes deltas, for this machine."""
    build = replace(release_build(_here()), targets=("edgebuild_encode",))
    return build_runtime(build) / "libedgebuild_encode.so"


def _here() -> str:
    return f"{platform.machine()}-linux-gnu"


def sanitized_build(sanitizers: str = _SANITIZERS, targets: tuple[str, ...] = ("edgebuild-run",)) -> Build:
    """A build for this machine with clang's sanitizers; zig's clang cannot link them."""
    clang = shutil.which("clang")
    if clang is None:
        raise EnvironmentProblem("clang is not installed; builds with sanitizers need it", "apt install clang")
    fuzz = any(target.startswith("fuzz_") for target in targets)
    settings = {"EB_SANITIZE": sanitizers, "EB_TESTS": "ON", "EB_FUZZ": "ON" if fuzz else "OFF"}
    return Build((clang,), Path(clang).resolve().name, settings, targets)


def build_runtime(build: Build) -> Path:
    """The folder that holds `build.targets`."""
    folder = cache_dir() / "runtime" / _key(build)
    if not folder.is_dir():
        with _appearing(folder) as new:
            _compile(build, new)
    return folder


def library_source(sdist: Sdist) -> Path:
    """The unpacked C sources of a library."""
    folder = cache_dir() / sdist.library / sdist.sha256[:16]
    if not folder.is_dir():
        with _appearing(folder) as new:
            _unpack(_download(sdist, new), new, sdist.folder)
    return folder / sdist.folder


def _sources() -> list[tuple[str, bytes]]:
    root = resource("runtime-min")
    paths = [root / "CMakeLists.txt"]
    for folder in _SOURCE_FOLDERS:
        paths += (path for path in (root / folder).rglob("*") if path.suffix in {".c", ".h", ".txt", ".cmake"})
    return sorted((path.relative_to(root).as_posix(), path.read_bytes()) for path in paths)


def _key(build: Build) -> str:
    digest = hashlib.sha256()
    # The compiler's folder does not shape the bytes.
    command = (Path(build.compiler[0]).name, *build.compiler[1:])
    digest.update(repr((command, build.compiler_version, sorted(build.settings.items()), build.targets)).encode())
    digest.update(f"{SODIUM.sha256} {ZSTD.sha256}".encode())
    for name, data in _sources():
        digest.update(f"{len(name)} {len(data)} {name}\n".encode() + data)
    return digest.hexdigest()[:32]


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well; another's may be there first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        yield new
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(command: list[str], *, cwd: Path | None = None) -> str:
    """Output of a command; raises subprocess.CalledProcessError with stdout and stderr together."""
    done = subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def _download(sdist: Sdist, folder: Path) -> Path:
    """The source package; pip refuses one with another hash before it looks into it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{sdist.package}=={sdist.version} --hash=sha256:{sdist.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--no-binary", sdist.package, "--require-hashes", "--requirement", str(requirements)]
    try:
        _run([*command, "--dest", str(folder)])
    except (OSError, subprocess.CalledProcessError) as error:
        raise EnvironmentProblem(
            f"cannot get the source of {sdist.library} ({sdist.package} {sdist.version}): {_last_lines(error)}",
            "the first build needs a package index that pip can reach",
        ) from error
    archive = folder / f"{sdist.package}-{sdist.version}.tar.gz"
    found = hashlib.sha256(archive.read_bytes()).hexdigest() if archive.is_file() else "nothing"
    if found != sdist.sha256:
        raise EnvironmentProblem(
            f"the source package of {sdist.package} {sdist.version} is not the expected one: SHA-256 {found}",
            f"expected {sdist.sha256}; check pip's package index",
        )
    return archive


def _unpack(archive: Path, folder: Path, wanted: str) -> None:
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.name.startswith(wanted)]
        tar.extractall(folder, members, filter="data")
    archive.unlink()


def _tools() -> tuple[str, str]:
    """The programs cmake and ninja, of the PyPI packages, without their Python start-up."""
    try:
        import cmake  # noqa: PLC0415  only a build that misses the cache needs them
        import ninja  # noqa: PLC0415
    except ImportError as error:
        raise EnvironmentProblem(f"{error.name} is not installed", f"pip install {error.name}") from error
    return str(Path(cmake.CMAKE_BIN_DIR) / "cmake"), str(Path(ninja.BIN_DIR) / "ninja")


def _compile(build: Build, folder: Path) -> None:
    """Configures and builds in a scratch folder; leaves only the targets in `folder`."""
    cmake, ninja = _tools()
    settings = {
        "CMAKE_MAKE_PROGRAM": ninja,
        "CMAKE_C_COMPILER": ";".join(build.compiler),
        "EB_SODIUM": str(library_source(SODIUM)),
        "EB_ZSTD": str(library_source(ZSTD)),
        **build.settings,
    }
    with tempfile.TemporaryDirectory(prefix="edgebuild-runtime-") as scratch:
        configure = [cmake, "-G", "Ninja", "-S", str(resource("runtime-min")), "-B", scratch]
        try:
            _run([*configure, *(f"-D{name}={value}" for name, value in settings.items())])
            _run([cmake, "--build", scratch, "--target", *build.targets])
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(
                f"the native runtime does not build: {_last_lines(error)}", "`make setup` installs what it needs"
            ) from error
        for target in build.targets:
            names = (target, f"lib{target}.so")
            found = next(path for name in names for path in Path(scratch).rglob(name) if path.is_file())
            shutil.copy2(found, folder / found.name)


def _last_lines(error: Exception) -> str:
    output = error.stdout if isinstance(error, subprocess.CalledProcessError) else None
    return "\n".join((output or str(error)).strip().splitlines()[-12:])
