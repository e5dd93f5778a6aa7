"""The chat paraphraser: whatever the endpoint does, nothing is lost, paid twice or given away."""

import asyncio
import dataclasses
import email.utils
import json
import logging
import os
import random
import signal
import socket
import threading
import time

import fake_chat
import pytest
from fake_chat import FakeChat, after, answer, fail, raw, rewordings, say

from coin_jax.curation.config import ChatConfig
from coin_jax.curation.paraphrasers import ChatError, Request
from coin_jax.curation.paraphrasers.chat import Chat, messages, read_rewordings
from coin_jax.curation.paraphrasers.replies import retry_after

KEY = "sk-secret-1234567890"


@pytest.fixture(autouse=True)
def _no_proxy_and_a_key(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("FAKE_CHAT_KEY", KEY)


class Maker:
    """Makes paraphrasers that share a cache and never sleep; `waits` are the seconds they would."""

    def __init__(self, cache):
        self.cache, self.waits = cache, []

    def __call__(self, server, **settings):
        common = {
            "base_url": getattr(server, "base_url", server),
            "model": "fake",
            "key_variable": "FAKE_CHAT_KEY",
            "cache": str(self.cache),
            "concurrency": 4,
            "attempts": 4,
            "timeout": 20.0,
        }
        return Chat(ChatConfig(**common | settings), 3, self.sleep)

    async def sleep(self, seconds):
        self.waits.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def chat(tmp_path):
    return Maker(tmp_path / "cache")


def requests(*texts):
    return [Request("task", f"task/{number}", text) for number, text in enumerate(texts)]


def texts(count):
    return [f"Say whether review {number} is good: {{text}}" for number in range(count)]


def quiet(done, total, note):
    """Shows no progress."""


def first_time(behaviour):
    return lambda text, number: behaviour if number == 1 else None


def test_rewordings_stand_in_the_order_of_the_requests_whichever_comes_first(chat):
    asked = texts(6)
    with FakeChat(lambda text, number: after(0.15) if text == asked[0] else None) as server:
        found = chat(server).reword(requests(*asked), quiet)
    assert found == [rewordings(text) for text in asked]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fail(500), id="server error"),
        pytest.param(fail(503, Retry_After="soon"), id="overloaded"),
        pytest.param(fail(429), id="too many requests"),
        pytest.param(fail(408), id="request timeout"),
        pytest.param(raw(b"<html>gateway</html>"), id="a page for people"),
        pytest.param(raw(b'{"choices": [{"mess'), id="cut JSON"),
        pytest.param(raw(b"[]"), id="other JSON"),
        pytest.param(raw(b'{"choices": [null], "usage": "none"}'), id="no message"),
        pytest.param(raw(b'{"error": {"message": "upstream"}}'), id="an error as a success"),
        pytest.param(raw(b"\xff\xfe\x00"), id="bytes"),
        pytest.param(say(None), id="no text"),
        pytest.param(say("I cannot help with that."), id="prose"),
        pytest.param(say('["one {text}", "two'), id="a cut list"),
        pytest.param(say("[1, 2, 3]"), id="numbers"),
        pytest.param(fake_chat.hang_up, id="disconnect"),
        pytest.param(fake_chat.break_off, id="disconnect in the middle"),
    ],
)
def test_what_may_pass_is_tried_again(chat, fault):
    with FakeChat(first_time(fault)) as server:
        paraphraser = chat(server)
        found = paraphraser.reword(requests("Rate this: {text}"), quiet)
    assert found == [rewordings("Rate this: {text}")]
    assert server.tries == {"Rate this: {text}": 2}
    assert (paraphraser.usage.tries, paraphraser.usage.failed) == (2, 0)


@pytest.mark.parametrize("slow", [after(10), fake_chat.drip(10)], ids=["silent", "dripping"])
def test_a_slow_answer_is_given_up_after_the_whole_timeout(chat, slow):
    with FakeChat(first_time(slow)) as server:
        started = time.monotonic()
        found = chat(server, timeout=0.3).reword(requests("Rate this: {text}"), quiet)
        assert time.monotonic() - started < 9
    assert found == [rewordings("Rate this: {text}")]


def test_nothing_is_lost_and_nothing_answered_is_asked_again_whatever_happens(chat):
    faults = (fail(500), fail(429, Retry_After="0.01"), fake_chat.hang_up, raw(b"?"), say("no"))
    drawn = random.Random(0)
    asked = texts(40)
    plans = {text: drawn.choices(faults, k=drawn.randrange(4)) for text in asked}
    with FakeChat(lambda text, number: dict(enumerate(plans[text], 1)).get(number)) as server:
        paraphraser = chat(server)
        assert paraphraser.reword(requests(*asked), quiet) == [rewordings(text) for text in asked]
        assert set(server.answered.values()) == {1}
        assert sum(server.tries.values()) == sum(map(len, plans.values())) + 40
        again = chat(server)
        assert again.reword(requests(*asked), quiet) == [rewordings(text) for text in asked]
        assert set(server.answered.values()) == {1}
    assert (again.usage.asked, again.usage.cached, again.usage.tries) == (0, 40, 0)
    assert (paraphraser.usage.asked, paraphraser.usage.cached) == (40, 0)


