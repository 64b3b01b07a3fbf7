"""JSON with comments and trailing commas, each value with its place in the text, so that edits leave the rest alone.

Source:
    DeepSpeed 0.19.8 runtime/config.py reads files with hjson, which is wider still (keys and strings without quotes);
    accelerate 1.15.0 utils/deepspeed.py reads them with json.load, which takes neither comments nor trailing commas.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

DEEPEST = 32  # levels of nesting; DeepSpeed's own sections have four
MOST_KEYS = 500  # of all objects; DeepSpeed knows some 250
BLANK = re.compile(r"(?:[\s,]|#[^\n]*|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
COMMENT = re.compile(r"#[^\n]*|//[^\n]*|/\*.*?\*/", re.DOTALL)
SCALAR = re.compile(r"[^\s,\]\}\[\{:#]+")
STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
WORDS = {"true": True, "false": False, "null": None}


class SyntaxProblem(Exception):
    """Where the text stops being JSON with comments."""


class TooManyKeys(Exception):
    """More keys than any configuration has: each would be judged and priced."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands.

    ``members`` of an object are (key, start of the key, node); of an array (index, start, node).
    """

    value: Any
    start: int
    end: int
    members: tuple[tuple[str, int, Node], ...] = ()


@dataclass(slots=True)
class _Reader:
    text: str
    duplicates: list[str] = field(default_factory=list)
    keys: int = 0

    def blank(self, at: int) -> int:
        """Past spaces, commas and comments."""
        found = BLANK.match(self.text, at)
        return found.end() if found else at

    def next(self, at: int, closing: str) -> int:
        """Past the comma, or the end of the line, which hjson takes for one."""
        here = self.blank(at)
        between = COMMENT.sub("", self.text[at:here])
        commas, last = between.count(","), self.text[here : here + 1] == closing
        if commas > 1 or (not commas and not last and "\n" not in self.text[at:here]):
            raise self.fail(at, f"one comma or {closing} is needed")
        return here

    def fail(self, at: int, what: str) -> SyntaxProblem:
        """The problem, with line and column."""
        line, last = self.text.count("\n", 0, at) + 1, self.text.rfind("\n", 0, at)
        return SyntaxProblem(f"line {line} column {at - last}: {what}")

    def value(self, at: int, path: str, depth: int) -> Node:
        """One value of any kind."""
        if depth > DEEPEST:
            raise self.fail(at, f"nested deeper than {DEEPEST} levels")
        first = self.text[at : at + 1]
        if first == "{":
            return self.object(at, path, depth)
        if first == "[":
            return self.array(at, path, depth)
        return self.scalar(at)

    def scalar(self, at: int) -> Node:
        """A string, a number, true, false or null."""
        if found := STRING.match(self.text, at):
            try:
                return Node(json.loads(found.group()), at, found.end())
            except ValueError:
                raise self.fail(at, "a string with an unknown escape") from None
        word = found.group() if (found := SCALAR.match(self.text, at)) else ""
        if word in WORDS:
            return Node(WORDS[word], at, at + len(word))
        if not NUMBER.fullmatch(word):
            shown = word[:40] or self.text[at : at + 1] or "the end of the file"
            raise self.fail(at, f"no JSON value, got {shown}; numbers, true, false, null and quoted strings are")
        try:
            return Node(json.loads(word), at, at + len(word))
        except ValueError:  # Python turns no more than 4,300 digits into a whole number
            raise self.fail(at, f"a number of {len(word):,} characters, got {word[:20]}...") from None

    def object(self, at: int, path: str, depth: int) -> Node:
        """Members between braces; a key that stands twice is noted."""
        members: list[tuple[str, int, Node]] = []
        here = self.blank(at + 1)
        while self.text[here : here + 1] != "}":
            self.keys += 1
            if self.keys > MOST_KEYS:
                raise TooManyKeys(f"more than {MOST_KEYS:,} keys")
            key = self.scalar(here) if self.text[here : here + 1] == '"' else None
            if key is None:
                raise self.fail(here, f"a quoted key or }} is needed, got {self.text[here : here + 10]!r}")
            colon = self.blank(key.end)
            if self.text[colon : colon + 1] != ":":
                raise self.fail(colon, f"a colon is needed after {key.value!r}"[:80])
            inner = f"{path}.{key.value}" if path else str(key.value)
            if any(name == key.value for name, _, _ in members):
                self.duplicates.append(inner)
            node = self.value(self.blank(colon + 1), inner, depth + 1)
            members.append((key.value, here, node))
            here = self.next(node.end, "}")
        return Node({name: node.value for name, _, node in members}, at, here + 1, tuple(members))

    def array(self, at: int, path: str, depth: int) -> Node:
        """Values between brackets."""
        members: list[tuple[str, int, Node]] = []
        here = self.blank(at + 1)
        while self.text[here : here + 1] != "]":
            node = self.value(here, f"{path}[{len(members)}]", depth + 1)
            members.append((str(len(members)), here, node))
            here = self.next(node.end, "]")
        return Node([node.value for _, _, node in members], at, here + 1, tuple(members))


def parse(text: str) -> tuple[Node, tuple[str, ...]]:
    """The whole text, and the paths of keys that stand twice.

    Raises:
        SyntaxProblem: no JSON, even with comments.
        TooManyKeys: no configuration of DeepSpeed's.

    >>> parse('{"bf16": {"enabled": true}, // as the card can\\n}')[0].value
    {'bf16': {'enabled': True}}
    >>> parse('{"a": 1, "a": 2}')[1]
    ('a',)
    """
    reader = _Reader(text)
    root = reader.value(reader.blank(0), "", 0)
    rest = reader.blank(root.end)
    if rest < len(text):
        raise reader.fail(rest, f"more than one value, got {text[rest : rest + 20]!r}")
    return root, tuple(dict.fromkeys(reader.duplicates))


def is_strict(text: str) -> bool:
    """Whether Python's json, and so accelerate, reads it."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def find(root: Node, path: str) -> Node | None:
    """The node of a dotted path.

    >>> find(parse('{"a": {"b": 5}}')[0], "a.b").value
    5
    """
    node = root
    for name in path.split("."):
        inner = [child for key, _, child in node.members if key == name and isinstance(node.value, dict)]
        if not inner:
            return None
        node = inner[-1]
    return node
