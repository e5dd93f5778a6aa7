"""What an evaluation shows: tables on the terminal and one page of HTML."""

from __future__ import annotations

import html.parser
import io
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from report_results import CONDITIONS, OPENINGS, TASKS, bare, make_results, wordings
from rich.console import Console

from coin_jax.robustness.page import changes, page_data, write_page
from coin_jax.robustness.report import pooled, print_report, verdict


def shown(results, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_report(results, console)
    return console.file.getvalue()


COMPARISON = {
    "task": "rte",
    "condition": "clean",
    "scoring": "likelihood",
    "a": "coin",
    "b": "baseline",
    "difference": 0.0314,
    "low": -0.02,
    "high": 0.08,
    "p": 0.004,
    "p_holm": 0.02,
    "resolvable": True,
    "smallest": 0.123,
    "items": 100,
}


def test_seeds_of_a_group_are_averaged_and_nulls_stay_out():
    rows = [
        {"run": "coin-0", "task": "rte", "mean": 0.5, "drop_rate": None, "posix": None},
        {"run": "coin-1", "task": "rte", "mean": 0.75, "drop_rate": 0.2, "posix": None},
        {"run": "base-0", "task": "rte", "mean": 0.25, "drop_rate": 0.1, "posix": None},
    ]
    assert pooled(rows, ("task",), lambda run: run.split("-")[0]) == [
        {"run": "coin", "task": "rte", "mean": 0.625, "drop_rate": 0.2, "posix": None},
        {"run": "base", "task": "rte", "mean": 0.25, "drop_rate": 0.1, "posix": None},
    ]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "coin is better"),
        ({"difference": -0.0314}, "baseline is better"),
        ({"p_holm": 0.06}, "no difference shown"),
        ({"resolvable": False}, "too few items to tell (100 items resolve 12.3 points)"),
        ({"resolvable": False, "smallest": None}, "too few items to tell (100 items)"),
    ],
)
def test_a_comparison_says_in_words_what_it_shows(changed, words):
    assert verdict(COMPARISON | changed, {"rte": 100}) == words


def test_comparisons_that_few_items_cannot_tell_share_a_line_a_task():
    results = make_results(tasks=("rte", "cola"), seeds=1)
    silent = {"resolvable": False, "difference": 0.0}
    results["comparisons"] = [
        COMPARISON | {"condition": "clean"},
        COMPARISON | silent | {"condition": "role", "smallest": 0.051},
        COMPARISON | silent | {"condition": "semantic", "smallest": 0.042},
        COMPARISON | silent | {"task": "cola", "condition": "clean", "smallest": 0.033},
        COMPARISON | silent | {"task": "average", "condition": "clean", "smallest": 0.011},
        COMPARISON | silent | {"task": "average", "condition": "role", "smallest": 0.012},
    ]
    text = " ".join(shown(results, 160).split())
    assert "2 others too few items to tell (100 items resolve 5.1 points)" in text
    assert text.count("too few items to tell") == 4  # two averages, cola's one, rte's two in one


