"""A command whose options are shown under headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

WIDTH = 110  # of help, on a terminal as wide or wider


class Sectioned(click.Command):
    """`sections`: the options' names by heading, in the order they are shown; the rest comes last."""

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **settings: Any) -> None:
        super().__init__(*args, **{"context_settings": {"max_content_width": WIDTH}, **settings})
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = {option.name: option.get_help_record(ctx) for option in self.get_params(ctx) if isinstance(option, click.Option)}
        records = {name: record for name, record in options.items() if record}
        wide = max(len(words) for words, _ in records.values())
        for heading, names in [*self.sections.items(), ("Other", [name for name in records if not self._has(name)])]:
            with formatter.section(heading):  # padded, so that the columns of all sections meet
                formatter.write_dl([(records[name][0].ljust(wide), records[name][1]) for name in names], col_max=wide)

    def _has(self, name: str | None) -> bool:
        return any(name in names for names in self.sections.values())
