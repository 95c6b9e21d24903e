"""The text before a stop string, however the text is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from foretoken.server.stops import TextBeforeStop

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_the_text_ends_before_the_stop_string_that_is_whole_first(pieces, stops):
    before, read, given_text = TextBeforeStop(stops), "", ""
    for piece in pieces:
        given_text += before.push(piece)
        read += piece
        if any(stop in read for stop in stops):
            break
    given_text += before.flush()
    assert given_text == read[: min((read.index(stop) for stop in stops if stop in read), default=None)]


@given(st.lists(LETTERS, max_size=6))
def test_without_stop_strings_nothing_is_held_back(pieces):
    before = TextBeforeStop([])
    assert [before.push(piece) for piece in pieces] == pieces
    assert before.flush() == ""


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_no_more_is_held_back_than_may_be_the_beginning_of_a_stop_string(pieces, stops):
    before, read, given_text = TextBeforeStop(stops), "", ""
    for piece in pieces:
        read += piece
        given_text += before.push(piece)
        if any(stop in read for stop in stops):
            return
        held = read[len(given_text) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)
