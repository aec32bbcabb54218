"""The peer lm-eval: run its own tasks on local files without a network, and return the scores of each choice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from engine.base.jsonl import iterate_objects
from evaluation.data.sets import SETS

# The folders of lm-eval's tasks to index. Indexing all folders would take half a minute.
_FOLDERS = ("okapi", "arc", "hellaswag", "mmlu/default", "truthfulqa")
# The folders of lm-eval's tasks in the published formats, of which a Peer may index some.
PUBLISHED_FOLDERS = (
    *("belebele", "xcopa", "xstorycloze", "xnli", "global_mmlu", "include/default"),
    *("global_piqa/nonparallel_cloze", "global_piqa/parallel_cloze", "indicparam", "multiblimp"),
)
# Dataset on the hub -> folder of our files.
_PUBLISHED = {
    "facebook/belebele": "belebele",
    "cambridgeltl/xcopa": "xcopa",
    "juletxara/xstory_cloze": "xstorycloze",
    "facebook/xnli": "xnli",
    "CohereLabs/Global-MMLU-Lite": "global_mmlu",
    "CohereForAI/Global-MMLU": "global_mmlu_full",
    "CohereForAI/include-base-44": "include",
    "mrlbenchmarks/global-piqa-nonparallel": "global_piqa_nonparallel",
    "mrlbenchmarks/global-piqa-parallel": "global_piqa_parallel",
    "bharatgenai/IndicParam": "indicparam",
    "jumelet/multiblimp": "multiblimp",
}
_OKAPI = {"alexandrainst/m_arc", "alexandrainst/m_hellaswag", "alexandrainst/m_mmlu", "alexandrainst/m_truthfulqa"}


def read(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in iterate_objects(path)]


def splits(folder: Path, dataset: str, name: str | None) -> dict[str, list[dict[str, Any]]]:
    """Return split -> rows of a hub dataset, read from files in our layout."""
    if dataset in _PUBLISHED:
        return _published(folder / _PUBLISHED[dataset], name)
    if dataset in _OKAPI:
        paths = (folder / dataset.split("/")[1]).glob(f"{name}_*.json")
        parts = {path.stem.split("_")[1]: _filled(read(path)) for path in paths}
        # On the hub, the dev part is called train. m_arc has a split "validation", the others a split "val".
        renamed = {"dev": "train"} if dataset.endswith("m_arc") else {"dev": "train", "validation": "val"}
        return {renamed.get(part, part): rows for part, rows in parts.items()}
    if dataset == "allenai/ai2_arc":
        return {part: [_ai2(row) for row in read(folder / f"m_arc/en_{part}.json")] for part in ("train", "test")} | {
            "validation": [_ai2(row) for row in read(folder / "m_arc/en_train.json")]
        }
    if dataset == "Rowan/hellaswag":
        rows = read(folder / "m_hellaswag/en_validation.json")
        return {"train": rows, "validation": rows}
    if dataset == "cais/mmlu":
        return {
            part: [_cais(row) for row in read(folder / f"m_mmlu/en_{part}.json") if row["id"].startswith(f"{name}/")]
            for part in ("dev", "test")
        }
    assert dataset == "truthfulqa/truthful_qa", dataset
    return {"validation": [_nested(row) for row in read(folder / "m_truthfulqa/en_validation.json")]}


def _published(folder: Path, name: str | None) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the languages of this name: of one language, but of all for IndicParam's only name."""
    names = SETS[folder.name].names
    langs = [lang for lang, own in names.items() if name in (own, "IndicParam")]
    parts: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*_*.json")):
        lang, part = path.stem.split("_")
        if lang in langs:
            parts.setdefault(part, []).extend(read(path))
    return parts


def _filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with the same columns in all, as on the hub: null for a missing field, and always a fifth option."""
    names = dict.fromkeys(name for row in rows for name in row)
    if "option_a" in names:
        names["option_e"] = None
    return [{name: row.get(name) for name in names} for row in rows]


def _letters(row: dict[str, Any]) -> list[str]:
    return [row[f"option_{letter}"] for letter in "abcde" if f"option_{letter}" in row]


def _ai2(row: dict[str, Any]) -> dict[str, Any]:
    texts = _letters(row)
    choices = {"text": texts, "label": list("ABCDE"[: len(texts)])}
    return {"id": row["id"], "question": row["instruction"], "choices": choices, "answerKey": row["answer"]}


def _cais(row: dict[str, Any]) -> dict[str, Any]:
    return {"question": row["instruction"], "choices": _letters(row), "answer": "ABCD".index(row["answer"])}


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    targets = {
        f"{name}_targets": {"choices": row[f"{name}_targets_choices"], "labels": row[f"{name}_targets_labels"]}
        for name in ("mc1", "mc2")
    }
    return {"question": row["question"], **targets}


@contextmanager
def local_datasets(folder: Path) -> Iterator[None]:
    """Let datasets.load_dataset read the files of this folder."""
    import datasets

    def load(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in splits(folder, path, name).items()}
        )

    with mock.patch.object(datasets, "load_dataset", load):
        yield


class Peer:
    """lm-eval with one model in float32."""

    def __init__(
        self, model_folder: Path, data_folder: Path, batch_size: int = 1, task_folders: Sequence[str] = _FOLDERS
    ):
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        root = Path(lm_eval.__file__).parent / "tasks"
        self.data_folder = data_folder
        self.manager = TaskManager(include_path=[str(root / name) for name in task_folders], include_defaults=False)
        self.lm = HFLM(pretrained=str(model_folder), dtype="float32", batch_size=batch_size, device="cpu")

    def samples(self, task: str, shots: int, limit: int) -> list[dict[str, Any]]:
        """Return for each document, in lm-eval's order, its prompt, continuations and lls."""
        import lm_eval

        with local_datasets(self.data_folder):
            outcome = lm_eval.simple_evaluate(
                model=self.lm,
                tasks=[task],
                num_fewshot=shots,
                limit=limit,
                task_manager=self.manager,
                bootstrap_iters=0,
                log_samples=True,
            )
        samples = sorted(outcome["samples"][task], key=lambda sample: sample["doc_id"])
        return [
            {
                "prompt": sample["arguments"][0][0],
                "continuations": [argument[1] for argument in sample["arguments"]],
                "lls": [response[0] for response in sample["filtered_resps"]],
                "target": sample["target"],
                "metrics": {name: sample[name] for name in sample["metrics"]},
            }
            for sample in samples
        ]
