"""Make the virtual environment: pinned packages, llama-cpp-python built lean, llama.cpp's converter from the same source.

Uses the standard library only. Says what is missing on the machine before it downloads anything.

For example:

    python scripts/set_up.py --venv .venv
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
RUNTIME = "llama-cpp-python"
# Without GGML_NATIVE=OFF the build is tied to this processor; vision, TLS and the library of llama.cpp's programs are not used.
WITHOUT_COMMON = ROOT / "scripts" / "llama_without_common.cmake"
LEAN = f"-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE='{WITHOUT_COMMON}'"
CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py", "LICENSE")


def problems() -> list[str]:
    """Return what this machine lacks, each with the package that brings it."""
    found = []
    if sys.version_info < (3, 11):
        found.append(
            f"Python {sys.version.split()[0]} is too old: install Python 3.11 or newer, or set PYTHON=python3.11"
        )
    if not shutil.which(os.environ.get("CXX", "c++")) and not shutil.which("g++") and not shutil.which("clang++"):
        found.append("no C++ compiler: install g++ (Debian, Ubuntu), gcc-c++ (Fedora) or Xcode's command line tools")
    if not shutil.which("cmake"):
        found.append("no cmake: install cmake (Debian, Ubuntu, Fedora, Homebrew)")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        found.append("no ensurepip: install python3-venv (Debian, Ubuntu)")
    return found


def locked(lock: Path) -> list[str]:
    """Return the pins of a lock file."""
    lines = (line.split("#")[0].strip() for line in lock.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def _say(text: str, started: float) -> None:
    print(f"set-up {time.monotonic() - started:4.0f} s: {text}", flush=True)


def _pip(python: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    return subprocess.Popen(
        [str(python), "-m", "pip", *arguments, *quiet],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def _install(python: Path, pins: list[str]) -> subprocess.Popen:
    """Start installing packages without what they ask for: by uv if it is installed, else by pip."""
    uv = shutil.which("uv")
    if uv is None:
        return _pip(python, "install", "--no-deps", *pins)
    line = [uv, "pip", "install", "--no-deps", "--quiet", "--python", str(python), *pins]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True)


def _finish(job: subprocess.Popen, what: str) -> None:
    _, errors = job.communicate()
    if job.returncode:
        shown = [line for line in errors.splitlines() if not line.startswith("WARNING")]
        print("\n".join(shown[-30:]), file=sys.stderr)
        raise SystemExit(f"error: {what} failed. See the lines above; run `make setup` again once it is fixed")


def unpack_converter(archive: Path, target: Path) -> None:
    """Copy llama.cpp's converter out of the runtime's source distribution."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if "/vendor/llama.cpp/" in m.name and m.name.split("/")[3] in CONVERTER]
            tar.extractall(folder, members=members, filter="data")
        source = next(Path(folder).glob("*/vendor/llama.cpp"))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


def program(python: Path) -> str:
    """Return the text of the `bitplan` program for an environment: the code of this checkout, run by the environment's Python. A shell
    script, because a path with spaces cannot stand after `#!`."""
    run = f"exec {shlex.quote(str(python))} -m bitplan.console.main"
    where = f"PYTHONPATH={shlex.quote(str(ROOT / 'scripts'))}${{PYTHONPATH:+:$PYTHONPATH}}"
    return f'#!/bin/sh\n# Written by scripts/set_up.py.\n{where} {run} "$@"\n'


def write_program(place: Path) -> None:
    """Write the `bitplan` program into the environment at `place`."""
    path = place / "bin" / "bitplan"
    path.write_text(program(place / "bin" / "python"), encoding="utf-8")
    path.chmod(0o755)


def _has_pip(python: Path) -> bool:
    """Return whether an environment is whole enough to go on with: one that was interrupted may lack pip."""
    known = [str(python), "-m", "pip", "--version"]
    return python.exists() and subprocess.run(known, capture_output=True, check=False).returncode == 0


def set_up(place: Path) -> None:
    """Make the environment at `place`. A half-made one has no `.complete` and is finished the next time."""
    started = time.monotonic()
    python = place / "bin" / "python"
    if not _has_pip(python):
        venv.create(place, with_pip=True, symlinks=True, clear=True)
    pins = locked(LOCK)
    runtime = next(pin for pin in pins if pin.startswith(RUNTIME))
    with tempfile.TemporaryDirectory() as folder:
        _say("downloading packages and building llama.cpp, 2 to 7 minutes on 2 cores", started)
        packages = _install(python, [pin for pin in pins if pin != runtime])
        built = _pip(python, "wheel", "--no-deps", "--wheel-dir", folder, runtime, CMAKE_ARGS=LEAN)
        try:
            if packages.args[0] != str(python) and packages.wait():
                _say("uv could not install the packages; pip is tried", started)
                packages = _pip(python, "install", "--no-deps", *(pin for pin in pins if pin != runtime))
            _finish(packages, "installing the packages")
        except SystemExit:
            built.terminate()
            raise
        _say("packages are installed", started)
        source = _pip(python, "download", "--no-deps", "--no-binary", RUNTIME, "--dest", folder, runtime)
        _finish(source, "downloading llama.cpp's source")
        unpack_converter(next(Path(folder).glob("*.tar.gz")), place / "share" / "llama.cpp")
        _finish(built, "building llama-cpp-python")
        _finish(
            _pip(python, "install", "--no-deps", str(next(Path(folder).glob("*.whl")))), "installing llama-cpp-python"
        )
    _finish(_pip(python, "check"), "checking the packages")
    write_program(place)
    (place / ".complete").write_text("\n".join(pins) + "\n", encoding="utf-8")
    _say(f"done, {place}", started)


def build_parser() -> argparse.ArgumentParser:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument(
        "--converter-only", action="store_true", help="only the converter, into this interpreter's environment"
    )
    return parser


def main() -> None:
    """Make the environment that the flags name, or only the converter."""
    parser = build_parser()
    args = parser.parse_args()
    if os.path.exists(args.venv) and not os.path.isdir(args.venv):
        parser.error(f"--venv {args.venv}: is a file; choose a folder")
    missing = problems()
    if missing:
        raise SystemExit("\n".join(f"error: {problem}" for problem in missing))
    if args.converter_only:
        runtime = next(pin for pin in locked(LOCK) if pin.startswith(RUNTIME))
        with tempfile.TemporaryDirectory() as folder:
            job = _pip(Path(sys.executable), "download", "--no-deps", "--no-binary", RUNTIME, "--dest", folder, runtime)
            _finish(job, "downloading llama.cpp's source")
            unpack_converter(next(Path(folder).glob("*.tar.gz")), Path(sys.prefix) / "share" / "llama.cpp")
        return
    set_up(args.venv.resolve())


if __name__ == "__main__":
    main()
