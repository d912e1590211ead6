"""The datasets of a home: registered ones, the bundled demo, and public ones that can be downloaded by name.

Only people register datasets; no MCP tool does. Each dataset is prepared once. The hash of a raw file covers test
events, so it is stored in the vault and never among the files that an agent can see.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import exchange, write_json
from .cleaning import STRICT, Cleaning
from .download import Progress, download
from .errors import DataError, HomeError
from .hashing import sha256_of
from .names import check_name, name_from_file
from .prepared import ALL, FILE, MANIFEST, Manifest, PreparedDataset, PrepareOptions, read_manifest
from .reading import ROLES, Reading
from .safe_open import refuse_links

if TYPE_CHECKING:
    from .readers import Log

DEMO = "demo"
AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"


@dataclass(frozen=True)
class Download:
    """A public log: its address and its published numbers of users, items and interactions after the 5-core filter."""

    url: str
    expected: tuple[int, int, int]


DOWNLOADS = {
    "amazon-beauty": Download(f"{AMAZON}/reviews_Beauty_5.json.gz", (22_363, 12_101, 198_502)),
    "amazon-baby": Download(f"{AMAZON}/reviews_Baby_5.json.gz", (19_445, 7_050, 160_792)),
    "amazon-pet-supplies": Download(f"{AMAZON}/reviews_Pet_Supplies_5.json.gz", (19_856, 8_510, 157_836)),
}
"""The publishers provide no checksums, so a download is checked against the published 5-core statistics instead."""


class Catalogue:
    """The datasets in `home/.virtualmle/data`."""

    def __init__(self, home: Path) -> None:
        self.root = home / ".virtualmle" / "data"
        self._vault_directory = home / ".virtualmle" / "vault"

    def names(self) -> list[str]:
        """Names of the registered datasets, in alphabetical order."""
        found = self.root.glob(f"*/{MANIFEST}")
        return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))

    def available(self) -> list[str]:
        """Names that `resolve` also accepts before registration: it generates or downloads these datasets."""
        return [DEMO, *DOWNLOADS]

    def path(self, name: str) -> Path:
        """The directory of a registered dataset. Raises DataError, listing the known names, for any other name."""
        if name not in self.names():
            names = ", ".join(self.names()) or "none"
            raise DataError(
                f"no dataset is named {name!r:.60}; registered: {names}; "
                f"available on request: {', '.join(self.available())}; your own log: virtualmle data add NAME FILE"
            )
        home = self.root.parents[1]
        return refuse_links(home, *self.root.relative_to(home).parts, name, error=DataError)

    def load(self, name: str, verify: bool = True) -> PreparedDataset:
        """Open the registered dataset `name`; `verify` checks its file hashes. Raises DataError."""
        return PreparedDataset.load(self.path(name), verify)

    def manifest(self, name: str) -> Manifest:
        """The manifest of a registered dataset; no other file is read. Raises DataError."""
        return read_manifest(self.path(name))

    def add(
        self,
        name: str,
        file: Path,
        *,
        public_key: bytes,
        options: PrepareOptions | None = None,
        reading: Reading | None = None,
        cleaning: Cleaning = STRICT,
        replace: bool = False,
    ) -> Manifest:
        """Register a log (a file, a directory of Parquet parts or standard input) under a new name.

        With `replace`, the log replaces the registered dataset of this name instead. Raises DataError, SealError or
        HomeError, and then leaves no new files and an existing dataset unchanged.
        """
        from .prepare import prepare  # noqa: PLC0415 - it and the readers import polars, which a server starts without
        from .readers import read_log  # noqa: PLC0415

        if replace:
            self.path(name)  # raises if there is no such dataset
        else:
            self._check_new(name)
        options = options or PrepareOptions()
        log = read_log(file, **asdict(reading or Reading()), cleaning=cleaning)
        with self._destination(name, replace) as directory:
            manifest = prepare(log, name, directory, options, public_key, self._mac_key())
        self._save_source(
            name,
            {
                "sha256": sha256_of(file) if file.is_file() else "",  # no path leads to other logs again
                "columns": log.columns,
                "options": asdict(options),
                "cleaning": asdict(cleaning),
            },
        )
        return manifest

    def remove(self, name: str) -> None:
        """Remove a registered dataset and the vault's record of its log; the look ledger keeps its entries.

        Raises DataError for an unknown name, HomeError if the files cannot be removed.
        """
        directory = self.path(name)
        try:
            with tempfile.TemporaryDirectory(dir=self.root, prefix=f".{name}.") as trash:
                os.rename(directory, Path(trash) / name)  # now the name is free, even if this process is killed
            self._source_path(name).unlink(missing_ok=True)
        except OSError as error:
            raise HomeError(f"{str(directory)!r} cannot be removed ({error.strerror}); check its permissions") from None

    def siblings(self, name: str) -> list[str]:
        """The other registered datasets that were made from the same log, as far as the vault says; sorted by name."""
        origin = self._origin(name)
        return [other for other in self.names() if other != name and origin and self._origin(other) == origin]

    def ensure_demo(self, public_key: bytes, options: PrepareOptions | None = None) -> Path:
        """The directory of the demo dataset, generated on first use; another split has a name of its own."""
        from .demo import generate_demo  # noqa: PLC0415 - they import polars, as above
        from .prepare import prepare  # noqa: PLC0415
        from .readers import Log  # noqa: PLC0415

        options = options or PrepareOptions()
        name = DEMO + options.suffix
        if name not in self.names():
            frame = generate_demo()
            log = Log(frame, {role: role for role in ROLES}, frame.height)
            keys = public_key, self._mac_key()
            self._register_once(name, lambda: prepare(log, name, self.root / name, options, *keys))
            self._save_origin(name, DEMO)
        return self.root / name

    def fetch(
        self, name: str, public_key: bytes, progress: Progress | None = None, options: PrepareOptions | None = None
    ) -> Manifest:
        """Download and register one of DOWNLOADS; another split than leave-one-out has a name of its own.

        Raises DataError, also for counts that differ from `expected`.
        """
        from .prepare import prepare  # noqa: PLC0415 - they import polars, as above
        from .readers import read_log  # noqa: PLC0415

        if name not in DOWNLOADS:
            raise DataError(f"{name!r} cannot be downloaded; choose one of {', '.join(DOWNLOADS)}")
        options = options or PrepareOptions()
        registered = name + options.suffix
        self._check_new(registered)
        source = DOWNLOADS[name]
        # The raw file contains test events, so it is downloaded into the vault and deleted after it has been prepared
        file = self._create_vault() / "downloads" / source.url.rsplit("/", 1)[1]
        download(source.url, file, progress)
        log = read_log(file)
        _check_counts(name, log, source.expected)
        manifest = prepare(log, registered, self.root / registered, options, public_key, self._mac_key())
        self._save_origin(registered, name)
        file.unlink()
        return manifest

    def resolve(
        self,
        name_or_path: str,
        public_key: bytes,
        progress: Progress | None = None,
        options: PrepareOptions | None = None,
    ) -> str:
        """Return a registered name for user input: a registered name, an available name, or the path of a log file.

        A log file is registered under its file stem, unless its content is registered already under another name.
        `options` apply to what is registered now, and name another split than leave-one-out in its name. A registered
        dataset must have that split. Raises DataError.
        """
        name = name_or_path + options.suffix if options and name_or_path in self.available() else name_or_path
        if name in self.names():
            _check_split(self.manifest(name), options)
        elif name_or_path == DEMO:
            self.ensure_demo(public_key, options)
        elif name_or_path in DOWNLOADS:
            self.fetch(name_or_path, public_key, progress, options)
        elif Path(name_or_path).is_file():
            return self._resolve_file(Path(name_or_path), public_key, options or PrepareOptions())
        elif "/" in name_or_path or Path(name_or_path).suffix:
            raise DataError(f"there is no file {name_or_path!r}; check the path")
        else:
            self.path(name_or_path)  # raises, listing the names
        return name

    def _resolve_file(self, file: Path, public_key: bytes, options: PrepareOptions) -> str:
        digest, default_options, default_cleaning = sha256_of(file), asdict(PrepareOptions()), asdict(STRICT)
        for name in self.names():
            source = self._source(name)
            found = default_options | source.get("options", {})  # an option that is newer than the dataset
            cleaning = default_cleaning | source.get("cleaning", {})
            if source.get("sha256") == digest and (found, cleaning) == (asdict(options), default_cleaning):
                return name
        name = name_from_file(file.name) + options.suffix
        if name in self.names():
            raise DataError(
                f"dataset {name!r} exists with different content; register {file.name} under another name: "
                f"virtualmle data add NAME {file.name}"
            )
        self._register_once(name, lambda: self.add(name, file, public_key=public_key, options=options))
        return name

    @contextmanager
    def _destination(self, name: str, replace: bool) -> Iterator[Path]:
        """The directory to prepare a dataset in: its own, or a temporary one that replaces it when the block ends."""
        if not replace:
            yield self.root / name
            return
        try:
            with tempfile.TemporaryDirectory(dir=self.root, prefix=f".{name}.") as folder:
                yield Path(folder) / name
                exchange(Path(folder) / name, self.root / name)  # the old content is deleted with the folder
        except OSError as error:
            raise HomeError(f"{str(self.root)!r} cannot be written ({error.strerror}); check its permissions") from None

    def _check_new(self, name: str) -> None:
        if check_name(name) in self.names():
            raise DataError(f"dataset {name!r} exists already; choose another name, or see `virtualmle data replace`")

    def _register_once(self, name: str, register: Callable[[], Manifest]) -> None:
        """Call `register`, and accept a dataset that another process registered under this name at the same time."""
        try:
            register()
        except DataError:
            if name not in self.names():
                raise

    def _create_vault(self) -> Path:
        try:
            self._vault_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise HomeError(
                f"{str(self._vault_directory)!r} cannot be created ({error.strerror}); choose another home with --home"
            ) from None
        return self._vault_directory

    def _mac_key(self) -> bytes | None:
        """The vault's key for signing; None if it has none yet, and then signs what exists when it gets one."""
        path = self._vault_directory / "mac_key"
        return path.read_bytes() if path.exists() else None

    def _source_path(self, name: str) -> Path:
        return self._vault_directory / "sources" / f"{name}.json"

    def _source(self, name: str) -> dict[str, Any]:
        path = self._source_path(name)
        source: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
        return source

    def _origin(self, name: str) -> str:
        """What identifies the log of a dataset: the hash of its file, or the available name; empty if unknown."""
        source = self._source(name)
        known = name if name in self.available() else ""
        return str(source.get("sha256") or source.get("origin") or known)

    def _save_origin(self, name: str, available: str) -> None:
        """Record which available dataset `name` is another split of."""
        if name != available:
            self._save_source(name, {"sha256": "", "origin": available})

    def _save_source(self, name: str, source: dict[str, object]) -> None:
        self._create_vault()
        path = self._source_path(name)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_json(path, source, mode=0o600)


