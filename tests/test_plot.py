"""Pictures show the numbers, whatever there is; the commands that draw them; the report in a browser."""

import base64
import re
import shutil
import subprocess
import sys
import warnings

import children
import numpy as np
import pytest

import pagemap
from pagemap import PAGE_SIZE, REGION_DTYPE, Category, PageMap, Query, VmaTable, analysis

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

from pagemap import plot
from pagemap.analysis.series import UNKNOWN_NS

MIB = 1 << 20
SECOND = 10**9
VMAS = VmaTable.parse(
    b"10000000-10400000 rw-p 00000000 00:00 0 [heap]\n"
    b"7f0000000000-7f0000100000 r-xp 00000000 08:01 7 /usr/lib/libwork.so\n"
    b"7f0000200000-7f0000300000 rw-p 00000000 00:00 0 \n"
)


def moving_window(samples, pages=64, begin=0):
    """Each sample writes `pages` pages, and goes on by as many: over a MiB of the heap, then again."""
    each = []
    for i in range(samples):
        r = np.zeros(1, REGION_DTYPE)
        r["start"] = 0x10000000 + i * pages * PAGE_SIZE % MIB
        r["end"] = r["start"] + pages * PAGE_SIZE
        each.append(((i + 1) * SECOND, r))
    return analysis.Series.from_samples(each, begin_ns=begin)


def drawn(ax):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.canvas.draw()
    return ax


def test_heatmap_shows_the_grid():
    ax = drawn(plot.heatmap(moving_window(12), VMAS, rows=12, columns=4))
    (mesh,) = [c for c in ax.collections if type(c).__name__ == "QuadMesh"]
    values = mesh.get_array().filled(0)
    assert values.shape == (4, 12)
    assert np.array_equal(values, np.array([[i % 4 == row for i in range(12)] for row in range(4)], float))
    assert ax.get_xlim() == (0, 12)
    assert "(s)" in ax.get_xlabel()
    assert ax.get_ylim() == (0, 1)
    assert "MiB" in ax.get_ylabel()
    (side,) = ax.child_axes
    assert [tick.get_text() for tick in side.get_yticklabels()] == ["[heap]"]


def test_rate_shows_mebibytes_per_second():
    ax = drawn(plot.rate(moving_window(12)))
    steps = [patch for patch in ax.patches if type(patch).__name__ == "StepPatch"]
    assert np.allclose(steps[0].get_data().values, 64 * PAGE_SIZE / MIB)
    assert np.allclose(steps[0].get_data().edges, np.arange(13))
    assert "MiB/s" in ax.get_ylabel()


def test_rate_of_a_million_samples():
    """The mean of the picture is the mean of the samples; the one peak is in the band."""
    n = 1_000_000
    pages = np.ones(n, np.int64)
    pages[777_777] = 5000
    timeline = analysis.Timeline(np.arange(1, n + 1, dtype=np.int64) * SECOND, 0, PAGE_SIZE)
    ax = drawn(plot.rate(analysis.Rate(timeline, pages)))
    (line,) = ax.lines
    assert len(line.get_ydata()) <= plot.MAX_POINTS
    # The parts differ by a sample in length, so the mean of means is the mean to that.
    assert np.isclose(np.mean(line.get_ydata()), pages.mean() * PAGE_SIZE / MIB, rtol=1e-3)
    (band,) = ax.collections
    assert np.isclose(band.get_paths()[0].vertices[:, 1].max(), 5000 * PAGE_SIZE / MIB)
    assert "(h)" in ax.get_xlabel()


def test_working_set_shows_the_curve():
    ax = drawn(plot.working_set(moving_window(40), [SECOND, 2 * SECOND, 10 * SECOND]))
    (line,) = ax.lines
    assert np.allclose(line.get_xdata(), [1, 2, 10])
    assert np.allclose(line.get_ydata(), [0.25, 0.5, 1.0])
    assert ax.get_xscale() == "log"


@pytest.mark.parametrize("draw", [plot.heatmap, plot.rate, lambda s: plot.working_set(s, [SECOND])])
@pytest.mark.parametrize("samples", [0, 1, 2])
@pytest.mark.parametrize("begin", [0, UNKNOWN_NS])
def test_hardly_anything(draw, samples, begin):
    ax = drawn(draw(moving_window(samples, begin=begin)))
    assert ax.get_title()


def test_address_space_shows_mebibytes_by_mapping():
    found = np.array(
        [
            (0x10000000, 0x10100000, Category.PRESENT),
            (0x10200000, 0x10400000, Category.PRESENT | Category.HUGE),
            (0x7F0000000000, 0x7F0000080000, Category.PRESENT),
            (0x7F0000200000, 0x7F0000240000, Category.SWAPPED),
        ],
        REGION_DTYPE,
    )
    ax = drawn(plot.address_space(found, VMAS))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["[heap]", "libwork.so", "anon 7f0000200000"]
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in ax.containers}
    assert widths == {"present": [1, 0.5, 0], "huge pages": [2, 0, 0], "swapped": [0, 0, 0.25]}
    few = drawn(plot.address_space(found, VMAS, limit=1))
    assert [tick.get_text() for tick in few.get_yticklabels()] == ["2 others", "[heap]"]
    assert drawn(plot.address_space(found[:0], VMAS)).texts[0].get_text().startswith("no pages")


