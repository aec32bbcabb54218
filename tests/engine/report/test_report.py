"""The report of a run: nothing a model says becomes markup, and numbers are the run's."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.report.__main__ import main
from engine.report.curves import CURVES, lines_of, smooth
from engine.report.markup import tag, text
from engine.report.reading import read_run
from engine.report.tables import asked
from engine.text.templates import TEMPLATES

EVIL = '<script>alert(1)</script></td> & "q" \x00\ud800'


class Reader(HTMLParser):
    """The elements of a page and the text in its cells."""

    def __init__(self, page):
        super().__init__()
        self.names, self.words, self.open, self.attributes = [], [], [], []
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        self.attributes.append((name, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


def write_run(folder, seed=0, steps=4, lang="ar", finished=True):
    """A PPO stage whose scores rise from 0.1 by 0.1 a step."""
    folder.mkdir(parents=True)
    settings = {"lang": lang, "seed": seed, "template": "plain", "output": str(folder)}
    config = {"stage": "ppo", "settings": settings, "versions": {"torch": "2"}, "hardware": {"cpu": "a <fast> one"}}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {"step": s, "objective/scores": s / 10 + seed, "objective/kl": s, "time/collect_s": 3.0,
         "time/generation_s": 1.5, "time/scoring_s": 0.5, "time/update_s": 2.0}
        for s in range(1, steps + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "obj')
    answers = [{"step": 4, "prompt": "سؤال\n=> ", "response": EVIL, "before_ppo": "جواب", "expected": "جواب"}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    scores = [{"step": s, "scores": [0.5, 1.5]} for s in (1, steps)]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    if finished:
        result = {"score_first": 0.1, "score_last": 0.4, "exact_match": 0.5, "seconds": 7.25}
        (folder / "result.json").write_text(json.dumps(result))
    return folder.parent


def test_what_a_model_says_stays_text_and_keeps_its_direction(tmp_path):
    run = write_run(tmp_path / "ar" / "ppo")
    assert main([str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    read = Reader(page)
    assert "script" not in read.names
    assert EVIL.replace("\x00", "\ufffd").replace("\ud800", "\ufffd") in read.words
    assert ("div", {"class": "words", "dir": "auto", "lang": "ar"}) in read.attributes
    assert "سؤال" in read.words  # the template's own words are taken off
    assert read.words.count("✓ as expected") == 1
    assert "src=" not in page
    assert "0.100 → 0.400" in page
    assert "a &lt;fast&gt; one" in page


def test_time_is_shown_by_phase(tmp_path, capsys):
    run = write_run(tmp_path / "ar" / "ppo")
    main([str(run), "--output", str(tmp_path / "r.html")])
    words = Reader((tmp_path / "r.html").read_text(encoding="utf-8")).words
    words = [word for word in words if word.strip()]
    for phase, seconds in (("generation", "6.0"), ("scoring", "2.0"), ("updates", "8.0"), ("whole stage", "7.2")):
        assert seconds in words[words.index(phase) + 1], phase
    assert capsys.readouterr().out.endswith("r.html\n")


def test_evaluations_are_shown(tmp_path):
    run = write_run(tmp_path / "ar" / "ppo")
    (run / "evaluate").mkdir()
    entry = {"alias": "arc_ar", "acc,none": 0.2575, "acc_stderr,none": 0.01}
    results = {"results": {"arc_ar": entry}, "n-samples": {"arc_ar": {"effective": 1167}}}
    (run / "evaluate" / "results.json").write_text(json.dumps(results))
    main([str(run)])
    words = Reader((run / "report.html").read_text(encoding="utf-8")).words
    at = words.index("arc_ar")
    assert [w for w in words[at : at + 12] if w.strip()][:5] == ["arc_ar", "acc", "25.8", "1.0", "1,167"]


def test_plots_are_svg_in_the_pages_colours_and_png_beside(tmp_path):
    runs = [write_run(tmp_path / str(seed) / "ppo", seed, finished=seed == 0) for seed in (0, 1)]
    assert main([*map(str, runs), "--output", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4  # score, KL, score against KL, histogram
    assert "var(--series-0)" in page
    assert "#0072b2" not in page.split("</style>")[1]
    assert "each seed" in page
    pictures = sorted(p.name for p in (tmp_path / "r_plots").iterdir())
    assert pictures == ["ppo_frontier.png", "ppo_kl.png", "ppo_score.png", "ppo_scores.png"]
    assert "not finished" in page


def test_training_and_held_out_data_share_a_picture_with_the_kept_step(tmp_path):
    runs = [write_run(tmp_path / str(seed) / "ppo", seed) for seed in (0, 1)]
    for run, with_interval in zip(runs, (True, False)):
        rows = [
            {"step": s, "heldout/score": 0.1 * s, "heldout/kl": 0.2 * s, "heldout/exact_match": 0.1} for s in (0, 2, 4)
        ]
        rows = [{**row, **({"heldout/score_half": 0.05} if with_interval else {})} for row in rows]
        lines = (run / "ppo" / "metrics.jsonl").read_text().rsplit("\n", 1)[0] + "\n"
        (run / "ppo" / "metrics.jsonl").write_text(lines + "".join(json.dumps(row) + "\n" for row in rows))
        kept = {"measure": "score", "iteration": 2, "last_iteration": 4, "value": 0.2, "measured": 2, "last_value": 0.4}
        result = json.loads((run / "ppo" / "result.json").read_text())
        (run / "ppo" / "result.json").write_text(json.dumps({**result, "kept": kept, "stopped": "stopped <there>"}))
    one = lines_of(next(c for c in CURVES if c.name == "ppo_score"), [read_run(runs[0])])
    assert (
        one[0].heldout == [(0, 0.0), (2, 0.2), (4, 0.4)] and one[0].halves == [0.05] * 3 and one[0].kept == [(2, 0.2)]
    )
    assert main([str(runs[0])]) == 0
    page = (runs[0] / "report.html").read_text()
    assert "points: held out, with 95 % intervals; ring: the exported step" in page
    assert all(word in page for word in (">held out<", ">training<", ">kept: 2<", "held-out score 0.2, the best of 2"))
    assert "stopped &lt;there&gt;" in page
    assert (runs[0] / "report_plots" / "ppo_exact_match.png").is_file()
    assert main([*map(str, runs), "--output", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert page.count("ring: the exported step") == 3 and "held out, with 95 %" not in page


def test_scores_on_another_scale_are_not_drawn_together(tmp_path):
    run = write_run(tmp_path / "ar" / "ppo")
    config = json.loads((run / "ppo" / "config.json").read_text())
    config["settings"]["score_norm"] = "rollouts"
    (run / "ppo" / "config.json").write_text(json.dumps(config))
    (run / "ppo" / "metrics.jsonl").write_text(
        '{"step": 1, "objective/scores": 0.5}\n{"step": 1, "heldout/score": 7.0}\n'
    )
    assert lines_of(next(c for c in CURVES if c.name == "ppo_score"), [read_run(run)])[0].heldout == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "ppo" / "config.json").unlink(), "holds no run"),
        (lambda run: (run / "ppo" / "metrics.jsonl").write_text("{}\n"), "metrics.jsonl:1: has no field 'step'"),
        (lambda run: (run / "ppo" / "metrics.jsonl").write_text('{"step"\n'), "metrics.jsonl:1: bad JSON"),
        (lambda run: (run / "report.html").mkdir(), "is a folder"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, spoil, words):
    run = write_run(tmp_path / "ar" / "ppo")
    spoil(run)
    assert main([str(run)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@given(st.text())
def test_markup_gives_back_the_text_it_was_given(words):
    shown = Reader(tag("p", words, title=words))
    kept = text(words).encode("utf-8").decode("utf-8")
    assert shown.names == ["p"]
    assert "<" not in kept


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(1, 9), st.floats(-5, 5))
def test_smoothing_leaves_straight_lines_alone(values, window, slope):
    line = [(float(i), slope * i) for i in range(len(values))]
    for (x, y), (a, b) in zip(smooth(line, window), line):
        assert x == pytest.approx(a, abs=1e-6)
        assert y == pytest.approx(b, abs=1e-6)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(("question", "more"), [("ask", ""), ("ask", "this"), ("two\nlines", "")])
def test_the_template_is_taken_off_a_prompt(name, question, more):
    prompt = TEMPLATES[name].format(question, more)
    assert asked(prompt, name) == (f"{question}\n{more}" if more else question)
    assert asked("something else", name) == "something else"


def test_held_out_texts_of_pretraining_have_rows_of_their_own(tmp_path, capsys):
    """The second language's perplexity before and after stands in the table, and a spoilt one is a mistake."""
    folder = tmp_path / "run" / "pretrain"
    folder.mkdir(parents=True)
    config = {"stage": "pretrain", "settings": {"lang": "ne", "seed": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss/pretrain": 3.0}\n{"step": 2, "loss/pretrain": 2.5}\n')
    result = {"seconds": 3.0, "loss_first": 3.0, "loss_last": 2.5, "drawn": {"ne": {"documents": 2, "tokens": 9}}}
    result |= {"perplexity/en_before": 9.25, "perplexity/en": 11.5, "bits_per_byte/en_before": 1.125}
    result |= {"bits_per_byte/en": 1.25, "perplexity/ne_before": 80.0, "perplexity/ne": 20.0}
    (folder / "result.json").write_text(json.dumps(result))
    main([str(tmp_path / "run")])
    page = (tmp_path / "run" / "report.html").read_text()
    for title, cell in (
        ("pretraining, perplexity of en", "9.250 → 11.500"),
        ("pretraining, bits per byte of en", "1.125 → 1.250"),
        ("pretraining, perplexity of ne", "80.000 → 20.000"),
        ("pretraining loss, nats per token", "3.000 → 2.500"),
    ):
        assert title in page and cell in page
    (folder / "result.json").write_text(json.dumps({**result, "perplexity/en": "low"}))
    assert main([str(tmp_path / "run")]) == 2
    assert "no number for perplexity/en" in capsys.readouterr().err
