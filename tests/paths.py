"""Where the tests find the repository's files."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RECIPES = ROOT / "recipes"
GOLDEN = ROOT / "tests" / "golden"
SMOKE = RECIPES / "pocket" / "smoke.yaml"
POCKET = RECIPES / "pocket" / "study.yaml"
