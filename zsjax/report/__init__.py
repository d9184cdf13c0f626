"""What a run wrote, to be read: the HTML page, and episodes on a terminal."""

from zsjax.report.console import episode_printer, print_result, show_episode
from zsjax.report.page import choose_trajectories, noisy_segments, write

__all__ = ["choose_trajectories", "episode_printer", "noisy_segments", "print_result", "show_episode", "write"]
