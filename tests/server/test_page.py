"""The pages in a real browser, and what their headers let them do."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")
pytest.importorskip("httpx2", reason="the client of these tests is not installed: scripts/setup dev")

from helpers.browsing import CHROMIUM, browser
from helpers.serving import serving

IDLE = "!document.querySelector('#send').disabled"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_needs_nothing_else_and_may_run_nothing_else(client, path):
    answer = client.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert len(re.findall("'sha256-[^']+'", policy)) == 2
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import", answer.text), "something comes from elsewhere"
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", answer.text)
    assert " style=" not in answer.text and not re.search(r"\son\w+=", answer.text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def shown(page, client):
    """The page of a server, which nothing has gone wrong with in the end."""
    page.faults.clear()
    page.open(f"{client.base_url}/")
    page.wait("document.querySelector('#model').textContent === 'toy'")
    page.fill("#tokens", "80")
    yield page
    assert page.faults == []


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.click("#send")
    page.wait(f"{IDLE}")


def choose(page: Any, mode: str) -> None:
    page.click(f"input[value={mode}]")


def test_a_conversation_is_shown_as_it_is_answered(shown, lm):
    page = shown
    ask(page, "hi hi hi")
    first = [{"role": "user", "content": "hi hi hi"}]
    expected = lm.generate(first, max_new_tokens=80, seed=1).text
    texts = "[...document.querySelectorAll('#talk .text')].map((one) => one.textContent)"
    assert page.run(texts) == ["hi hi hi", expected]
    turns = [*first, {"role": "assistant", "content": expected}, {"role": "user", "content": "more"}]
    ask(page, "more")
    assert page.run(texts)[2:] == ["more", lm.generate(turns, max_new_tokens=80, seed=1).text]
    assert "tokens per step" in page.text("#talk .panel:last-child .stats")
    page.click("#clear")
    assert page.run(texts) == []


def test_accepted_guesses_are_coloured_and_plotted(shown, lm):
    page = shown
    choose(page, "text")
    text = lm.generate("abc", max_new_tokens=80, seed=1).text
    page.fill("#prediction", text)
    page.fill("#budget", "7")
    ask(page, "abc")
    assert page.text("#talk .text") == text
    guessed = page.run("[...document.querySelectorAll('#talk .guess')].map((one) => one.textContent).join('').length")
    bars = page.run("document.querySelectorAll('#plot rect.right').length")
    assert guessed > 50 and 1 < bars < 40
    assert int(re.search(r"(\d+) forwards", page.text("#talk .stats"))[1]) == bars


def test_the_cost_curve_and_the_budgets_choice_are_plotted(shown):
    page = shown
    choose(page, "text")
    page.fill("#budget", "3")
    ask(page, "abc abc abc")
    forwards = int(re.search(r"(\d+) forwards", page.text("#talk .stats"))[1]) - 1  # without the prompt's
    assert page.run("document.querySelectorAll('#costs .curve').length") == 1
    assert page.run("document.querySelectorAll('#costs .took').length") == forwards
    chosen = page.run("[...document.querySelectorAll('#costs .chosen')].map((one) => Number(one.dataset.times))")
    assert sum(chosen) == forwards and 1 < len(chosen) <= 4, "at most three guesses and one row for the last token"
    points = page.run("document.querySelector('#costs .curve').getAttribute('points').split(' ').length")
    assert points == 8 and "most often" in page.text("#costs-scale")
    page.click("#clear")
    assert page.run("document.querySelectorAll('#costs *').length") == 0


def test_wrong_guesses_are_struck_through_where_one_looks(shown):
    page = shown
    choose(page, "text")
    page.fill("#drafter", "anpd")
    ask(page, "abc abc abc")
    assert page.run("document.querySelectorAll('.own[data-wrong]').length") > 1
    struck = """(() => {
        const style = getComputedStyle(document.querySelector('.own[data-wrong]'), '::before');
        return style.content !== 'none' && style.textDecorationLine === 'line-through';
    })()"""
    assert not page.run(struck)
    where = page.run("""(() => {
        const one = document.querySelector('.own[data-wrong]');
        one.scrollIntoView({block: 'center'});
        const place = one.getClientRects()[0];
        return [place.x + place.width / 2, place.y + place.height / 2];
    })()""")
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=where[0], y=where[1])
    assert page.run(struck), "pointed at"
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
    assert not page.run(struck)
    page.run("document.querySelector('#talk .text').focus()")
    assert page.run(struck), "with the focus on the text"
    page.fill("#drafter", "")


def test_a_race_gives_the_same_text_in_fewer_forwards(shown):
    page = shown
    choose(page, "race")
    page.fill("#budget", "7")
    page.fill("#temperature", "0.6")
    ask(page, "abc abc abc")
    verdict = page.text("#verdict")
    one, two = page.run("[...document.querySelectorAll('#lanes .text')].map((one) => one.textContent)")
    plain, drafted = map(int, re.search(r"(\d+) forwards against (\d+)", verdict).groups())
    assert verdict.startswith("identical: yes") and one == two and len(one) == 80
    assert drafted < plain == 79


def test_what_the_server_refuses_is_said(shown):
    page = shown
    ask(page, "caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert "does not know" in page.text("#alert")
    page.fill("#prediction", "abc")
    page.fill("#drafter", "anpd")
    ask(page, "abc")
    assert "prediction is for the drafters mixed and ngram" in page.text("#alert")
    page.fill("#prediction", "")
    ask(page, "abc")
    assert page.text("#alert") == ""
    page.faults[:] = [fault for fault in page.faults if '"network"' not in fault]  # it logs what a server refuses


def test_an_answer_can_be_stopped_and_leaves_the_server_free(shown, client):
    page = shown
    choose(page, "text")
    page.fill("#tokens", "10000000")
    page.fill("#prompt", "abc")
    page.click("#send")
    page.wait("document.querySelector('#talk .text')?.textContent.length > 100")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    page.wait(IDLE)
    assert page.text("#alert") == "Stopped."
    while client.get("/health").json()["running"]:
        pass


EVIL = '<img src=x onerror="window.evil=1"><script>window.evil=2</script>&lt;b&gt; ]]>'


def test_nothing_that_a_model_says_becomes_html(page, lm, monkeypatch):
    """The model is made to say it, in text that came from a guess and in text that did not, and so does the user."""
    from foretoken.core.sampling import Sampling
    from foretoken.engines.toy import CHARACTERS

    said = EVIL * 3
    prepare = type(lm.engine).prepare

    def prepared(self: Any, prompt: Any, sampling: Any, *rest: Any) -> Any:
        def say(tokens: Any, logits: list[float]) -> list[float]:
            place = len(tokens) - len(prompt)
            wanted = CHARACTERS.index(said[place]) if place < len(said) else 0
            return [1e9 if token == wanted else logit for token, logit in enumerate(logits)]

        return prepare(self, prompt, Sampling(processors=(say,)), *rest)

    monkeypatch.setattr(type(lm.engine), "prepare", prepared)
    with serving(lm) as client:
        page.faults.clear()
        page.open(f"{client.base_url}/")
        page.wait("document.querySelector('#model').textContent === 'toy'")
        page.fill("#tokens", str(len(said)))
        page.fill("#budget", "7")
        ask(page, EVIL)
        assert page.run("[...document.querySelectorAll('#talk .text')].map((one) => one.textContent)") == [EVIL, said]
        assert page.run("document.querySelectorAll('#talk .guess').length") > 3
        assert page.run("document.querySelectorAll('#talk img, #talk script, #talk b').length") == 0
        assert page.run("window.evil") is None and page.faults == []
        # The control: the policy stops what would have become HTML all the same.
        page.run(f"document.querySelector('#talk').innerHTML = {json.dumps(EVIL)}")
        page.wait("document.querySelectorAll('#talk img').length")
        assert page.run("new Promise((done) => setTimeout(() => done(window.evil ?? 'nothing'), 200))") == "nothing"


def test_a_key_that_is_missing_is_asked_for(page, lm):
    with serving(lm, {"alice": "sk-alice-0123456789"}) as client:
        page.open(f"{client.base_url}/")
        page.wait("document.querySelector('#alert').textContent.includes('no API key')")
        page.fill("#key", "sk-alice-0123456789")
        page.fill("#tokens", "20")
        ask(page, "abc")
        assert page.text("#model") == "toy" and page.text("#alert") == ""


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light")])
def test_the_page_fits_a_phone_and_a_screen(shown, width, scheme):
    page = shown
    page.resize(width, 800, scheme)
    choose(page, "race")
    ask(page, "abc abc abc")
    assert page.run("document.documentElement.scrollWidth") <= width
    colours = page.run("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    light = [sum(map(int, re.findall(r"\d+", colour))) for colour in colours]
    assert (light[0] < light[1]) == (scheme == "light")
    page.resize(1200, 800)


def test_the_description_shows_every_field(page, client):
    page.open(f"{client.base_url}/docs")
    page.wait("document.querySelectorAll('table').length > 3")
    for word in ("POST /v1/chat/completions", "prediction", "max_completion_tokens", "namespace", "include_usage"):
        assert word in page.text("main")
