r"""Split a value from its unit, percent or currency sign and number words.

Words from `\text{}` are marked (`marks.py`): `5\text{m}` has a unit, `5m` is a product.
"""

import re

from data.grading.marks import DOLLAR, TEXT_CLOSE, TEXT_OPEN

_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SPELLINGS = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "pound": "lb", "lbs": "lb", "second": "s", "sec": "s",
    "minute": "min", "hour": "h", "hr": "h", "liter": "l", "litre": "l", "milliliter": "ml", "degree": "deg",
    "radian": "rad", "dollar": "usd", "cent": "cent", "percent": "%", "unit": "", "euro": "eur", "newton": "n",
    "joule": "j", "watt": "w", "volt": "v", "kelvin": "k", "mole": "mol", "pascal": "pa", "hertz": "hz",
}  # fmt: skip
_SYMBOLS = (
    "m cm mm km dm nm s ms min h hr g kg mg l L ml mL N J kJ W kW V K Pa kPa Hz mol rad eV cal kcal ft in yd mi lb lbs "
    "oz mph atm bar"
).split()
"""Units after a value in \\mathrm{}. Elsewhere one letter is a unit only after a space or in a quotient."""
_SYMBOL = "|".join(sorted(_SYMBOLS, key=len, reverse=True))
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d+\s*\}|-?\d))?"
_MARKED = rf"{TEXT_OPEN}[^{TEXT_CLOSE}]*{TEXT_CLOSE}{_POWER}"
_MARKED_UNITS = re.compile(
    rf"\s*({_MARKED}(?:\s*(?:/|\\cdot(?![A-Za-z])|\*)?\s*(?:{_MARKED}|(?<=[/*])(?:{_SYMBOL})(?![A-Za-z]){_POWER}))*)$"
)
_QUOTIENT = re.compile(rf"(?<=[\d)}}.\]])\s+((?:{_SYMBOL}){_POWER}/(?:{_SYMBOL}){_POWER})$")
_WORDS = re.compile(r"(?<=[\d)}.\]])\s+([A-Za-z]{2,}(?:[ ./]+[A-Za-z]{2,}\.?)*\.?\s*(?:\^\{?-?\d\}?)?)$")
_JOINED = re.compile(
    r"(?<=[\d)}.\]])((?:cm|mm|km|kg|ft|in|mph|inches|degrees|dollars|cents|units?)\s*(?:\^\{?-?\d\}?)?)$"
)
_DEGREES = re.compile(rf"\s*\^\s*(?:\{{\s*\\circ\s*\}}|\\circ)\s*{TEXT_OPEN}?\s*([CF]?)\s*{TEXT_CLOSE}?\s*$")
_TRIGONOMETRIC = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_LEADING_TEXT = re.compile(rf"^\s*{TEXT_OPEN}[^{TEXT_CLOSE}]*{TEXT_CLOSE}\s*(?=.*[\d\\A-Za-z])")
_UNIT_TOKEN = re.compile(r"\^\s*\{?\s*(-?\d+)\s*\}?|([/()])|([^\W\d_]+|%)")
_SPACED_SYMBOL = re.compile(r"(-?(?:\d+\.?\d*|\.\d+))\s+([msghlLNJVWK])$")
_MATH_WORDS = set("sqrt pi sin cos tan cot sec csc log ln exp mod infinity arcsin arccos arctan binom or and".split())
_CURRENCIES = {DOLLAR: "usd", "£": "gbp", "€": "eur"}


def is_symbol_behind_value(content: str, before: str) -> bool:
    r"""Whether the content of a font command is a unit: a known symbol after a value, as in `3\mathrm{~m}`."""
    return content.strip(" ~") in _SYMBOLS and before.rstrip().endswith(
        (*"0123456789})/*", TEXT_CLOSE, "\\cdot", "\\circ")
    )


def is_mathematical_word(word: str) -> bool:
    """Whether a word is the name of a function or constant."""
    return word.lower() in _MATH_WORDS


def without_symbol(text: str) -> str | None:
    """The 2 of `2 s`, where the letter may be a unit or a variable; None for other texts."""
    match = _SPACED_SYMBOL.match(text)
    return match.group(1) if match else None


def split_unit(text: str) -> tuple[str, str, bool]:
    """A value, its unit in canonical spelling ("" without one), and whether it had a percent sign."""
    unit, percent = "", False
    text = _LEADING_TEXT.sub("", text).strip() or text
    if text[:1] in _CURRENCIES:
        text, unit = text[1:].strip(), _CURRENCIES[text[0]]
    text = text.replace(DOLLAR, "")
    for _ in range(2):
        if text.endswith("%"):
            text, percent = text[:-1].strip(), True
        elif (match := _DEGREES.search(text)) and not _TRIGONOMETRIC.search(text):
            text, unit = text[: match.start()].strip(), "deg" + match.group(1).lower()
        else:
            match = _MARKED_UNITS.search(text) or _QUOTIENT.search(text) or _WORDS.search(text) or _JOINED.search(text)
            if match is None:
                break
            words = match.group(1).replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ")
            bare = words.strip().lower()
            if not text[: match.start()].strip() or bare in _MATH_WORDS or {"squared", "cubed"} & set(bare.split()):
                break
            text, words = _scaled(text[: match.start()].strip(), words)
            unit = canonical_unit(words) or unit
    return (text, "", True) if unit == "%" else (text, unit, percent)


def _scaled(text: str, words: str) -> tuple[str, str]:
    """Multiply a value by the number words after it and return the other words: 5 million km is 5,000,000 km."""
    rest = []
    for word in words.split():
        if word.lower().rstrip("s.") in _SCALES:
            text = f"({text})*10^{{{_SCALES[word.lower().rstrip('s.')]}}}"
        elif word.lower().rstrip("s.") == "dozen":
            text = f"({text})*12"
        else:
            rest.append(word)
    return text, " ".join(rest)


def canonical_unit(words: str) -> str:
    """A unit in canonical spelling: cm, centimeter and centimeters are equal, and so are m/s and meters per second."""
    powers: dict[str, int] = {}
    sign, group_sign, next_power, last = 1, 1, 1, ""
    for token in _UNIT_TOKEN.finditer(words.replace("mph", "mi/h").replace(".", " ")):
        power, mark, word = token.groups()
        if power:
            if last:
                powers[last] += (int(power) - 1) * (1 if powers[last] > 0 else -1)
            continue
        if mark == "/" or (word and word.lower() == "per"):
            sign = -group_sign
        elif mark == "(":
            group_sign = sign
        elif mark == ")":
            group_sign = sign = 1
        elif word and word.lower() in ("square", "sq", "cubic", "cu"):
            next_power = 2 if word.lower().startswith("s") else 3
        elif word:
            last = _spelling(word)
            powers[last] = powers.get(last, 0) + sign * next_power
            sign, next_power = group_sign, 1
    return " ".join(f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items()) if name)


def _spelling(word: str) -> str:
    word = word.lower()
    stem = word[:-1] if word.endswith("s") and len(word) > 2 else word
    return _SPELLINGS.get(word, _SPELLINGS.get(stem, stem))
