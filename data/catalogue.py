"""The datasets of a home: registered ones, the bundled demo, and those that can be downloaded by name.

Registering is for people. Everything is prepared once; what a raw file hashed to is kept in the vault, because a hash
over test events may not lie where an agent can see it.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .atomic import write_json
from .demo import generate_demo
from .download import Progress, download
from .errors import DataError, HomeError
from .names import check_name, name_from_file
from .prepare import prepare
from .prepared import MANIFEST, Manifest, PreparedDataset, PrepareOptions, read_manifest
from .readers import ROLES, Format, Log, read_log

DEMO = "demo"
AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"


@dataclass(frozen=True)
class Download:
    """A public log: where it is, and what must remain of it after the 5-core (users, items, interactions)."""

    url: str
    expected: tuple[int, int, int]


DOWNLOADS = {
    "amazon-beauty": Download(f"{AMAZON}/reviews_Beauty_5.json.gz", (22_363, 12_101, 198_502)),
    "amazon-baby": Download(f"{AMAZON}/reviews_Baby_5.json.gz", (19_445, 7_050, 160_792)),
    "amazon-pet-supplies": Download(f"{AMAZON}/reviews_Pet_Supplies_5.json.gz", (19_856, 8_510, 157_836)),
}
"""The owners publish no checksums; the published 5-core statistics stand in for them."""


class Catalogue:
    """The datasets below `home/.virtualmle/data`."""

    def __init__(self, home: Path) -> None:
        self.root = home / ".virtualmle" / "data"
        self._private = home / ".virtualmle" / "vault"

    def names(self) -> list[str]:
        """The registered datasets, in alphabetical order."""
        found = self.root.glob(f"*/{MANIFEST}")
        return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))

    def available(self) -> list[str]:
        """Names that `resolve` knows although they need not be registered yet."""
        return [DEMO, *DOWNLOADS]

    def path(self, name: str) -> Path:
        """The directory of a registered dataset. Raises DataError, with the names there are, for any other."""
        if name not in self.names():
            names = ", ".join(self.names()) or "none"
            raise DataError(
                f"no dataset is named {name!r:.60}; registered: {names}; "
                f"ready to fetch: {', '.join(self.available())}; a log of your own: virtualmle data add NAME FILE"
            )
        return self.root / name

    def load(self, name: str, verify: bool = True) -> PreparedDataset:
        """The registered dataset `name`, checked against its hashes. Raises DataError."""
        return PreparedDataset.load(self.path(name), verify)

    def manifest(self, name: str) -> Manifest:
        """The manifest of a registered dataset: cheap, nothing else is read. Raises DataError."""
        return read_manifest(self.path(name))

    def add(
        self,
        name: str,
        file: Path,
        *,
        public_key: bytes,
        options: PrepareOptions | None = None,
        user: str | None = None,
        item: str | None = None,
        timestamp: str | None = None,
        format: Format | None = None,
    ) -> Manifest:
        """Register a log file under a new name. Raises DataError, SealError or HomeError; then nothing is left."""
        self._check_new(name)
        options = options or PrepareOptions()
        log = read_log(file, user=user, item=item, timestamp=timestamp, format=format)
        manifest = prepare(log, name, self.root / name, options, public_key)
        self._remember_source(name, {"sha256": _file_hash(file), "columns": log.columns, "options": asdict(options)})
        return manifest

    def ensure_demo(self, public_key: bytes) -> Path:
        """The directory of the demo dataset, generated on first use."""
        if DEMO not in self.names():
            frame = generate_demo()
            log = Log(frame, {role: role for role in ROLES}, frame.height)
            self._unless_raced(DEMO, lambda: prepare(log, DEMO, self.root / DEMO, PrepareOptions(), public_key))
        return self.root / DEMO

    def fetch(self, name: str, public_key: bytes, progress: Progress | None = None) -> Manifest:
        """Download and register one of DOWNLOADS. Raises DataError, also when it is not the published log."""
        if name not in DOWNLOADS:
            raise DataError(f"{name!r} cannot be downloaded; choose one of {', '.join(DOWNLOADS)}")
        self._check_new(name)
        wanted = DOWNLOADS[name]
        # The raw file holds test events: it lies in the vault until it is prepared, and is removed then
        file = self._vault() / "downloads" / wanted.url.rsplit("/", 1)[1]
        download(wanted.url, file, progress)
        log = read_log(file)
        _check_counts(name, log, wanted.expected)
        manifest = prepare(log, name, self.root / name, PrepareOptions(), public_key)
        file.unlink()
        return manifest

    def resolve(self, name_or_path: str, public_key: bytes, progress: Progress | None = None) -> str:
        """The registered name for what a person typed: a name, a name to fetch or generate, or a path to a log.

        A log is registered under its stem; one whose content is registered already keeps the name it has.
        """
        if name_or_path in self.names():
            return name_or_path
        if name_or_path == DEMO:
            self.ensure_demo(public_key)
        elif name_or_path in DOWNLOADS:
            self.fetch(name_or_path, public_key, progress)
        elif Path(name_or_path).is_file():
            return self._resolve_file(Path(name_or_path), public_key)
        elif "/" in name_or_path or Path(name_or_path).suffix:
            raise DataError(f"there is no file {name_or_path!r}; check the path")
        else:
            self.path(name_or_path)  # raises, listing the names
        return name_or_path

    def _resolve_file(self, file: Path, public_key: bytes) -> str:
        digest, plain = _file_hash(file), asdict(PrepareOptions())
        for name in self.names():
            source = self._source(name)
            if source.get("sha256") == digest and source.get("options") == plain:
                return name
        name = name_from_file(file.name)
        if name in self.names():
            raise DataError(
                f"dataset {name!r} exists with another content; register {file.name} under a name of its own: "
                f"virtualmle data add NAME {file.name}"
            )
        self._unless_raced(name, lambda: self.add(name, file, public_key=public_key))
        return name

    def _check_new(self, name: str) -> None:
        if check_name(name) in self.names():
            raise DataError(f"dataset {name!r} exists already; choose another name or remove {str(self.root / name)!r}")

    def _unless_raced(self, name: str, make: Callable[[], Manifest]) -> None:
        """Register a dataset whose content is given by its name; a process that was faster did the same work."""
        try:
            make()
        except DataError:
            if name not in self.names():
                raise

    def _vault(self) -> Path:
        try:
            self._private.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise HomeError(
                f"{str(self._private)!r} cannot be created ({error.strerror}); choose another home with --home"
            ) from None
        return self._private

    def _source_path(self, name: str) -> Path:
        return self._private / "sources" / f"{name}.json"

    def _source(self, name: str) -> dict[str, object]:
        path = self._source_path(name)
        source: dict[str, object] = json.loads(path.read_bytes()) if path.exists() else {}
        return source

    def _remember_source(self, name: str, source: dict[str, object]) -> None:
        self._vault()
        path = self._source_path(name)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_json(path, source, mode=0o600)


def _file_hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_counts(name: str, log: Log, expected: tuple[int, int, int]) -> None:
    found = (log.frame["user"].n_unique(), log.frame["item"].n_unique(), log.frame.height)
    if found != expected:
        raise DataError(
            f"{name} has {found} users, items, interactions, not the published {expected}; "
            "the source has changed: register the file by hand if you want this version"
        )
