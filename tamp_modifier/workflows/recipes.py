"""The modifiers of a run: from fields of TAMPModifier, from a YAML file, or as they are given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tamp_modifier.messages import FieldError, refusals
from tamp_modifier.modifier import TAMPModifier


def make_recipe(recipe: Any = None, fields: Mapping[str, Any] | None = None) -> list[Any]:
    """Return the modifiers of a run; exactly one is a TAMPModifier, see `ours`.

    Args:
        recipe: a YAML file, a modifier, or several; None makes a TAMPModifier of `fields`.
        fields: fields of TAMPModifier, where there is no recipe.

    Raises:
        ValueError: a field or a recipe that is not allowed, both, or not one TAMPModifier.
        FileNotFoundError: there is no such file.
    """
    fields = {} if fields is None else fields
    if recipe is None:
        return [TAMPModifier(**fields)]
    if fields:
        raise ValueError(f"the recipe has fields of its own, leave out {', '.join(fields)}")
    if isinstance(recipe, str | os.PathLike):
        modifiers, place = _read_recipe(Path(recipe)), os.fspath(recipe)
    else:
        modifiers, place = list(recipe) if isinstance(recipe, Sequence) else [recipe], "the recipe"
    count = sum(isinstance(modifier, TAMPModifier) for modifier in modifiers)
    if count != 1:
        raise ValueError(f"{place} must have one TAMPModifier, it has {count}")
    return modifiers


def ours(recipe: Sequence[Any]) -> TAMPModifier:
    """Return the TAMPModifier of a recipe."""
    return next(modifier for modifier in recipe if isinstance(modifier, TAMPModifier))


def only_prunes(recipe: Sequence[Any]) -> bool:
    """Whether nothing but a TAMPModifier is in a recipe; scales of others belong to a type."""
    return len(recipe) == 1


def _read_recipe(path: Path) -> list[Any]:
    from llmcompressor.recipe import Recipe
    from pydantic import ValidationError

    _check_yaml(path)
    try:
        return list(Recipe.create_instance(str(path)).modifiers)
    except (FieldError, ValidationError) as error:
        what = refusals(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"{path}: {what}") from None
    except Exception as error:  # llm-compressor and YAML raise many kinds
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a recipe: {what}") from None


def _check_yaml(path: Path) -> None:
    """Refuses what YAML would read without a word: a key that is given twice hides the first."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                line = node.start_mark.line + 1
                raise ValueError(f"{path}: {twice} is given twice in the block at line {line}")
            return super().construct_mapping(node, deep)

    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a recipe")
    if not path.is_file():
        raise FileNotFoundError(2, "no such recipe", str(path))
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} is not a recipe: expected stages of modifiers")
