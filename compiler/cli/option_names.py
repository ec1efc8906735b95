"""Error texts with command-line options in place of the API's argument names: `--samples` for `calibration=`."""

from __future__ import annotations

import re

_OPTIONS = {
    "at": "--at",
    "budget": "--budget",
    "calibration": "--samples",
    "capacity": "--capacity",
    "constants": "--constant",
    "decide": "--decide",
    "devices": "--device",
    "extra": "--extra-words",
    "feeds": "--feeds",
    "group": "--group",
    "inputs": "--input",
    "keep_slower": "--keep-slower",
    "max_drop": "--max-drop",
    "max_false_hits": "--max-false-hits",
    "measure": "--measure",
    "memory_limit": "--sram",
    "method": "--method",
    "output": "--scored-output",
    "outputs": "--outputs",
    "passes": "--pass",
    "recipe": "--recipe",
    "records": "--records",
    "reference": "--with",
    "runs": "--runs",
    "sampler": "--sampler",
    "scheme": "--scheme",
    "seconds": "--seconds",
    "shapes": "--shape",
    "sizes": "--sizes",
    "space": "--space",
    "state": "--state",
    "storage": "--storage",
    "time_budget": "--time-budget",
    "tolerance": "--tolerance",
    "trials": "--trials",
}
_NAMES = "|".join(_OPTIONS)
# "passes= has", "trials=0", "calibration[0]", "sizes['n']", and "shapes: " where a message begins.
_IN_PARENTHESES = re.compile(rf"\(({_NAMES})=\)")
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

    return _ARGUMENT.sub(renamed, _IN_PARENTHESES.sub(lambda match: f"({_OPTIONS[match[1]]})", text))
