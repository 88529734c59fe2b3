r"""Split a value from its unit, percent or currency sign and number words.

Words from `\text{}` are marked (`marks.py`): `5\text{m}` has a unit, `5m` is a product.
"""

import re

from data.grading.marks import DOLLAR, TEXT_CLOSE, TEXT_OPEN
from data.grading.values import is_number, size
from data.grading.words import MATH_WORDS, canonical_words, introduces, names_what_is_counted, part_of, spelled_number

_SCALES = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "millone": 6, "millón": 6, "millionen": 6,
    "milliard": 9, "milliarden": 9, "mil": 3, "mille": 3, "tausend": 3, "тысяч": 3, "тысячи": 3, "миллион": 6,
    "миллиона": 6, "миллионов": 6, "миллиард": 9, "миллиардов": 9,
}  # fmt: skip
_FACTORS_IN_WORDS = {word: f"10^{{{power}}}" for word, power in _SCALES.items()} | {"dozen": "12", "gro": "144"}
"""Without a final s."""
_CHINESE_SCALES = {"百": 2, "千": 3, "万": 4, "萬": 4, "亿": 8, "億": 8}
_CHINESE_SCALE = re.compile("[万萬亿億]|百(?![分帕])|千(?![克米瓦焦卡赫帕伏安升])")  # 千米 is a kilometre
_SPELLINGS = {
    "centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "pound": "lb", "lbs": "lb", "second": "s", "sec": "s",
    "minute": "min", "hour": "h", "hr": "h", "liter": "l", "litre": "l", "milliliter": "ml", "degree": "deg",
    "radian": "rad", "dollar": "usd", "cent": "cent", "percent": "%", "pct": "%", "unit": "", "euro": "eur",
    "newton": "n", "joule": "j", "watt": "w", "volt": "v", "kelvin": "k", "mole": "mol", "pascal": "pa", "hertz": "hz",
    "degcelsius": "degc", "degcelsiu": "degc",
    "degfahrenheit": "degf", "celsius": "degc", "celsiu": "degc", "fahrenheit": "degf",
}  # fmt: skip
_SYMBOL = (
    "[kMGTcdmnpµ]?(?:Hz|Pa|eV|mol|Nm|Wh|cal|bar|bit|[msgNJWVAFCTHKLl])|[kMGT]B|min|hr?|rad|ft|in|yd|mi|lbs?|oz|mph|atm"
    "|rpm|ppm|dB|ha"
)
"""Units after a value in \\mathrm{}. Elsewhere one letter is a unit only after a space or in a quotient."""
_UNIT_WORDS = frozenset(
    "unit year month week day century decade tonne ton ounce yen yuan baht bit byte knot acre gallon quart pint cup "
    "ampere amp ohm calorie lumen tesla farad henry coulomb light square cubic sq cu per long wide tall high deep old "
    "apart each".split()
)
"""Besides `_SPELLINGS`, what may follow a number in the singular."""
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d+\s*\}|-?\d))?"
_MARKED = rf"{TEXT_OPEN}[^{TEXT_CLOSE}]*{TEXT_CLOSE}{_POWER}"
_MARKED_UNITS = re.compile(
    rf"\s*({_MARKED}(?:\s*(?:/|\\cdot(?![A-Za-z])|\*)?\s*(?:{_MARKED}|(?<=[/*])(?:{_SYMBOL})(?![A-Za-z]){_POWER}))*)$"
)
_QUOTIENT = re.compile(rf"(?<=[\d)}}.\]])\s+((?:{_SYMBOL}){_POWER}/(?:{_SYMBOL}){_POWER})$")
_LETTERS = r"[^\W\d_]"
_WORDS = re.compile(
    rf"(?<=[\d)}}.\]])\s+({_LETTERS}{{2,}}(?:[ ./]+{_LETTERS}+\.?)*\.?\s*(?:\^\{{?-?\d\}}?)?"
    rf"|(?:sq|cu)\.\s*{_LETTERS}+)$"
)
_JOINED = re.compile(
    r"(?<=[\d)}.\]])((?:[^\x00-\x7f\W\d_]+|cm|mm|km|kg|ft|in|mph|inches|degrees|dollars|cents|units?)\s*(?:\^\{?-?\d\}?)?)$"
)
_DEGREES = re.compile(rf"\s*\^\s*(?:\{{\s*\\circ\s*\}}|\\circ)\s*{TEXT_OPEN}?\s*([CF]?)\s*{TEXT_CLOSE}?\s*$")
_TRIGONOMETRIC = re.compile(r"(?:sin|cos|tan|cot|sec|csc|cis|c?tg)(?![a-z])")
_INTRODUCTION = re.compile(
    rf"\s*(?:{TEXT_OPEN}([^{TEXT_CLOSE}\d]*){TEXT_CLOSE}"
    rf"|([A-Za-z][A-Za-z ']*(?:\s(?:is|are|equals)|:)|[^\x00-\x7f\W\d_]+[是为:]))\s*"
    rf"(?=.*[\d\\A-Za-z])"
)
_MARKED_SIGN = re.compile(rf"\s*{TEXT_OPEN}\s*([A-Za-z]+)\s*{TEXT_CLOSE}\s*(?=[\d.\\])")
_OHM = re.compile(r"(?<=[\d)}])\s*\\Omega$")
_HALF_OF_DAY = re.compile(r"[ap]\.?\s?m\.?$|noon$|midnight$", re.IGNORECASE)
_UNIT_SIGNS = re.compile(rf"(?:(?<![A-Za-z])(?:{_SYMBOL}|sq|cu)(?![A-Za-z])|[kM]?\\Omega|%|[/*.^{{}}() \d-]|\\cdot)+")
_UNIT_TOKEN = re.compile(r"\^\s*\{?\s*(-?\d+)\s*\}?|([/()])|([^\W\d_]+|%)")
_SPACED_SYMBOL = re.compile(rf"(-?(?:\d+\.?\d*|\.\d+))\s+([msghlLNJVWK]{_POWER})$")
_CURRENCIES = {
    DOLLAR: "usd", "£": "gbp", "€": "eur", "¥": "yen", "₹": "inr", "rs": "inr", "usd": "usd", "us" + DOLLAR: "usd",
    "eur": "eur", "gbp": "gbp", "cny": "yuan", "rmb": "yuan",
}  # fmt: skip
_CURRENCY = re.compile(
    rf"([+-]?)\s*((?:{TEXT_OPEN}\s*)?(?:[{DOLLAR}£€¥₹]|(?:Rs\.?|USD|US{DOLLAR}|EUR|GBP|CNY|RMB)(?=[\s{TEXT_CLOSE}\d]))"
    rf"\s*{TEXT_CLOSE}?)\s*(?=[-\d.])"
)


