"""Pictures of the server's page for the docs: python scripts/make_screenshots.py. Needs Debian's chromium."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from foretoken import load  # noqa: E402
from helpers.browsing import CHROMIUM, browser  # noqa: E402
from helpers.serving import serving  # noqa: E402

IMAGES = ROOT / "docs" / "images"
IDLE = "!document.querySelector('#send').disabled"
PROMPT = (ROOT / "examples" / "prompts" / "pattern.py").read_text(encoding="utf-8")


def main() -> None:
    """Take all of them."""
    if CHROMIUM is None:
        sys.exit("There is no Chromium: apt-get install chromium.")
    lm = load("tiny")
    lm.engine.settle_threads()
    with serving(lm, name="tiny") as client, tempfile.TemporaryDirectory() as folder, browser(Path(folder)) as page:
        page.resize(1200, 800)
        page.open(f"{client.base_url}/")
        page.wait("document.querySelector('#model').textContent === 'tiny'")
        answer(page, "text", PROMPT, tokens=9)  # which prepares things once
        answer(page, "text", PROMPT, tokens=160, temperature=0.6, seed=2)
        page.screenshot(IMAGES / "serve-completion.png")
        answer(page, "race", PROMPT, tokens=160, temperature=0.6, seed=2)
        page.screenshot(IMAGES / "serve-race.png")
        page.resize(390, 800, "dark")
        answer(page, "chat", "Write a function that adds two numbers.", tokens=60, temperature=0.3)
        page.screenshot(IMAGES / "serve-phone.png")


def answer(page: Any, mode: str, prompt: str, **fields: float) -> None:
    """Let the page show an answer."""
    page.click(f"input[value={mode}]")
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.fill("#prompt", prompt)
    page.click("#send")
    page.wait(IDLE)
    assert page.text("#alert") == "", page.text("#alert")


if __name__ == "__main__":
    main()
