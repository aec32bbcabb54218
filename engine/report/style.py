"""The style sheet of a report: light and dark mode; tables become cards on a narrow screen."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f7f9; --ink: #1d2329; --soft: #56616c; --line: #d7dce1; --good: #00674c;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #009e73; --series-3: #cc79a7; --series-4: #b97f00;
  --series-5: #2f93cc; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14181c; --panel: #1d2328; --ink: #e6eaed; --soft: #a3adb6; --line: #39424a; --good: #4fd1a5;
  --series-0: #5cb8f0; --series-1: #ff8f4d; --series-2: #2fcf9f; --series-3: #eaa6cb; --series-4: #f0b93a;
  --series-5: #9ad6f7; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, "Noto Sans", "Noto Sans Devanagari", "Noto Sans Arabic",
  "Noto Sans Tamil", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 0; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; }
p, figcaption { color: var(--soft); margin: .25rem 0 .75rem; }
nav a { color: inherit; margin-inline-end: 1rem; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--panel); border-radius: .5rem; min-width: 0; }
figure h3 { font-size: .95rem; margin: 0 0 .25rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .8rem; margin: .25rem 0 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: start; vertical-align: top; padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--soft); font-weight: 500; font-size: .82rem; }
.number { text-align: end; font-variant-numeric: tabular-nums; }
.words { white-space: pre-wrap; line-height: 1.65; }
.right { color: var(--good); font-size: .8rem; }
.answers td { width: 25%; padding-inline-end: 1rem; }
.bar { display: block; max-width: 100%; height: .6rem; min-width: 1px; border-radius: .2rem;
  background: var(--series-0); }
td:has(> .bar) { width: 35%; min-width: 5rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
.scroll { overflow-x: auto; }
@media (max-width: 40rem) {
  .answers thead { display: none; }
  .answers tr { display: block; padding: .75rem 0; border-bottom: 1px solid var(--line); }
  .answers td { display: block; width: auto; border: 0; padding: .2rem 0; }
  .answers td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .78rem; }
}
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""