def is_symbol_behind_value(content: str, before: str) -> bool:
    r"""Whether the content of a font command is a unit: known symbols after a value, as in `3\mathrm{~m}`."""
    bare = content.strip(" ~").replace("~", " ")
    return (
        _UNIT_SIGNS.fullmatch(bare) is not None
        and re.search("[A-Za-z]", bare) is not None
        and before.rstrip().endswith((*"0123456789})/*", TEXT_CLOSE, "\\cdot", "\\circ", "\\mu"))
    )


def spaced_symbol(text: str) -> tuple[str, str] | None:
    """The 2 and the unit of `2 s`, where the letter may be a unit or a variable; None for other texts."""
    match = _SPACED_SYMBOL.match(text)
    return (match.group(1), canonical_unit(match.group(2))) if match else None


def split_unit(text: str) -> tuple[str, str, bool]:
    """A value, its unit in canonical spelling ("" without one), and whether it had a percent sign.

    Words that say more than what is counted or measured stay with the value, which can then not be read as a number.
    """
    text, unit = _without_introduction(text)
    percent = False
    for _ in range(3):
        if text.endswith("%"):
            text, percent = text[:-1].strip(), True
        elif text[-1:] in _CURRENCIES and len(text) > 1:
            text, unit = text[:-1].strip(), _CURRENCIES[text[-1]]
        elif (match := _DEGREES.search(text)) and not _TRIGONOMETRIC.search(text):
            text, unit = text[: match.start()].strip(), "deg" + match.group(1).lower()
        elif match := _OHM.search(text):
            text, unit = text[: match.start()].strip(), "ohm"
        elif match := _first_match(text):
            rest = text[: match.start()].strip()
            words = match.group(1).replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip()
            if not rest or words.lower() in MATH_WORDS or re.fullmatch("d[a-z]", words):  # of an integral
                break
            if _HALF_OF_DAY.match(words):
                half = {"noon": "pm", "midnight": "am"}.get(words.lower(), re.sub(r"[.\s]", "", words.lower()))
                return (f"{rest}:00" if rest.isdigit() else rest), half, percent
            text, words = _scaled(rest, words)
            # "n prime" says what n is; "5 apples" and "5 primes" count.
            known = all(_is_unit(word) for word in re.split(r"[\s-]+", words) if word)
            counts = names_what_is_counted(words, known or size(text) <= 1) and (known or is_number(text))
            if (spelled := spelled_number(canonical_words(words))) is not None:  # 5 (five)
                counts, words = spelled == text, words if spelled != text else ""
            if words and not _UNIT_SIGNS.fullmatch(words) and not counts:
                return f"{rest} {TEXT_OPEN}{words}{TEXT_CLOSE}", "", False
            unit = canonical_unit(words) or unit
        else:
            break
    return (text, "", True) if unit == "%" else (text, unit, percent)


