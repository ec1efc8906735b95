"""Run all or the named notebooks of the gallery, and write their pictures for the documentation site."""

from __future__ import annotations

import sys
from pathlib import Path

from examples.gallery.running import notebooks, run

PICTURES = Path(__file__).parents[2] / "docs" / "images" / "gallery"


def main() -> None:
    known = notebooks()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or sorted(known):
        print(f"== {name}", flush=True)
        run(known[name]).quantize(128).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
