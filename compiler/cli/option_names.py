"""Error texts with command-line options in place of the API's argument names: `--samples` for `calibration=`."""

from __future__ import annotations

import re

_OPTIONS = {
    "budget": "--budget",
    "calibration": "--samples",
    "constants": "--constant",
    "decide": "--decide",
    "devices": "--device",
    "inputs": "--input",
    "keep_slower": "--keep-slower",
    "max_drop": "--max-drop",
    "method": "--method",
    "outputs": "--outputs",
    "passes": "--pass",
    "recipe": "--recipe",
    "records": "--records",
    "runs": "--runs",
    "sampler": "--sampler",
    "scheme": "--scheme",
    "shapes": "--shape",
    "sizes": "--sizes",
    "space": "--space",
    "storage": "--storage",
    "time_budget": "--time-budget",
    "tolerance": "--tolerance",
    "trials": "--trials",
}
_NAMES = "|".join(_OPTIONS)
# "passes= has", "trials=0", "calibration[0]", "sizes['n']", and "shapes: " where a message begins.
_ARGUMENT = re.compile(rf"(?<![\w.(,-])(?<!, )({_NAMES})(=|(?=\[)|(?=: ))(?P<value>[\w.'\"-]*)")


def with_option_names(text: str) -> str:
    """The text with options; calls of the API in it, such as compile(..., shapes=...), stay as they are."""

    def renamed(match: re.Match[str]) -> str:
        option, value = _OPTIONS[match[1]], match["value"]
        if match[2] == "=" and text[match.end() :][:1] in ("[", "{", "(") and not value:
            return match[0]  # a Python literal follows
        if not match[2] and text[match.end() : match.end() + 1] == ":" and match.start() > 0:
            return match[0]  # a word of the sentence
        return f"{option} {value}" if match[2] and value else option

    return _ARGUMENT.sub(renamed, text)
