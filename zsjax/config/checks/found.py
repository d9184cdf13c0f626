"""The collector of a config's problems."""

import os
from collections.abc import Callable

from zsjax.config.checks.values import path_problem
from zsjax.errors import Problem


class Found:
    """Problems of one config, and the few ways to look for them. Fields are dotted names."""

    def __init__(self, config, files=True):
        self.config, self.files = config, files
        self.problems: list[Problem] = []

    def value(self, field):
        value = self.config
        for name in field.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        return value

    def add(self, field, reason, mend):
        """Adds a problem, unless the field has one: the first is the simplest."""
        if all(problem.field != field for problem in self.problems):
            self.problems.append(Problem(field, self.value(field), reason, mend))

    def loads(self, field, load: Callable, mend):
        """Adds a problem if load(value) of the field raises."""
        try:
            load(self.value(field))
        except (Exception, SystemExit) as error:  # a template's, optax's or a user's module's own kinds
            self.add(field, str(error).split("\n")[0] or type(error).__name__, mend)

    def is_path(self, field):
        """A checkpoint, tokenizer or file: "asset:NAME", "hf:OWNER/NAME" or a path that is there."""
        from zsjax.data.assets import asset_path
        from zsjax.models.checkpoints.hub import PREFIX, hub_name

        value = self.value(field)
        if path_problem(value):
            return  # said already
        if value.startswith(PREFIX):  # whether the hub has it is seen when it is fetched
            if hub_name(value) is None:
                self.add(field, "no name of the Hugging Face hub",
                         f"give {PREFIX}OWNER/NAME, such as {PREFIX}Qwen/Qwen2.5-3B")
            return
        try:
            path = asset_path(value)
        except (OSError, ValueError) as error:
            self.add(field, "no such asset", str(error).partition("; ")[2] or str(error))
            return
        if self.files and not os.path.exists(path):  # unlike pathlib's, False for names that no file can have
            self.add(field, f"no file or folder there (looked in {os.getcwd()})", "check the path")
