r"""Private-use characters that stand for LaTeX notation while an answer is parsed.

They keep apart what plain characters would merge: `\text{m}` is a unit and `m` a variable, `\{` opens a set and `{` a
group, `\\` ends a matrix row and `\` starts a command. `undress` in `notation.py` writes them, `plain` removes them.
"""

TEXT_OPEN, TEXT_CLOSE = "\ue000", "\ue001"  # around the words of \text{}
SET_OPEN, SET_CLOSE = "\ue002", "\ue003"  # \{ and \}
DOLLAR = "\ue004"  # \$, the currency sign
ROW_END = "\ue005"  # \\
