"""The datasets of a record: what a request names, each with the name under which the recipes list it.

With both orders of ties, a dataset and its control are the same log, prepared with the same other options. A control is
found by its name, which ends with the suffix of random ties, or because it comes from the same file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..data.catalogue import Catalogue
from ..data.errors import ConfigError
from ..data.prepared import FILE, RANDOM, RANDOM_SUFFIX, Manifest, PrepareOptions
from ..examiner.vault import Vault

BOTH = "both"
TIES = (FILE, RANDOM, BOTH)
"""What `--ties` names: the order of a user's events at one time with which each dataset is recorded, or both."""


@dataclass(frozen=True)
class Listed:
    """A dataset, and the name of its lists in the recipes: of a control, the name of the plain dataset."""

    manifest: Manifest
    listed_as: str


def datasets_of(home: Path, words: Sequence[str], ties: str) -> tuple[Listed, ...]:
    """The datasets that a request names, which are prepared in the home unless they are there.

    Raises ConfigError for other `ties`, and for a registered dataset without a control; DataError for unknown words.
    """
    if ties not in TIES:
        raise ConfigError(f"ties={ties!r} is not known; choose {FILE}, {RANDOM} or {BOTH}")
    home.mkdir(parents=True, exist_ok=True)
    catalogue, key = Catalogue(home), Vault(home).public_key()
    found: dict[str, Listed] = {}
    for word in words:
        for one in _of_word(catalogue, key, word, ties):
            found.setdefault(one.manifest.name, one)
    return tuple(found.values())


def _of_word(catalogue: Catalogue, key: bytes, word: str, ties: str) -> Iterator[Listed]:
    if ties == RANDOM:
        control = _drawn(catalogue, key, word)
        yield Listed(control, _plain_name(catalogue, control))
        return
    plain = catalogue.manifest(catalogue.resolve(word, key))
    if ties == FILE:  # a control may be named as well
        yield Listed(plain, _plain_name(catalogue, plain))
        return
    if plain.options.ties == RANDOM:
        raise ConfigError(f"dataset {plain.name!r} has ties in random order; name the dataset in the order of the file")
    yield Listed(plain, plain.name)
    yield Listed(_drawn(catalogue, key, word), plain.name)


def _drawn(catalogue: Catalogue, key: bytes, word: str) -> Manifest:
    """The dataset of a word with ties in random order."""
    if word in catalogue.available() or word not in catalogue.names():
        return catalogue.manifest(catalogue.resolve(word, key, options=PrepareOptions(ties=RANDOM)))
    manifest = catalogue.manifest(word)
    return manifest if manifest.options.ties == RANDOM else _control(catalogue, manifest)


def _control(catalogue: Catalogue, plain: Manifest) -> Manifest:
    """The control of a registered dataset. Raises ConfigError, with the command that registers it."""
    name = plain.name + RANDOM_SUFFIX
    options = replace(plain.options, ties=RANDOM)
    if found := _with_options(catalogue, (name, *catalogue.siblings(plain.name)), options):
        return found
    verb = "replace" if name in catalogue.names() else "add"
    raise ConfigError(
        f"dataset {plain.name!r} has no control with ties in random order; register its log a second time: "
        f"virtualmle data {verb} {name} FILE{_options_in_words(options)}"
    )


def _plain_name(catalogue: Catalogue, manifest: Manifest) -> str:
    """The name of a dataset, or of the plain one that it is the control of."""
    if manifest.options.ties == FILE:
        return manifest.name
    name = manifest.name.removesuffix(RANDOM_SUFFIX)
    candidates = (name, *catalogue.siblings(manifest.name))
    found = _with_options(catalogue, candidates, replace(manifest.options, ties=FILE))
    return found.name if found else name


def _with_options(catalogue: Catalogue, names: Sequence[str], options: PrepareOptions) -> Manifest | None:
    registered = catalogue.names()
    manifests = (catalogue.manifest(name) for name in names if name in registered)
    return next((manifest for manifest in manifests if manifest.options == options), None)


def _options_in_words(options: PrepareOptions) -> str:
    """The options of `data add` that differ from its defaults."""
    default, words = PrepareOptions(), ""
    for field in fields(options):
        value = getattr(options, field.name)
        if value != getattr(default, field.name):
            words += f" --{field.name.replace('_', '-')}" + ("" if value is True else f" {value}")
    return words
