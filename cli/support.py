"""`trainplan support`: what can be combined, in which versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from .complete import support_names

if TYPE_CHECKING:
    from ..planner.compatibility import Answer, Versions

REFUSED = 3


@click.command(name="support")
@click.argument("names", nargs=-1, shell_complete=support_names)
@click.option(
    "--with", "given", multiple=True, metavar="PACKAGE=VERSION", help="A version other than the pinned one; repeatable."
)
@click.option("--installed", is_flag=True, help="The versions installed here, instead of the pinned ones.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(names: tuple[str, ...], given: tuple[str, ...], installed: bool, as_json: bool) -> int:
    """Say what can be combined, in which versions, with the source of every answer.

    NAMES are one combination: strategies as --require knows them, methods, and features such as moe. Without a ZeRO
    stage the answer is for all four. Without NAMES the whole matrix is printed. Refused exits with 3.

    \b
    everything:           trainplan support
    one combination:      trainplan support zero-3 qlora offload-optimizer-cpu
    in other versions:    trainplan support zero-3 qlora --with bitsandbytes=0.42
    """
    versions = _versions(given, installed)
    if names:
        return _answer(names, versions, as_json)
    _matrix(versions, as_json)
    return 0


def _versions(given: tuple[str, ...], installed: bool) -> Versions:
    """The pinned or installed versions, with those that were given in their place."""
    from ..planner import compatibility

    base = compatibility.installed() if installed else compatibility.pinned()
    return {**base, **compatibility.given(given)}


def _matrix(versions: Versions, as_json: bool) -> None:
    import json

    from ..api.supporting import support_matrix
    from ..planner.report.support_text import matrix_document, matrix_text

    lines = support_matrix(versions=versions)
    click.echo(json.dumps(matrix_document(lines, versions), indent=2) if as_json else matrix_text(lines, versions))


def _answer(names: tuple[str, ...], versions: Versions, as_json: bool) -> int:
    import json

    from ..api.supporting import support
    from ..planner.report.support_text import answer_document, answer_text, versions_text

    answers = support(names, versions=versions)
    named = [(_name(names, answer, alone=len(answers) == 1), answer) for answer in answers]
    if as_json:
        document = {
            "schema_version": 1,
            "versions": dict(versions),
            "answers": [answer_document(*one) for one in named],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo("\n".join([versions_text(versions), *(answer_text(*one) for one in named)]))
    return 0 if any(answer.legal for answer in answers) else REFUSED


def _name(names: tuple[str, ...], answer: Answer, *, alone: bool) -> str:
    """The combination as it was typed, with its stage."""
    return " ".join(names if alone else (f"zero-{answer.facts['zero_stage']}", *names))
