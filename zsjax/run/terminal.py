"""Conversations on a terminal: questions to a policy, and games of a person in the policy's place.

Both read lines until the input ends, so that a pipe can play, too.
"""

import json
from collections.abc import Iterator

import numpy as np

from zsjax.errors import UserError, printable
from zsjax.report.charts import short
from zsjax.report.console import TERMINAL_STYLES, print_result
from zsjax.run.ask import Asker
from zsjax.run.play import Game, Table, read_action

HELP = "Type a query to search, = and a text to answer, q to stop. Tags work, too: <search> ... </search>"


def converse(asker: Asker, console, *, as_json: bool = False):
    """Answers one question after the other until the input ends, or q.

    console: a `rich.console.Console`, which is read from, too. as_json: prints a record a line, without any prompt.
    """
    if not as_json:
        console.print("Ask a question; q stops.")
    for line in _lines(console, "" if as_json else "\n? "):
        if line.lower() in ("q", "quit", "exit"):
            return
        if not line:
            continue
        try:
            record = asker(line)
        except UserError as error:  # of this question: the next one may fit
            console.print(f"error: {error}", markup=False)
            continue
        if as_json:
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            print_result(record, console)


def play_games(table: Table, console) -> list[Game]:
    """Plays games until the input ends, or q; the games that were answered.

    console: a `rich.console.Console`, which is read from, too.
    """
    games, guessed = [], []
    console.print(HELP, markup=False, soft_wrap=True)
    lines = _lines(console, "")
    while _play(game := table.deal(), console, lines):
        games.append(game)
        if game.hidden:
            guessed.append(_guess(game, console, lines))
        _reveal(game, console)
        if _ask(console, lines, "\nEnter: another question, q: stop ") in (None, "q", "quit", "exit"):
            break
    if games:
        means = {name: np.mean([game.scores()[name] for game in games]) for name in games[0].scores()}
        right = [guess for guess in guessed if guess is not None]
        console.print(f"\n{len(games)} answered: " + "  ".join(f"{name} {mean:.2f}" for name, mean in means.items())
                      + (f"   the real engine found in {sum(right)} of {len(right)}" if right else ""))
    return games


def _lines(console, prompt: str) -> Iterator[str]:
    """What is typed, line by line, stripped."""
    while True:
        try:
            yield console.input(prompt, markup=False).strip()
        except EOFError:
            return


def _ask(console, lines, prompt) -> str | None:
    """The next line; None at the end of the input."""
    console.print(prompt, end="", markup=False)
    line = next(lines, None)
    if line is None or not console.is_terminal:
        console.print()  # nobody's Enter has ended the line
    return line


def _play(game, console, lines) -> bool:
    """Plays a game to its answer. False where the person stops before."""
    from rich.text import Text

    console.print(Text(f"\n{printable(game.question.question)}", style="bold"), soft_wrap=True)
    while game.answer is None:
        left = game.searches_left
        line = _ask(console, lines, f"{left} of {game.searches} searches left> " if left else "no search left, answer> ")
        if line is None:
            return False
        kind, text = read_action(line)
        if kind == "quit":
            return False
        if kind == "answer":
            game.answer = text
        elif kind == "search" and left:
            _show(game, game.search(text), console)
        else:
            text = "No search is left: type = and your answer." if kind == "search" else HELP
            console.print(text, markup=False, soft_wrap=True)
    return True


def _show(game, replies, console):
    """Prints documents, those of two engines side by side. Noise is shown where it does not tell the engines apart."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, padding=(0, 2, 0, 0), show_header=game.hidden)
    for side in replies:
        grid.add_column(side, ratio=1, overflow="fold")
    cells = []
    for reply in replies.values():
        text = Text()
        if reply.noisy and not game.hidden:
            text.append("[noisy]\n", style=TERMINAL_STYLES["noisy"])
        nothing = "the search failed" if reply.failed else "nothing was found"
        text.append(printable("\n".join(reply.documents) or nothing), style=TERMINAL_STYLES["document"])
        cells.append(text)
    grid.add_row(*cells)
    console.print(grid)


def _guess(game, console, lines) -> bool | None:
    """Whether the person knows the real engine; None where nothing was seen or said."""
    if not game.replies:
        return None
    guess = _ask(console, lines, "Which one is real, A or B? ")
    side = (guess or "").upper()
    return game.sides[side].is_real if side in game.sides else None


def _reveal(game, console):
    scores = "  ".join(f"{name} {short(value)}" for name, value in game.scores().items())
    golds = printable(" / ".join(game.question.golden_answers))
    console.print(f"gold: {golds}   {scores}", markup=False, soft_wrap=True)
    if game.hidden:
        names = "   ".join(f"{side}: {opponent.name}" for side, opponent in game.sides.items())
        noise = [f"search {number} of {side} was noisy" for number, replies in enumerate(game.replies, 1)
                 for side, reply in replies.items() if reply.noisy]
        console.print(", ".join([names, *noise]), markup=False, soft_wrap=True)
