"""The worked examples and the notebook run, and find what they say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="the examples need pyarrow")
pytest.importorskip("matplotlib", reason="the examples need matplotlib")

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def tracking(need):
    need("wp_async")


def run(name, tmp_path):
    picture = tmp_path / "picture.png"
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, picture], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    return done.stdout


def numbers(line):
    return [int(number) for number in re.findall(r"\d+", line)]


def test_redis_under_load(tmp_path):
    if not shutil.which("redis-server"):
        pytest.skip("needs redis-server and redis-benchmark (Debian: redis-server, redis-tools)")
    text = run("redis_under_load.py", tmp_path)
    assert re.search(r"^\d+ samples; at most [1-9]\d* MB/s", text, re.MULTILINE)
    assert "live migration" in text


def test_numpy_job(tmp_path):
    """Two buffers of 32 MiB with temporaries, then one.

    A round may have more: where the job maps memory in the very moment in which other memory is registered,
    all that lies around it is reported.
    """
    rounds = numbers(run("numpy_job.py", tmp_path).splitlines()[1])
    assert 60 <= min(rounds[:2]) <= 80
    assert 30 <= rounds[-2] <= 40


def test_cpython_gc(tmp_path):
    """Three collections write the whole heap, three more nothing of it. (As they end, some Pythons do.)"""
    *rounds, _ = numbers(run("cpython_gc.py", tmp_path).splitlines()[1])
    assert max(rounds) >= 30
    last = max(i for i, mebibytes in enumerate(rounds) if mebibytes >= 10)
    assert max(rounds[last + 1 :], default=0) < 10
    assert len(rounds) - last > 2


def test_the_notebook(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    code = (
        "import sys, nbformat, nbclient\n"
        "book = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(book, timeout=90, kernel_name='python3').execute()\n"
        "nbformat.write(book, sys.argv[2])\n"
    )
    out = tmp_path / "out.ipynb"
    command = [sys.executable, "-c", code, EXAMPLES / "memory_in_pictures.ipynb", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert nbclient.__version__
    outputs = [o for cell in nbformat.read(out, 4).cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 2
    assert any("samples" in o.get("data", {}).get("text/plain", "") for o in outputs)
    assert not any(o.output_type == "error" for o in outputs)