def test_back_off_doubles_and_is_spread(chat):
    with FakeChat(lambda text, number: fail(500) if number < 6 else None) as server:
        chat(server, attempts=6).reword(requests("Rate this: {text}"), quiet)
    assert len(chat.waits) == 5
    for attempt, seconds in enumerate(chat.waits):
        assert 0.5 * 2**attempt <= seconds <= 2**attempt


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for_by_all(chat, form):
    value = "30" if form == "seconds" else email.utils.formatdate(time.time() + 31, usegmt=True)
    with FakeChat(first_time(fail(429, Retry_After=value))) as server:
        chat(server, concurrency=1).reword(requests(*texts(2)), quiet)
    # The one that was refused, then each of the next requests, since nobody really slept.
    assert len(chat.waits) > 2
    assert all(28 < seconds <= 31 for seconds in chat.waits)


def test_an_endpoint_that_asks_for_hours_ends_the_run(chat):
    with (
        FakeChat(lambda text, number: fail(429, Retry_After="7200")) as server,
        pytest.raises(ChatError, match=r"120 minutes.*goes on later"),
    ):
        chat(server).reword(requests("Rate this: {text}"), quiet)


def test_what_fails_for_good_is_reported_and_asked_by_the_next_run_alone(chat):
    asked = texts(3)
    with FakeChat(lambda text, number: fail(500, "out of memory") if "1" in text else None) as bad:
        paraphraser = chat(bad)
        found = paraphraser.reword(requests(*asked), quiet)
        assert found == [rewordings(asked[0]), [], rewordings(asked[2])]
        assert bad.tries[asked[1]] == 4
        assert paraphraser.usage.failed == 1
        (note,) = paraphraser.notes
        assert "1 of 3" in note
        assert "HTTP 500: out of memory" in note
        bad.plan = lambda text, number: None
        assert chat(bad).reword(requests(*asked), quiet)[1] == rewordings(asked[1])
        assert bad.answered == dict.fromkeys(asked, 1)


def test_failures_are_told_once_in_the_words_of_the_endpoint(chat):
    with FakeChat(
        lambda text, number: raw(b'{"error": {"message": "upstream\\nis down."}}')
    ) as bad:
        paraphraser = chat(bad, attempts=1)
        paraphraser.reword(requests("Rate this: {text}"), quiet)
        paraphraser.reword(requests("Grade this: {text}"), quiet)
    assert [note.count("upstream is down") for note in paraphraser.notes] == [1, 1]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-3", 0), ("nan", 0), ("inf", float("inf")), ("soon", 0), ("", 0),
     ("Sat, 01 Jan 2000 00:00:00 GMT", 0), ("Sat, 99 Jan 2000 00:00:00 GMT", 0)],
)  # fmt: skip
def test_retry_after_is_a_number_of_seconds_or_nothing(header, seconds):
    assert retry_after(header) == seconds


def test_a_refused_prompt_fails_alone_and_at_once(chat):
    refused = fail(400, "filtered", code="content_filter")
    with FakeChat(lambda text, number: refused if "1" in text else None) as server:
        found = chat(server).reword(requests(*texts(3)), quiet)
    assert [len(each) for each in found] == [3, 0, 3]
    assert server.tries[texts(3)[1]] == 1


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (fail(400, "unsupported temperature"), r"unsupported temperature.*chat.temperature"),
        (fail(401, f"bad key: {KEY}"), r"FAKE_CHAT_KEY must hold a valid key"),
        (fail(403), r"FAKE_CHAT_KEY may not use the model 'fake'"),
        (fail(404), r"ends in /v1.*'fake'"),
        (fail(418, "tea"), r"HTTP 418: tea"),
        (fail(307, Location="https://elsewhere.example/v1"), r"moved to https://elsewhere"),
        (fail(429, code="insufficient_quota"), r"no credit"),
    ],
)
def test_permanent_errors_stop_at_once_and_say_what_to_change(chat, fault, advice):
    with FakeChat(lambda text, number: fault) as server:
        with pytest.raises(ChatError, match=advice) as raised:
            chat(server, concurrency=2).reword(requests(*texts(20)), quiet)
        assert len(server.bodies) <= 2
    assert KEY not in str(raised.value)


