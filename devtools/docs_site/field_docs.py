"""Document each field of `TAMPModifier` where it is defined, with its type and default."""

from __future__ import annotations

from typing import Any

import griffe


class FieldDocs(griffe.Extension):
    """Move what a class says about its attributes to the attributes."""

    def __init__(self, paths: list[str]) -> None:
        """Remember which classes to change, by their full path."""
        self.paths = paths

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Take the section with the attributes out of a class's docstring."""
        if cls.path not in self.paths or cls.docstring is None:
            return
        before, mark, after = cls.docstring.value.partition("\nAttributes:\n")
        if not mark:
            raise ValueError(f"the docstring of {cls.path} has no section 'Attributes:'")
        section, end, rest = after.partition("\nRaises:\n")
        cls.docstring.value = before + end + rest
        found = griffe.Docstring(f"Fields.\n\nAttributes:\n{section}", parent=cls)
        for part in found.parse("google"):
            if isinstance(part, griffe.DocstringSectionAttributes):
                for field in part.value:
                    member = cls.members[field.name]
                    assert isinstance(member, griffe.Object)  # a field is no alias
                    member.docstring = griffe.Docstring(field.description, parent=member)
