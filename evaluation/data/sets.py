"""The published sets: the languages that each has, the name that it gives each language, and its own file names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OKAPI = (
    *("ru", "de", "zh", "fr", "es", "it", "nl", "vi", "id", "ar", "hu", "ro", "da", "sk", "uk", "ca", "sr", "hr"),
    *("hi", "bn", "ta", "ne", "ml", "mr", "te", "kn"),
)


@dataclass(frozen=True)
class PublishedSet:
    """One set as its authors publish it.

    names  language -> the set's own name of it, as lm-eval's tasks use it
    files  part -> file names below the set's folder, with {name} and {lang}, that are read besides <lang>_<part>.json
    """

    names: Mapping[str, str]
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _named(text: str) -> dict[str, str]:
    """Return {"ne": "npi_Deva", "hi": "hi"} for "ne=npi_Deva hi"."""
    pairs = (word.partition("=") for word in text.split())
    return {lang: name or lang for lang, _, name in pairs}


_FLORES = _named(
    "en=eng_Latn ru=rus_Cyrl de=deu_Latn zh=zho_Hans fr=fra_Latn es=spa_Latn it=ita_Latn nl=nld_Latn vi=vie_Latn "
    "id=ind_Latn ar=arb_Arab hu=hun_Latn ro=ron_Latn da=dan_Latn sk=slk_Latn uk=ukr_Cyrl ca=cat_Latn sr=srp_Cyrl "
    "hr=hrv_Latn hi=hin_Deva bn=ben_Beng ta=tam_Taml ne=npi_Deva ml=mal_Mlym mr=mar_Deva te=tel_Telu kn=kan_Knda"
)
# Global PIQA has several varieties of some languages: the one of the country that the language is named after is used.
_PIQA = {lang: name.lower() for lang, name in _FLORES.items()} | _named("zh=cmn_hans fr=fra_latn_fran es=spa_latn_spai")
_MMLU = _named("en ru de zh fr es it nl vi id ar ro uk sr hi bn ne te")

# Folder below --data-dir -> set.
SETS = {
    "m_arc": PublishedSet({lang: lang for lang in ("en", *OKAPI)}),
    "m_hellaswag": PublishedSet({lang: lang for lang in ("en", *OKAPI)}),
    "m_mmlu": PublishedSet({lang: lang for lang in ("en", *OKAPI)}),
    "m_truthfulqa": PublishedSet({lang: lang for lang in ("en", *OKAPI)}),
    "belebele": PublishedSet(_FLORES, {"test": ("{name}.jsonl", "data/{name}.jsonl")}),
    "xcopa": PublishedSet(
        _named("zh it vi id ta"),
        {
            "test": ("{lang}/test.{lang}.jsonl", "data/{lang}/test.{lang}.jsonl"),
            "validation": ("{lang}/val.{lang}.jsonl", "data/{lang}/val.{lang}.jsonl"),
        },
    ),
    "xstorycloze": PublishedSet(_named("en ru zh es id ar hi te")),
    "xnli": PublishedSet(_named("en ru de zh fr es vi ar hi")),
    "global_mmlu_full": PublishedSet(_MMLU),
    "global_mmlu": PublishedSet(_named("en de zh fr es it id ar hi bn")),
    "include": PublishedSet(
        _named(
            "ru=Russian de=German zh=Chinese fr=French es=Spanish it=Italian nl=Dutch vi=Vietnamese id=Indonesian "
            "ar=Arabic hu=Hungarian uk=Ukrainian sr=Serbian hr=Croatian hi=Hindi bn=Bengali ta=Tamil ne=Nepali "
            "ml=Malayalam te=Telugu"
        )
    ),
    "global_piqa_nonparallel": PublishedSet(_PIQA),
    "global_piqa_parallel": PublishedSet(_PIQA),
    "indicparam": PublishedSet(_named("ne=Nepali mr=Marathi"), {"test": ("test.jsonl", "test.json")}),
    # Other languages have files of the same fields from other authors.
    "crows_pairs": PublishedSet(_named("en=english fr=french"), {"test": ("crows_pairs_anonymized.csv",)}),
    # The languages whose files have both forms of a sentence. Danish, Dutch, Hungarian and English have neutral ones.
    "eurogest": PublishedSet(
        _named(
            "ru=Russian de=German fr=French es=Spanish it=Italian ro=Romanian sk=Slovak uk=Ukrainian ca=Catalan "
            "hr=Croatian"
        ),
        {"test": ("{name}.csv",)},
    ),
    # MultiBLiMP has one Serbo-Croatian.
    "multiblimp": PublishedSet(
        _named(
            "en=eng ru=rus de=deu fr=fra es=spa it=ita nl=nld ar=arb hu=hun ro=ron da=dan sk=slk uk=ukr ca=cat sr=hbs "
            "hr=hbs hi=hin bn=ben ta=tam mr=mar"
        )
    ),
}


def published_files(folder: str, lang: str, part: str) -> list[str]:
    """Return the set's own names for the file of a part in a language, relative to its folder; [] if it has none."""
    known = SETS.get(folder)
    if known is None or lang not in known.names:
        return []
    return [pattern.format(name=known.names[lang], lang=lang) for pattern in known.files.get(part, ())]
