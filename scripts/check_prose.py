"""Find words that CONTRIBUTING.md bans, in code, comments, docstrings and docs; `make style` runs it.

A line that quotes somebody else's text ends with `# quoted`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (".github", "benchmarks", "docs", "examples", "scripts", "src", "tests")
SUFFIXES = {".cff", ".html", ".md", ".py", ".sql", ".toml", ".yaml", ".yml"}
LISTS = ("check_prose.py", "test_prose.py")  # which contain the words
BANNED = {
    # pattern (words as they are written, or regular expressions): what to write instead
    r"shall": "must, or an imperative",
    r"whoever|whomever|whom|those who|nobody": "the thing or the role: the caller, the request, no client",
    r"told|heard": "the fact: printed, logged, received, encoded",
    r"tell(?:s|ing)? (?:of|it|them|him|her|so|the|a|an|whether|what|how|who|when)": "say, report, return, distinguish",
    r"what (?:came|comes)": "the response, the chunk, the input",
    r"anew": "again",
    r"for ever": "forever, without end",
    r"mend(?:s|ed|ing)?": "fix",
    r"befall(?:s|en)?|befell": "happen to",
    r"beside": "next to, besides",
    r"(?<!there )(?<!it )is no(?! longer| more than|-)|(?-i:(?<!there )is none)|are none": "is not a",
    r"left away": "omitted",
    r"(?<!so )that one(?=[.,;:)]|$| (?:is|was|has|can|would|does))": "the noun",
    r"aright|hitherto|thereby|hence|lest": "a plain conjunction",
    r"the like|be it that|of one's|one's own": "plain words",
    r"to-?day's": "current",
    r"patience": "timeout",
    r"strange(?:rs?)?(?! answer)": "foreign, unknown, invalid",
    r"twins?": "duplicate",
    # metaphors, for which the field has a term
    r"desks?": "queue",
    r"stations?": "worker slot",
    r"guests?": "attempt",
    r"shel(?:f|ves)": "library",
    r"the house": "the source, the package, the server",
    r"(?<!round )(?<!round-)trips?": "transfer",
    r"turns?(?= of\b)": "request",
    r"news(?! codes)": "events",
    # spelling
    r"behaviours?|colours?|favours?|honours?|neighbours?|grey|licences?|centres?|catalogues?": "American spelling",
    r"(?:normal|optim|organ|quant|recogn|serial|summar|synthes|tun)is(?:e|es|ed|ing|ation)": "-ize",
}
RULES = [(re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", re.I), say) for pattern, say in BANNED.items()]


def find(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, the banned words and the advice for each match; names are read as words."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.rstrip().endswith("# quoted"):
            continue
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", line)
        for rule, say in RULES:
            for match in rule.finditer(words):
                yield number, match[0], say


def main() -> None:
    files = [*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / "mkdocs.yml"]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    n_found = 0
    for path in sorted(files):
        name = path.relative_to(ROOT)
        text = "" if path.name in LISTS else path.read_text("utf-8")
        for number, words, say in [*((0, found, say) for _, found, say in find(str(name))), *find(text)]:
            n_found += 1
            print(f"{name}:{number}: {words!r}: write {say}")
    sys.exit(f"{n_found} banned words" if n_found else 0)


if __name__ == "__main__":
    main()
