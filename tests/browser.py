"""A real browser, without a window, that opens a page and says what is wrong with it."""

import json
import re
import shutil
import subprocess
import tempfile
from html import unescape
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium: pages were NOT opened in a browser (apt-get install chromium)"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--allow-file-access-from-files", "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
WIDTHS = (400, 1400)
# The page in a frame of each width: windows of a browser have a least width.
FRAMES = """<!doctype html><meta charset="utf-8"><body>{frames}<pre id="said"></pre><script>
onload = () => {{
  const said = [];
  for (const frame of document.querySelectorAll("iframe")) {{
    const page = frame.contentDocument, root = page.documentElement;
    said.push({{
      where: frame.src.split("/").at(-2) + " at " + frame.width, frame: Number(frame.width),
      width: root.scrollWidth,
      text: page.body.innerText.length,
      broken: [...page.images].filter(image => !image.complete || !image.naturalWidth).length,
      unnamed: [...page.images].filter(image => !image.alt).length,
      scripts: page.scripts.length,
    }});
  }}
  document.getElementById("said").textContent = JSON.stringify(said);
}};
</script>"""


def _asked(log: Path) -> set[str]:
    """The addresses that pages asked a network for; what the browser asks for by itself has no origin."""
    found = set()
    for line in log.read_text(encoding="utf-8").splitlines():
        if '"initiator":' in line:
            asked = json.loads(line.strip().removesuffix("]}").rstrip(","))["params"]
            if asked["initiator"] != "not an origin" and asked["url"].startswith("http"):
                found.add(asked["url"])
    return found


def faults(*pages: Path) -> list[str]:
    """What is wrong with pages in a browser: errors they report, requests they make, what is wider than a window.

    Args:
        pages: files.
    """
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log, harness = folder / "net.json", folder / "frames.html"
        frames = "".join(
            f'<iframe src="{page.resolve().as_uri()}" width="{width}" height="900"></iframe>'
            for page in pages
            for width in WIDTHS
        )
        harness.write_text(FRAMES.format(frames=frames), encoding="utf-8")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'new'}", f"--log-net-log={log}", "--dump-dom"]
        done = subprocess.run(
            [*command, harness.as_uri()], capture_output=True, timeout=120, encoding="utf-8", errors="replace"
        )
        found = [line.partition("CONSOLE")[2] for line in done.stderr.splitlines() if "CONSOLE" in line]
        found += sorted(f"asks for {url}" for url in _asked(log))
        said = re.search(r'<pre id="said">(.+?)</pre>', done.stdout, re.DOTALL)
        assert said is not None, done.stderr[-2000:]
        for figures in json.loads(unescape(said[1])):
            where = figures["where"]
            if figures["width"] > figures["frame"]:
                found.append(f"{figures['width']} pixels wide: {where}")
            counts = {key: figures[key] for key in ("broken", "unnamed", "scripts")}
            found += [f"{count} {key}: {where}" for key, count in counts.items() if count]
            if not figures["text"]:
                found.append(f"empty: {where}")
        return found
