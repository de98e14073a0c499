"""A program of the command line: its help, its options, and what it does with the other words."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tem_taichi
from tem_taichi.cli.command import expand_home, guarded


@dataclass(frozen=True)
class Program:
    """What the programs differ in."""

    help: Callable[[], str]
    """what --help prints"""
    options: frozenset[str]
    """allowed beside --help, -h and --version"""
    work: Callable[[list[str], set[str]], None]
    """does what the words that are no options say, with the options that are there"""
    interrupted: str
    """what is said where it is stopped"""


def run_program(program: Program, arguments: Sequence[str] | None = None) -> int:
    """Run a program.

    Args:
        program: what to run.
        arguments: its words; None = those of the command line.

    Returns:
        The exit status, 2 for wrong input.
    """
    words = [expand_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    return guarded(lambda: _work(program, words), program.interrupted)


def _work(program: Program, words: list[str]) -> None:
    options = {word for word in words if word.startswith("-")}
    if odd := options - program.options - {"--help", "-h", "--version"}:
        raise ValueError(f"{min(odd)}: no such option; see --help")
    if options & {"--help", "-h"}:
        print(program.help(), end="")
    elif "--version" in options:
        print(f"tem_taichi {tem_taichi.__version__}")
    else:
        program.work([word for word in words if word not in options], options)
