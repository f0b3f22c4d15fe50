"""A table of texts as text, markdown, LaTeX or CSV."""

import re
from typing import NamedTuple

import pandas as pd

from utils.escapes import in_a_cell

FORMS = ("text", "markdown", "latex", "csv")
TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "+-": r"$\pm$",
    ">": "$>$",
}


class Block(NamedTuple):
    """A table with what stands above and below it; ``noise``: "" if the columns name it."""

    title: str
    noise: str
    table: pd.DataFrame
    notes: list[str]
    numbers: str = "mean +- standard deviation over n seeds (ddof 1)"


def render_blocks(blocks: list[Block], form: str) -> str:
    """All of them one below the other; as CSV, one table without the notes."""
    if form == "csv":
        parts = [block.table.assign(dataset=block.title, noise=block.noise) for block in blocks]
        return render(pd.concat(parts), form)
    return "\n".join(_block(block, form) for block in blocks)


def _block(block: Block, form: str) -> str:
    noise = f", noise {block.noise}" if block.noise else ""
    title, table = f"{block.title}{noise}, {block.numbers}", render(block.table, form)
    if form == "text":
        return f"{title}\n{table}" + "".join(f"{note}\n" for note in block.notes)
    if form == "markdown":
        notes = "".join(f"\n* {_markdown(note)}" for note in block.notes)
        return f"{_markdown(title)}:\n\n{table}{notes}" + ("\n" if notes else "")
    lines = [r"\begin{table}", rf"\caption{{{_tex(title)}}}", table + r"\end{table}"]
    return "".join(f"{line}\n" for line in [*lines, *(f"% {note}" for note in block.notes)])


def render(table: pd.DataFrame, form: str) -> str:
    """A table of texts in one of FORMS; LaTeX's needs booktabs."""
    if form == "csv":
        table = table.map(lambda cell: in_a_cell(cell) if isinstance(cell, str) else cell)
        return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if form == "text":
        return table.to_string(index=False) + "\n"
    head, rows = list(table), table.to_numpy().tolist()
    if form == "markdown":
        lines = [head, ["---"] * len(head), *rows]
        cells = ([_markdown(cell).replace("|", "\\|") for cell in line] for line in lines)
        return "".join(f"| {' | '.join(line)} |\n" for line in cells)
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in (head, *rows)]
    begin = rf"\begin{{tabular}}{{{'l' * len(head)}}}"
    lines = [begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    return "".join(f"{line}\n" for line in [*lines, r"\end{tabular}"])


def _markdown(text) -> str:
    """A text that is no HTML, and no marker of a table."""
    return str(text).replace("<", "&lt;")


def _tex(text) -> str:
    """A text as LaTeX prints it.

    A leading bracket would be taken for an argument of the line before.
    """
    special = re.compile(r"\+-|[\\~^&%$#_{}>]")
    escaped = special.sub(lambda match: TEX.get(match[0], f"\\{match[0]}"), str(text))
    return "{}" + escaped if escaped.startswith("[") else escaped
