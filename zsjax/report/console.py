"""Episodes on a terminal, coloured by role."""

from collections.abc import Mapping

from zsjax.errors import printable
from zsjax.report.page import noisy_segments

TERMINAL_STYLES = {"prompt": "dim", "policy": "bold blue", "document": "yellow", "template": "dim magenta",
                   "noisy": "bold red"}


def show_episode(record: Mapping, console=None):
    """Prints one trajectory (`zsjax.rollout.transcript.records`) on a terminal, coloured by role."""
    show = episode_printer(console)
    for segment, noisy in zip(record["segments"], noisy_segments(record), strict=True):
        if noisy:
            show("noisy", "[noisy] ")
        show(segment["role"], segment["text"])
    print_result(record, console)


def episode_printer(console=None):
    """show(role, text), which prints the pieces of an episode one after the other, coloured by role."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    return lambda role, text: console.print(Text(printable(text), style=TERMINAL_STYLES.get(role, "")), soft_wrap=True,
                                            end="")


def print_result(record: Mapping, console=None):
    """Prints the colours' legend and the outcome of an episode."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    legend = Text("\n")
    for role, style in list(TERMINAL_STYLES.items())[:4]:
        legend.append(f" {role} ", style=style)
    console.print(legend)
    failed = "".join(f"   search {status}" for status in record.get("search_status", ())
                     if status in ("failed", "empty", "short"))
    console.print(Text(printable(f"answer: {record['answer']}   status: {record['status']}   "
                                 f"searches: {record['num_searches']}{failed}")), soft_wrap=True)
