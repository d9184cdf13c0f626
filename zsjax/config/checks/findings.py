"""The list of a config's problems, as the checks fill it."""

import os
from collections.abc import Callable

from zsjax.config.allowed import path_problem
from zsjax.errors import Problem, reason_of
from zsjax.search.addresses import shown_address, without_secret_fields


class Findings:
    """The problems of one config, and the checks that several rooms share. Fields are dotted names."""

    def __init__(self, config, files=True, unread=()):
        self.config, self.files, self._unread = config, files, unread
        self.problems: list[Problem] = []

    def must_exist(self, field) -> bool:
        """Whether the file that the field names must be there."""
        return self.files and not any(field == name or field.startswith(f"{name}.") for name in self._unread)

    def value(self, field):
        value = self.config
        for name in field.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        return value

    def add(self, field, reason, fix):
        """Adds a problem, unless the field has one already: the first is the simplest."""
        if all(problem.field != field for problem in self.problems):
            value = self.value(field)
            value = shown_address(value) if isinstance(value, str) and "://" in value else without_secret_fields(value)
            self.problems.append(Problem(field, value, reason, fix))

    def loads(self, field, load: Callable, fix):
        """Adds a problem if load(value) of the field raises."""
        try:
            load(self.value(field))
        except (Exception, SystemExit) as error:  # a template's, optax's or a user's module's own kinds
            self.add(field, reason_of(error), fix)

    def is_path(self, field):
        """A checkpoint, tokenizer or file: "asset:NAME", "hf:OWNER/NAME" or a path that is there."""
        from zsjax.data.assets import asset_path
        from zsjax.models.checkpoints.hub import PREFIX, hub_name

        value = self.value(field)
        if path_problem(value):
            return  # `check_values` has added it
        if value.startswith(PREFIX):
            if hub_name(value) is None:
                self.add(field, "not a name on the Hugging Face hub",
                         f"give {PREFIX}OWNER/NAME, such as {PREFIX}Qwen/Qwen2.5-3B")
            return
        try:
            path = asset_path(value)
        except (OSError, ValueError) as error:
            self.add(field, "no such asset", str(error).partition("; ")[2] or str(error))
            return
        if self.must_exist(field) and not os.path.exists(path):  # unlike pathlib's, False for names that no file can have
            self.add(field, f"no file or folder there (looked in {os.getcwd()})", "check the path")