def _check_split(manifest: Manifest, options: PrepareOptions | None) -> None:
    """Refuse a registered dataset whose split or ties differ from those that were asked for; None = any."""
    registered = manifest.options
    if options is None or _split_named_by(options) == _split_named_by(registered):
        return
    raise DataError(
        f"dataset {manifest.name!r} is registered with {_split_named_by(registered)}, not {_split_named_by(options)}; "
        f"register its log again under another name: virtualmle data add NAME FILE {_split_named_by(options)}"
    )


def _split_named_by(options: PrepareOptions) -> str:
    """The options of the command line that give this split, and this order of ties."""
    holdout = f" --holdout {options.holdout}" if options.holdout else ""
    core = "" if options.k_core_on == ALL else f" --k-core-on {options.k_core_on}"
    return f"--split {options.split}{holdout}{core}{'' if options.ties == FILE else f' --ties {options.ties}'}"


def _check_counts(name: str, log: "Log", expected: tuple[int, int, int]) -> None:
    found = (log.frame["user"].n_unique(), log.frame["item"].n_unique(), log.frame.height)
    if found != expected:
        raise DataError(
            f"{name} has {found} users, items and interactions, not the published {expected}; "
            "the public file has changed: to use this version, download it and register it with `virtualmle data add`"
        )