def _is_unit(word: str) -> bool:
    """Whether a word of several letters is a unit, a quotient of units, or goes with one."""
    names = re.split(r"[ ^]", canonical_unit(word)) if len(word) > 1 else []
    return word.casefold() in _UNIT_WORDS or any(name in _SPELLINGS.values() for name in names if name)


def _first_match(text: str) -> re.Match[str] | None:
    if text[-1:].isdigit() and "^" not in text:
        return None  # the common case: no unit ends so
    patterns = (_MARKED_UNITS, _QUOTIENT, _WORDS, _JOINED)
    return next((match for pattern in patterns if (match := pattern.search(text))), None)


def _without_introduction(text: str) -> tuple[str, str]:
    """A text without what only introduces its value, and the currency in front of it ("" without one)."""
    unit = ""
    for _ in range(3):
        if (match := _INTRODUCTION.match(text)) and introduces(match.group(1) or match.group(2) or ""):
            text = text[match.end() :]
        elif (match := _MARKED_SIGN.match(text)) and match.group(1).casefold() in ("minus", "negative"):
            text = "-" + text[match.end() :]
        elif match := _CURRENCY.match(text):
            unit = _CURRENCIES[match.group(2).strip(f"{TEXT_OPEN}{TEXT_CLOSE} .").casefold()]
            text = match.group(1) + text[match.end() :]
    return text.strip(), unit


def _scaled(text: str, words: str) -> tuple[str, str]:
    """Multiply a value by the number words after it and return the other words: 5 million km is 5,000,000 km."""
    rest: list[str] = []
    while scale := _CHINESE_SCALE.match(words):
        text, words = f"({text})*10^{{{_CHINESE_SCALES[scale.group()]}}}", words[1:]
    for word in words.split():
        if factor := _FACTORS_IN_WORDS.get(word.lower().rstrip("s.")):
            text = f"({text})*{factor}"
        elif (divisor := part_of(word)) and not rest:
            text = f"({text})/{divisor}"
        else:
            rest.append(word)
    return text, " ".join(rest)


def canonical_unit(words: str) -> str:
    """A unit in canonical spelling: cm, centimeter and centimeters are equal, and so are m/s and meters per second."""
    powers: dict[str, int] = {}
    sign, group_sign, next_power, last = 1, 1, 1, ""
    for token in _UNIT_TOKEN.finditer(
        re.sub(r"\bkm?ph\b", "km/h", re.sub(r"\bdegrees? (?=[CcFf])", "deg", re.sub(r"\bper cent\b", "%", words)))
        .replace("mph", "mi/h")
        .replace(".", " ")
        .replace("\\cdot", " ")
    ):
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
    if re.fullmatch(rf"M(?:{_SYMBOL})", word):
        return "M" + word[1:].lower()  # a megawatt is no milliwatt
    word = word.lower()
    stem = word[:-1] if word.endswith("s") and len(word) > 2 else word
    return _SPELLINGS.get(word, _SPELLINGS.get(stem, stem))


_FACTORS = {
    "length": {"nm": "1e-9", "mm": "1e-3", "cm": "1e-2", "dm": "1e-1", "m": "1", "km": "1e3"},
    "imperial length": {"in": "1", "ft": "12", "yd": "36", "mi": "63360"},
    "mass": {"mg": "1e-3", "g": "1", "kg": "1e3"},
    "time": {"ms": "1e-3", "s": "1", "min": "60", "h": "3600", "day": "86400"},
    "volume": {"ml": "1e-3", "l": "1"},
    "money": {"cent": "1", "usd": "100"},
}


def converted(unit: str, other: str) -> str | None:
    """The factor from one unit to another as a formula; None if they do not measure the same."""
    (name, _, power), (other_name, _, other_power) = unit.partition("^"), other.partition("^")
    for factors in _FACTORS.values():
        if name in factors and other_name in factors and power == other_power:
            return f"(({factors[name]})/({factors[other_name]}))^{{{power or 1}}}"
    return None
