"""Published averages of the base models, for comparison in the report.

Source: the logs that the authors of Okapi (arXiv 2307.16039) released, made with their evaluator on HellaSwag without
shots. The groups are those of the paper's Table 1; "llama" is the 14 languages in LLaMA's pre-training data.
"""

from __future__ import annotations

# (task, metric) -> model -> group -> per cent
PUBLISHED: dict[tuple[str, str], dict[str, dict[str, float]]] = {
    ("hellaswag", "acc"): {
        "BLOOM-7B1 (published)": {"high": 35.6, "medium": 30.9, "low": 26.7},
        "LLaMA-7B (published)": {"llama": 37.0},
    },
    ("hellaswag", "acc_norm"): {
        "BLOOM-7B1 (published)": {"high": 43.8, "medium": 35.7, "low": 30.3},
        "LLaMA-7B (published)": {"llama": 46.4},
    },
}
