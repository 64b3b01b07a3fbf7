"""The documentation is complete, and what it points to exists; `cog --check` holds its generated parts."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from trainplan.cli.main import COMMANDS, root
from trainplan.planner.ledger import Item

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda path: path.as_posix(),
)
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))
MEMORY_MODEL = ROOT / "docs" / "explanation" / "memory-model.md"
CODE = [path for folder in ("planner", "strategies", "cli") for path in sorted((ROOT / folder).rglob("*.py"))]

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
SECTION = re.compile(r"^#+ ([A-Z][0-9]?)\. ", re.MULTILINE)
CITED = re.compile(r"§([WOGAF][0-9]|D)\b")
GENERATED = re.compile(r"^\]\]\] -->$.*?^<!-- \[\[\[end\]\]\] -->$", re.MULTILINE | re.DOTALL)
GENERATOR = re.compile(r"^<!-- \[\[\[cog$.*?^\]\]\] -->$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"(?:^<!-- not run: .+ -->\n)?^```console$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SOURCE_FILE = re.compile(r"`((?:planner|strategies|cli|configs|tests|docs)/[\w./-]*\w)`")
MACHINE_PATHS = ("/work/", "/tmp/", "/root", "/home/")
ADR_HEADINGS = ["Context", "Decision", "Consequences", "Alternatives"]
LONGEST_ADR = 60  # lines: about a page


def name(path: Path) -> str:
    """A page by its place in the repository."""
    return path.relative_to(ROOT).as_posix()


def text(path: Path) -> str:
    """A page."""
    return path.read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without code and without what generates its parts."""
    return FENCED.sub("", GENERATOR.sub("", page))


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading.

    >>> anchor("D. What is never emitted, and why")
    'd-what-is-never-emitted-and-why'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands() -> list[str]:
    """Every command, with the subcommands of groups."""
    context = click.Context(root)
    found = []
    for command in COMMANDS:
        loaded = root.get_command(context, command)
        inner = list(loaded.commands) if isinstance(loaded, click.Group) else []
        found += [f"trainplan {command} {name}" for name in inner] or [f"trainplan {command}"]
    return found


@pytest.mark.parametrize("command", commands())
def test_every_command_is_documented(command: str) -> None:
    """Each command and subcommand occurs in a page as it is typed; the generated command reference does not count."""
    pages = [path for path in PAGES if path.name != "cli.md"]
    assert any(re.search(rf"{re.escape(command)}\b", text(path)) for path in pages)


@pytest.mark.parametrize("item", Item, ids=lambda item: item.name)
def test_every_line_of_a_ledger_has_its_section(item: Item) -> None:
    """What a report prints behind § is a heading of the memory model."""
    assert item.section in SECTION.findall(text(MEMORY_MODEL))


def test_every_section_the_code_cites_exists() -> None:
    """No docstring or message cites a section that the memory model does not have."""
    headings = set(SECTION.findall(text(MEMORY_MODEL)))
    cited = {section for path in CODE for section in CITED.findall(text(path))}
    assert cited
    assert cited - headings == set()


def test_sections_are_numbered_without_gaps() -> None:
    """W, O, G, A and F are each numbered from 1, in order, and no number is used twice."""
    found = [section for section in SECTION.findall(text(MEMORY_MODEL)) if len(section) == 2]
    for letter, count in {"W": 8, "O": 5, "G": 7, "A": 8, "F": 5}.items():
        assert [s for s in found if s[0] == letter] == [f"{letter}{number + 1}" for number in range(count)]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_resolve(path: Path) -> None:
    """A relative link leads to a file of the repository, and its anchor to a heading of that file."""
    for link in LINK.findall(prose(text(path))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, fragment = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(ROOT), link
        assert target.is_file(), link
        if fragment:
            assert fragment in {anchor(heading) for heading in HEADING.findall(text(target))}, link


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_named_in_prose_exist(path: Path) -> None:
    """A path of the repository between backticks is one."""
    for file in SOURCE_FILE.findall(prose(text(path))):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_console_blocks_are_run(path: Path) -> None:
    """A block of commands with their output was printed by the program, or says why it was not run."""
    for block in CONSOLE.findall(GENERATED.sub("", text(path))):
        assert block.startswith("<!-- not run: ")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_generated_parts_are_filled_and_whole(path: Path) -> None:
    """Every generator has its output; the program did not break, and every key it listed has a description."""
    page = text(path)
    parts = GENERATED.findall(page)
    assert len(parts) == len(GENERATOR.findall(page))
    for part in parts:
        assert len(part.splitlines()) > 2, "empty: run make docs"
        assert "internal error" not in part
        assert "UNDESCRIBED" not in part


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_page_names_a_machine(path: Path) -> None:
    """No page holds a path of the machine that it was written on."""
    assert [place for place in MACHINE_PATHS if place in text(path)] == []


def test_decisions_are_numbered() -> None:
    """Decisions are numbered from 0001 without gaps, and each is on the first page."""
    assert [path.name[:4] for path in ADRS] == [f"{number + 1:04}" for number in range(len(ADRS))]
    index = text(ROOT / "docs" / "index.md")
    assert [path.name for path in ADRS if f"adr/{path.name}" not in index] == []


@pytest.mark.parametrize("path", ADRS, ids=name)
def test_decisions_have_one_shape(path: Path) -> None:
    """A decision has a title with its number and four headings, and fits on a page."""
    title, *headings = HEADING.findall(text(path))
    assert title.startswith(path.name[:4])
    assert headings == ADR_HEADINGS
    assert len(text(path).splitlines()) <= LONGEST_ADR


def test_every_page_is_on_the_first_page() -> None:
    """docs/index.md links every page of the documentation."""
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(text(index))}
    assert [
        name(path) for path in PAGES if path.is_relative_to(index.parent) and path != index and path not in linked
    ] == []


def test_the_program_uses_the_names_of_its_page() -> None:
    """Variables and constraints of docs/explanation/integer-program.md are those of planner/program.py."""
    page, source = text(ROOT / "docs" / "explanation" / "integer-program.md"), text(ROOT / "planner" / "program.py")
    rows = re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE)
    written = {stem for row in rows for stem in re.findall(r"`(\w+)", row)}
    bounds = {f"{integer}_{end}" for integer in ("layers", "groups") for end in ("low", "high")}
    named = {"one_plan", "memory", "part", "budget", "deadline", "cut", "choose", "layers", "groups", "part_s"}
    assert named | bounds <= written
    for stem in named:
        assert re.search(rf'"{stem}["_]', source), stem
    for end in ("low", "high"):
        assert f'f"{{name}}_{end}"' in source
