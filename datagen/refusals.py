"""Refusals: answers in which a model says that it will not or cannot, in English and in our languages."""

from __future__ import annotations

import re

_ENGLISH = re.compile(
    r"\s*[\"'{]*\s*(?:i(?:['’]m| am) (?:very |really |so )?(?:sorry|afraid)|sorry,? (?:but )?i\b|my apologies"
    r"|i apologi[sz]e|i (?:can(?:no|['’])t|am (?:not able|unable)|won['’]t)\b|i['’]m (?:not able|unable)\b"
    r"|unfortunately,? i\b|as an? (?:ai|artificial|(?:large )?language model))",
    re.IGNORECASE,
)
# A text of a task may say so itself: then its translation may, too.
_SAID = re.compile(
    r"\b(?:sorry|apolog\w+|regret\w*|pardon|forgiv\w+|excuse|afraid|unfortunately|unable|cannot|can['’]?t|won['’]t"
    r"|as an? (?:ai|artificial|(?:large )?language model))\b",
    re.IGNORECASE,
)
# Language -> how an apology or a statement about oneself as a model begins.
_OPENINGS = {
    "ar": ("عذرا", "عذراً", "عذرًا", "آسف", "أعتذر", "كنموذج لغ", "بصفتي نموذج"),
    "bn": ("দুঃখিত", "আমি দুঃখিত", "ক্ষমা কর"),
    "ca": ("Ho sento", "Em sap greu", "Com a model de llengua"),
    "da": ("Beklager", "Jeg beklager", "Undskyld", "Som en AI", "Som sprogmodel"),
    "de": ("Es tut mir leid", "Tut mir leid", "Entschuldigung", "Als KI", "Als Sprachmodell"),
    "es": ("Lo siento", "Lo lamento", "Como modelo de lenguaje"),
    "fr": ("Je suis désolé", "Désolé", "Je m'excuse", "En tant que modèle de langage", "En tant qu'IA"),
    "hi": ("मुझे खेद है", "मुझे माफ़ कर", "मुझे माफ कर", "क्षमा कर", "माफ़ कर", "माफ कर"),
    "hr": ("Žao mi je", "Oprostite", "Ispričavam se", "Kao jezični model"),
    "hu": ("Sajnálom", "Elnézést", "Nyelvi modellként"),
    "id": ("Maaf", "Mohon maaf", "Sebagai model bahasa"),
    "it": ("Mi dispiace", "Mi spiace", "Come modello linguistico"),
    "kn": ("ಕ್ಷಮಿಸಿ",),
    "ml": ("ക്ഷമിക്കണം", "ക്ഷമിക്കുക"),
    "mr": ("माफ करा", "मला माफ करा", "क्षमस्व", "क्षमा करा"),
    "ne": ("माफ गर्नुहोस्", "माफ गर्नुहोला", "क्षमा गर्नुहोस्", "मलाई माफ"),
    "nl": ("Het spijt me", "Sorry", "Mijn excuses", "Als taalmodel"),
    "ro": ("Îmi pare rău", "Ne pare rău", "Îmi cer scuze", "Ca model de limb"),
    "ru": ("Извините", "Простите", "К сожалению, я", "Мне жаль", "Как языковая модель"),
    "sk": ("Prepáčte", "Je mi ľúto", "Ľutujem", "Ospravedlňujem sa", "Ako jazykový model"),
    "sr": ("Жао ми је", "Извините", "Опростите", "Извињавам се", "Као језички модел"),
    "ta": ("மன்னிக்கவும்", "மன்னிக்க வேண்டும்"),
    "te": ("క్షమించండి", "క్షమించాలి"),
    "uk": ("Вибачте", "Перепрошую", "На жаль, я", "Мені шкода", "Як мовна модель"),
    "vi": ("Xin lỗi", "Tôi xin lỗi", "Rất tiếc", "Tôi rất tiếc", "Là một mô hình ngôn ngữ"),
    "zh": ("抱歉", "很抱歉", "对不起", "非常抱歉", "作为一个语言模型", "作为一个AI", "作为AI"),
}


def is_refusal(text: str) -> bool:
    """A whole answer, in English or in any of our languages."""
    return bool(_ENGLISH.match(text)) or any(text.lstrip().startswith(openings) for openings in _OPENINGS.values())


def refused_part(source: str, target: str, lang: str) -> bool:
    """A translation that begins with a refusal which its source says nothing of."""
    if _SAID.search(source):
        return False
    return bool(_ENGLISH.match(target)) or target.lstrip().startswith(_OPENINGS.get(lang, ()) or ("\0",))
