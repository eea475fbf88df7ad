"""What starts warm is to a test as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm

pytestmark = pytest.mark.skipif(sys.executable == warm.PYTHON, reason="nothing starts warm on this system")


@pytest.fixture
def script(tmp_path):
    """A function that writes a script and returns the words that start it."""

    def write(text: str, *flags: str) -> list[str]:
        (tmp_path / "script.py").write_text(text)
        return [sys.executable, "script.py", *flags]

    return write


def run(words: list[str], folder: Path, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, **more)


def test_a_script_has_its_flags_folder_variables_and_streams(script, tmp_path):
    text = "import json, os, sys; print(json.dumps([sys.argv, sys.path[0], os.getcwd(), os.environ['A'], __name__, sys.stdin.read()]))"
    made = run(script(text, "--flag", "a b"), tmp_path, env=os.environ | {"A": "ä"}, input="text")
    folder = str(tmp_path.resolve())
    assert json.loads(made.stdout) == [["script.py", "--flag", "a b"], folder, folder, "ä", "__main__", "text"]
    assert made.returncode == 0 and made.stderr == ""


def test_it_is_warm_and_has_none_of_our_modules(script, tmp_path):
    made = run(
        script("import sys; print('torch' in sys.modules, any('bitplan' in name for name in sys.modules))"), tmp_path
    )
    assert made.stdout == "True False\n"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('a message')", 1, "a message\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import atexit, sys; atexit.register(lambda: sys.stderr.write('at the end'))", 0, "at the end"),
    ],
)
def test_it_ends_as_a_process_does(script, tmp_path, text, code, said):
    made = run(script(text), tmp_path)
    assert made.returncode == code and made.stderr.endswith(said)


SLEEPS = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"


def begun(words: list[str], folder: Path) -> tuple[subprocess.Popen, int]:
    """Start a script that sleeps; return what was started, and the process id of the script."""
    process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        time.sleep(0.01)
    return process, int((folder / "pid").read_text())


def test_an_interrupt_reaches_it(script, tmp_path):
    process, _ = begun(script(SLEEPS), tmp_path)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate()[1] and process.returncode in (130, -signal.SIGINT)


def test_it_is_killed_with_what_started_it(script, tmp_path):
    process, own = begun(script(SLEEPS), tmp_path)
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while Path(f"/proc/{own}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{own}").exists()


def test_flags_of_python_are_left_to_python(tmp_path):
    assert run([sys.executable, "-c", "import sys; print(sys.executable)"], tmp_path).stdout == f"{warm.PYTHON}\n"