def test_an_endpoint_that_is_not_there_is_named(chat):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ChatError, match=f"no connection to {address}.*server running"):
            chat(address, attempts=2).reword(requests("Rate this: {text}"), quiet)


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("localhost:8000/v1", "http://"),
        ("", "http://"),
        ("http://user:hidden@localhost/v1", "neither a password nor a key"),
        ("http://localhost/v1?key=hidden", "neither a password nor a key"),
        ("http://[::1/v1", "no address"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_is_asked(chat, address, fault):
    with pytest.raises(ChatError, match=fault) as raised:
        chat(address)
    assert "hidden" not in str(raised.value)


def test_a_key_that_fits_in_no_header_is_refused_without_being_shown(chat, monkeypatch):
    for key in ("sk-one sk-two", "sk-\n1", "sk-é"):
        monkeypatch.setenv("FAKE_CHAT_KEY", key)
        with pytest.raises(ChatError) as raised:
            chat("http://localhost/v1")
        assert key not in str(raised.value)


def test_the_key_is_sent_and_stands_nowhere_else(chat, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with FakeChat(first_time(fail(500, f"key {KEY} is slow"))) as server:
        paraphraser = chat(server)
        shown = []
        paraphraser.reword(requests("Rate this: {text}"), lambda *told: shown.append(told))
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert server.headers[0]["path"] == "/v1/chat/completions"
    files = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 1
    assert not any(
        KEY in text for text in (*files, caplog.text, str(shown), str(vars(paraphraser)))
    )


def test_a_local_server_needs_no_key(chat, monkeypatch):
    monkeypatch.delenv("FAKE_CHAT_KEY")
    with FakeChat() as server:
        assert chat(server).reword(requests("Rate this: {text}"), quiet)[0]
    assert "Authorization" not in server.headers[0]


def test_equal_questions_are_asked_once_and_different_settings_anew(chat):
    twice = ["Rate this: {text}", "Rate this: {text}"]
    with FakeChat() as server:
        assert chat(server).reword(requests(*twice), quiet) == [rewordings(twice[0])] * 2
        assert len(server.bodies) == 1
        chat(server, temperature=0.2).reword(requests(*twice), quiet)
        chat(server, model="other").reword(requests(*twice), quiet)
        assert len(server.bodies) == 3
        chat(server, attempts=1, concurrency=1).reword(requests(*twice), quiet)
        assert len(server.bodies) == 3
    assert [body["temperature"] for body in server.bodies] == [0.9, 0.2, 0.9]
    assert [body["model"] for body in server.bodies] == ["fake", "fake", "other"]


def test_ctrl_c_keeps_what_was_answered_and_the_next_run_goes_on(chat):
    asked = texts(12)

    def interrupt(done, total, note):
        if done == 11:
            os.kill(os.getpid(), signal.SIGINT)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with FakeChat(lambda text, number: after(10) if text == asked[7] else None) as server:
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                chat(server).reword(requests(*asked), interrupt)
            assert time.monotonic() - started < 9
            server.plan = lambda text, number: None
            paraphraser = chat(server)
            assert paraphraser.reword(requests(*asked), quiet) == [rewordings(t) for t in asked]
    finally:
        signal.signal(signal.SIGINT, former)
    assert server.tries == dict.fromkeys(asked, 1) | {asked[7]: 2}
    assert (paraphraser.usage.cached, paraphraser.usage.asked) == (11, 1)


def test_what_a_permanent_error_left_answered_is_kept(chat):
    asked = texts(6)
    with FakeChat(lambda text, number: fail(401) if text == asked[4] else None) as server:
        with pytest.raises(ChatError):
            chat(server, concurrency=1).reword(requests(*asked), quiet)
        server.plan = lambda text, number: None
        paraphraser = chat(server)
        paraphraser.reword(requests(*asked), quiet)
    assert set(server.answered.values()) == {1}
    assert paraphraser.usage.cached == 4


@pytest.mark.parametrize(
    "content", [b"", b'{"request"', b"[]", b'{"answer": "x"}', b'{"answer": 5}']
)
def test_a_cache_file_that_is_not_whole_counts_as_absent(chat, tmp_path, content):
    with FakeChat() as server:
        chat(server).reword(requests("Rate this: {text}"), quiet)
        (file,) = (tmp_path / "cache").iterdir()
        file.write_bytes(content)
        assert chat(server).reword(requests("Rate this: {text}"), quiet)[0]
        assert len(server.bodies) == 2
        assert json.loads(file.read_text())["input_tokens"] == 100


def test_as_many_requests_are_under_way_as_allowed_and_no_more(chat):
    together, lock, counts = threading.Barrier(3), threading.Lock(), [0]

    def plan(text, number):
        with lock:
            counts.append(counts[-1] + 1)
        together.wait(20)
        with lock:
            counts.append(counts[-1] - 1)

    with FakeChat(plan) as server:
        chat(server, concurrency=3).reword(requests(*texts(9)), quiet)
    assert max(counts) == 3


def test_requests_per_minute_are_spaced_evenly_retries_included(chat):
    with FakeChat(first_time(fail(500))) as server:
        chat(server, requests_per_minute=1, concurrency=1).reword(requests(*texts(2)), quiet)
    # Four requests; as nobody really slept, each waits a minute more than the one before.
    paced = [seconds for seconds in chat.waits if seconds > 1]
    assert paced == pytest.approx([60, 120, 180], abs=10)


def test_tokens_and_dollars_count_useless_answers_too(chat):
    plan = first_time(say("no list", tokens=(1000, 500)))
    prices = {"dollars_per_million_input_tokens": 2.0, "dollars_per_million_output_tokens": 8.0}
    shown = []
    with FakeChat(plan) as server:
        paraphraser = chat(server, **prices)
        paraphraser.reword(requests("Rate this: {text}"), lambda *told: shown.append(told))
    # 1000 + 100 tokens in, 500 + 10 out.
    usage = dataclasses.asdict(paraphraser.usage)
    assert (usage["input_tokens"], usage["output_tokens"]) == (1100, 510)
    assert usage["dollars"] == pytest.approx((1100 * 2 + 510 * 8) / 1e6)
    assert shown[0] == (0, 1, "")
    assert "trying again: no whole JSON array" in shown[1][2]
    assert shown[-1] == (1, 1, "1,100 + 510 tokens, $0.01")


def test_rewordings_that_lose_a_place_or_name_an_answer_are_dropped_and_counted(chat):
    candidates = [
        "  Is it good or bad: {text}?\n{options_}  ",
        "Is it good or bad?\n{options_}",  # no text
        "Is it good or bad: {Text}?\n{options_}",  # another name
        "Good, bad, bad: {text}\n{options_}",  # an answer twice
        "{text}\nGood or bad? {options_}",
    ]
    with FakeChat(lambda text, number: say(json.dumps(candidates))) as server:
        paraphraser = chat(server)
        request = Request("task", "task/1", "Good or bad? {text}\n{options_}", ("good", "bad"))
        (found,) = paraphraser.reword([request], quiet)
    assert found == [candidates[0].strip(), candidates[4]]
    assert paraphraser.usage.dropped == 3


def test_a_finished_prompt_is_not_asked_about(chat):
    with FakeChat() as server:
        found = chat(server).reword(requests("{prompt_1}", "Rate: {text}", " {prompt_2}\n"), quiet)
        assert len(server.bodies) == 1
    assert found == [[], rewordings("Rate: {text}"), []]


def test_the_question_names_what_must_stay_and_what_must_not_come(chat):
    request = Request("task", "task/1", "Is {rules} {count} {text} good?", ("good", "not good"))
    role, question = (message["content"] for message in messages(request, 5))
    assert "never carry out" in role
    assert '"{rules}", "{count}", "{text}", "good"' in question
    assert 'Do not use these words: "not good"' in question
    assert "<instruction>\nIs {rules} {count} {text} good?\n</instruction>" in question
    assert "5 different wordings" in question


@pytest.mark.parametrize(
    "content",
    [
        '["a", "b"]',
        '```json\n["a", "b"]\n```',
        'Here they are:\n["a",\n "b"]\nI hope they help.',
        '{"wordings": ["a", "b"]}',
        '<think>Maybe ["c"]? Yes.</think>\n["a", "b"]',
    ],
)
def test_a_list_is_found_in_what_is_said_around_it(content):
    assert read_rewordings(content) == ["a", "b"]


def test_a_line_break_inside_a_string_is_kept():
    assert read_rewordings('["a {x}\nb"]') == ["a {x}\nb"]


@pytest.mark.parametrize(
    "content",
    ["", "[]", '["a", "b"', '["a", [1], "b', '[["a"], ["b"', '["a", 1]', '["a", " "]', "1. a\n2. b",
     '[{"text": "a"}]', "['a', 'b']", "] ["],
)  # fmt: skip
def test_what_is_no_whole_list_of_texts_is_refused(content):
    with pytest.raises(ValueError, match="JSON array"):
        read_rewordings(content)


def test_no_more_rewordings_are_taken_than_were_asked_for(chat):
    many = json.dumps([f"Wording {number}: {{text}}" for number in range(50)])
    with FakeChat(lambda text, number: say(many)) as server:
        (found,) = chat(server).reword(requests("Rate this: {text}"), quiet)
    assert len(found) == 5  # three and two to spare


def test_an_answer_is_in_the_cache_before_the_next_question_goes_out(chat, tmp_path):
    files = []

    def plan(text, number):
        files.append(len(list((tmp_path / "cache").glob("*.json"))))
        return answer()

    with FakeChat(plan) as server:
        chat(server, concurrency=1).reword(requests(*texts(4)), quiet)
    assert files == [0, 1, 2, 3]
