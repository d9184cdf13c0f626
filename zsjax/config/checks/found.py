"""The collector of a config's problems."""

import math
import os

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
        self.problems.append(Problem(field, self.value(field), reason, mend))

    def one_of(self, field, names):
        if self.value(field) not in names:
            self.add(field, "unknown", f"give one of {', '.join(names)}")

    def at_least(self, low, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not value >= low:  # so that NaN is refused
                self.add(field, "too small", f"give {low} or more")

    def within(self, low, high, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not low <= value <= high:
                self.add(field, "out of range", f"give {low} to {high}")

    def positive(self, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not 0 < value < math.inf:
                self.add(field, "not positive", "give a number above 0")

    def is_path(self, field):
        from zsjax.data.assets import asset_path
        from zsjax.models.checkpoints.hub import PREFIX, hub_name

        value = self.value(field)
        if value.startswith(PREFIX):  # whether the hub has it is seen when it is fetched
            if hub_name(value) is None:
                self.add(field, "no name of the Hugging Face hub",
                         f"give {PREFIX}OWNER/NAME, such as {PREFIX}Qwen/Qwen2.5-3B")
            return
        try:
            path = asset_path(value)
        except FileNotFoundError as error:
            self.add(field, "no such asset", str(error).partition("; ")[2] or str(error))
            return
        if self.files and not path.exists():
            self.add(field, f"no file or folder there (looked in {os.getcwd()})", "check the path")