def test_items_are_counted_by_the_suite_where_a_comparison_does_not():
    row = {**COMPARISON, "resolvable": False, "items": None}
    assert "(100 items" in verdict(row, {"rte": 100, "cola": 30})
    assert "(130 items" in verdict(row | {"task": "average"}, {"rte": 100, "cola": 30})


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal_and_hold_their_numbers(width):
    results = make_results()
    text = shown(results, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text  # nothing is cut off
    for condition in CONDITIONS:
        for group in ("coin", "baseline"):
            own = [
                row
                for row in results["averages"]
                if row["condition"] == condition and row["run"].startswith(group)
            ]
            mean, worst = (100 * np.mean([row[s] for row in own]) for s in ("mean", "worst"))
            assert re.search(rf"{group} +{mean:.1f} +{worst:.1f} ", text), (condition, group)
    assert "too few items to tell (200" in text
    assert "items resolve 6.0 points)" in text
    majority = np.mean([values[2] for values in TASKS.values()])
    assert f"{100 * majority:.1f}" in text
    assert re.search(r"majority +51\.0 +69\.0 +63\.0 +35\.0", text)


def test_the_terminal_shows_a_bare_result_and_its_nulls():
    lines = shown(bare()).splitlines()
    assert any(
        line.split() == ["clean", "only", "62.5", "50.0", "12.5", "–", "–", "–", "0.0", "55.0"]
        for line in lines
    )
    assert "Cosine" not in shown(bare())
    assert "minus" not in shown(bare())


def test_an_average_over_fewer_tasks_says_so():
    results = bare()
    results["suite"]["tasks"] = ["rte", "cola"]
    results["averages"][0] |= {"tasks": 1, "majority": 0.55}
    results["suite"]["majority"]["cola"] = 0.75
    assert re.search(r"clean \(1 task\) .* 55\.0 *\n", shown(results))  # not the 65.0 of both
    assert page_data(results)["views"]["groups"]["averages"][0]["label"] == "clean (1 task)"


def test_many_tasks_go_into_several_tables_and_notes_come_first():
    results = bare()
    names = [f"some-long-task-{i}" for i in range(9)]
    results["suite"]["tasks"] = names
    results["suite"]["notes"] = ["prompt [rte] stands among the training templates"]
    text = shown(results)
    assert text.startswith("! prompt [rte] stands")  # brackets are no markup
    assert all(name in text for name in names)
    assert max(map(len, text.splitlines())) <= 80


def test_changes_of_a_prompt_are_shown_word_by_word():
    assert changes("Read this with care.", "Re ad thsi with care.") == [
        ("gone", "Read this"),
        ("new", "Re ad thsi"),
        ("same", " with care."),
    ]
    assert changes("Is {text} good?", "Is {text} good? true is true") == [
        ("same", "Is {text} good?"),
        ("new", " true is true"),
    ]
    assert changes(None, "as it is") == [("same", "as it is")]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_changes_spell_both_the_origin_and_the_prompt(condition):
    for (_, origin), (_, text) in zip(
        wordings("rte", "clean"), wordings("rte", condition), strict=True
    ):
        parts = changes(origin, text)
        assert "".join(part for what, part in parts if what != "new") == origin
        assert "".join(part for what, part in parts if what != "gone") == text


def test_the_worst_prompts_are_those_that_lose_most_with_their_own_flips():
    results = bare()
    place = {"task": "rte", "index": 0, "scoring": "likelihood", "invalid": 0.0, "origin": 0}
    for condition, accuracy in (("typos", 0.25), ("tail", 0.5)):
        text = f"{{text}} Yes or {condition}? 0"
        row = {"run": "only", "condition": condition, "text": text, "accuracy": accuracy}
        results["prompts"].append(place | row)
    flip = {
        "run": "only",
        "task": "rte",
        "index": 0,
        "scoring": "likelihood",
        "input": {"text": ""},
    }
    results["flips"] = [
        flip | {"condition": condition, "instance": condition} for condition in ("tail", "typos")
    ]
    worst = page_data(results)["views"]["groups"]["worst"]
    assert [(row["condition"], row["lost"]) for row in worst] == [("typos", 0.375), ("tail", 0.125)]
    assert [row["flips"][0]["instance"] for row in worst] == ["typos", "tail"]
    assert worst[0]["changes"][1:3] == [("gone", "no"), ("new", "typos")]


class Scripts(html.parser.HTMLParser):
    """What a browser would take for elements, and the texts of the scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] == "script" and self.scripts:
            self.scripts[-1] += text

    def handle_endtag(self, tag):
        self.elements.append((f"/{tag}", {}))


HOSTILE = '</script><img src=x onerror="window.hacked=1"><!--<script>&amp;\u2028\''


def hostile():
    results = bare()
    results["prompts"][0]["text"] = HOSTILE
    results["suite"]["name"] = results["runs"][0]["checkpoint"] = HOSTILE
    results["suite"]["notes"] = [HOSTILE]
    return results


def test_hostile_texts_stay_data(tmp_path):
    text = write_page(hostile(), tmp_path / "page.html").read_text("utf-8")
    page = Scripts(text)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == tags.count("/script") == 2
    assert "img" not in tags
    data = json.loads(page.scripts[0])
    assert data["texts"][0] == data["suite"]["name"] == HOSTILE


def test_the_page_names_no_other_place_and_forbids_the_network(tmp_path):
    text = write_page(make_results(), tmp_path / "page.html").read_text("utf-8")
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|\b(?:src|srcset)=|innerHTML", text)
    policies = [a for tag, a in Scripts(text).elements if tag == "meta" and "http-equiv" in a]
    assert policies[0]["content"] == (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )


def test_numbers_that_json_lacks_become_null(tmp_path):
    results = bare()
    results["cells"][0]["ece"], results["cells"][0]["posix"] = float("nan"), float("inf")
    page = Scripts(write_page(results, tmp_path / "page.html").read_text("utf-8"))
    cell = json.loads(page.scripts[0])["views"]["groups"]["cells"][0]
    assert cell["ece"] is None
    assert cell["posix"] is None
    assert cell["mean"] == 0.625


PROBE = """
const report = [];
function look(frame) {
  const page = frame.contentWindow, { document: d } = page, found = {};
  const all = (pattern) => [...d.querySelectorAll(pattern)];
  const change = (select, value) => {
    select.value = value;
    select.dispatchEvent(new page.Event("change", { bubbles: true }));
  };
  found.sections = all("main > section").map((section) => section.id);
  found.text = d.body.innerText;
  found.marks = all("#prompts [role=img]").length;
  found.stops = all("#prompts [role=img][tabindex='0']").length;
  found.panels = all("#prompts svg.dots").length;
  found.cells = all("#tasks td[style]").map((cell) => cell.textContent).filter(Boolean).length;
  found.unnamed = all("table:not(:has(caption)), svg[role=group]:not([aria-label])").length;
  found.changes = all("#worst ins, #worst del").length;
  const [dot] = all("#prompts [role=img][tabindex='0']");
  dot.focus();
  found.tip = d.getElementById("tip").hidden ? "" : d.getElementById("tip").textContent;
  dot.dispatchEvent(new page.KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  found.moved = d.activeElement !== dot && d.activeElement.getAttribute("tabindex") === "0";
  const selects = all("#bar select");
  if (selects.length) change(selects[0], selects[0].options[1].value);
  found.panelsOfOneTask = all("#prompts svg.dots").length;
  if (selects.length) change(selects.at(-1), "runs");
  change(d.getElementById("metric"), d.getElementById("metric").options[1].value);
  found.heatMaps = all("#tasks table").length;
  for (const details of all("details")) details.open = true;
  found.overflow = d.documentElement.scrollWidth - page.innerWidth;
  found.resources = page.performance.getEntriesByType("resource").length;
  found.hacked = page.hacked ?? d.images.length;
  found.background = page.getComputedStyle(d.body).backgroundColor;
  return found;
}
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) report.push(look(frame));
  document.body.textContent = JSON.stringify(report);
});
"""


def look(folder, pages, dark):
    """Opens pages {name: (file, width)} in Chromium; what the probe found in each, by name."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    frames = "".join(
        f'<iframe src="{path.name}" style="width:{width}px;height:800px;border:0"></iframe>'
        for path, width in pages.values()
    )
    (folder / "frames.html").write_text(f"<body>{frames}<script>{PROBE}</script>")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={folder / 'profile'}", "--hide-scrollbars"]
    command += ["--allow-file-access-from-files", "--enable-logging=stderr"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"]
    command += ["--window-size=1400,900", (folder / "frames.html").as_uri()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=os.environ | {"HOME": str(folder)}
    )
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    body = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    assert body, done.stdout[:500] + done.stderr[-2000:]
    return dict(zip(pages, json.loads(html.unescape(body[1])), strict=True))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_in_chromium(tmp_path, dark):
    full = write_page(make_results(scoring=("likelihood", "generation")), tmp_path / "full.html")
    least = write_page(bare(), tmp_path / "bare.html")
    bad = write_page(hostile(), tmp_path / "hostile.html")
    pages = {"desk": (full, 1280), "phone": (full, 360), "bare": (least, 360), "bad": (bad, 360)}
    found = look(tmp_path, pages, dark)
    for name, page in found.items():
        assert page["overflow"] <= 0, f"{name} scrolls sideways"
        assert page["resources"] == 0, f"{name} loads something"
        assert page["hacked"] == 0, f"{name} runs what a prompt says"
        assert page["unnamed"] == 0
        assert page["moved"]
        assert not re.search(r"\b(?:NaN|undefined|null|false)\b", page["text"]), name
        red, green, blue = map(int, re.findall(r"\d+", page["background"])[:3])
        assert (max(red, green, blue) < 60) if dark else (min(red, green, blue) > 240)
    names = ["runs", "tasks", "prompts", "comparisons", "worst", "attacks", "map", "gaps"]
    for name in ("desk", "phone"):
        page = found[name]
        assert page["sections"] == names
        assert page["panels"] == page["stops"] == len(TASKS)
        assert page["panelsOfOneTask"] == 1
        # One dot a prompt and group: 3 prompts in each of 9 conditions and 8 tasks.
        assert page["marks"] == 2 * 3 * 9 * 8
        assert page["cells"] == 2 * 8 * 10
        assert page["heatMaps"] == 6  # of every seed
        assert page["changes"] > 0
        assert OPENINGS[0] in page["tip"]
    assert found["bare"]["sections"] == ["runs", "tasks", "prompts"]
    assert "62.5" in found["bare"]["text"]
    assert "onerror" in found["bad"]["text"]