def test_address_space_of_this_process():
    with PageMap() as pm:
        wanted = Category.PRESENT | Category.SWAPPED
        found, vmas = pm.scan(Query(any_of=wanted, report=wanted | Category.HUGE)), pm.vmas()
    ax = drawn(plot.address_space(found, vmas))
    shown = sum(bar.get_width() for bars in ax.containers for bar in bars)
    inside = pagemap.regions.by_vma(found, vmas)["pages"].sum()
    assert np.isclose(shown, int(inside) * PAGE_SIZE / MIB)


def test_pictures_need_no_display_and_no_pyplot(tmp_path):
    code = """
    import sys
    import numpy as np
    from pagemap import analysis, plot
    assert "matplotlib" not in sys.modules
    series = analysis.Series.from_samples([])
    plot.rate(series).figure.savefig(sys.argv[1])
    assert "matplotlib.pyplot" not in sys.modules
    """
    children.run(code, tmp_path / "picture.png")


# The commands, on a real recording

LOAD = """
import mmap, time
memory = mmap.mmap(-1, 8 << 20)
print("ready", flush=True)
i = 0
while True:
    for page in range(64):
        memory[(i * 64 + page) % 2048 * 4096] = i % 251
    i += 1
    time.sleep(0.01)
"""


def pagemap_command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pagemap", *map(str, arguments)], capture_output=True, text=True, timeout=90
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    pytest.importorskip("pyarrow", reason="traces need pyarrow")
    if not pagemap.features().wp_async:
        pytest.skip(pagemap.features().why["wp_async"])
    path = tmp_path_factory.mktemp("traces") / "t"
    with children.target(LOAD) as target:
        done = pagemap_command("record", target.pid, "-o", path, "-i", "50ms", "-d", "1.5s")
    assert done.returncode == 0, done.stderr
    assert "samples in" in done.stderr
    return path


def test_report(recorded):
    done = pagemap_command("report", recorded)
    assert done.returncode == 0
    for word in ("Working set", "Contiguity", "Hottest VMAs", "/dev/zero", "timing", "MiB/s median"):
        assert word in done.stdout, word
    assert pagemap_command("report", recorded, "--pid", 1).returncode == 1
    assert pagemap_command("report", recorded / "nothing").returncode == 1


def test_heatmap_command(recorded, tmp_path):
    text = pagemap_command("heatmap", recorded, "--lines", 10).stdout
    assert set(text) & set("░▒▓█")
    # The addresses and "/dev/zero (deleted)" are at the left, 0 and the length below.
    assert "zero" in text
    picture = tmp_path / "h.png"
    assert pagemap_command("heatmap", recorded, "-o", picture).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert pagemap_command("heatmap", recorded, "-o", tmp_path / "h.nothing").returncode == 2


def test_wss_command(recorded):
    table = pagemap_command("wss", recorded).stdout
    assert re.search(r"^ *1 s +\S+ MiB", table, re.MULTILINE)
    with children.target(LOAD) as target:
        now = pagemap_command("wss", target.pid, "-d", "0.5s", "-i", "50ms")
    assert now.returncode == 0, now.stderr
    assert re.search(r"^ *200 ms +\S+ [KM]iB", now.stdout, re.MULTILINE)


def test_top_command():
    with children.target(LOAD) as target:
        done = pagemap_command("top", "--attach", target.pid, "-i", "300ms", "-n", "1")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == [str(target.pid)]]
    assert "MiB/s" in line
    assert "python" in line
    assert "processes" in done.stdout


def test_record_a_command(tmp_path):
    path = tmp_path / "t"
    done = pagemap_command(
        "record", "-o", path, "-i", "20ms", "--", sys.executable, "-c", "import time; time.sleep(0.2)"
    )
    assert done.returncode == 0, done.stderr
    assert "ended: exited" in done.stderr
    assert pagemap_command("record", "-o", path, "--", "/no/such/command").returncode == 1


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_the_html_report_in_a_browser(recorded, tmp_path):
    """Rendered from disk, without a network: every picture has pixels, every table its rows."""
    page = tmp_path / "report.html"
    assert pagemap_command("report", recorded, "--html", page).returncode == 0
    text = page.read_text("utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert len(pictures) == 3
    assert all(one.startswith(b"\x89PNG") for one in pictures)
    # The probe is the test's: it writes what the browser made of the page where --dump-dom shows it.
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify({
        pictures: [...document.images].filter(i => i.complete && i.naturalWidth > 500).length,
        rows: document.querySelectorAll("tbody tr").length,
        wide: document.documentElement.scrollWidth <= innerWidth}) })</script></body>"""
    loose = re.sub(r"<meta http-equiv=.*\n", "", text)
    assert loose != text
    page.write_text(loose.replace("</body>", probe), "utf-8")
    flags = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
        --disable-background-networking --disable-component-update --window-size=1200,900
        --virtual-time-budget=5000 --dump-dom"""
    command = [BROWSER, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    title = re.search(r"<title>(.*?)</title>", dom)[1]
    assert '"pictures":3' in title
    assert int(re.search(r'"rows":(\d+)', title)[1]) > 15
    assert '"wide":true' in title
