"""What we ship to registries and hosts, held against their tools: the .mcpb bundle and server.json."""

import json
import shutil
import tempfile
import zipfile
from pathlib import Path

from tests.interop.environments import ROOT, Missing, execute, node, node_environment, npm_modules, npm_version
from tests.interop.outcome import Check, Outcome

BUNDLER = "@anthropic-ai/mcpb"


def run_bundle() -> Outcome:
    """Validate the manifest of the .mcpb bundle with the bundler, pack the checkout, and look into the bundle."""
    manifest = _found("manifest.json")
    program = npm_modules() / BUNDLER / "dist" / "cli" / "cli.js"
    valid = execute([node(), program, "validate", manifest], node_environment(), seconds=120)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "virtualmle.mcpb"
        packed = execute([node(), program, "pack", _tracked(Path(folder)), bundle], node_environment(), seconds=300)
        names, size = _content(bundle)
    entry = json.loads(manifest.read_text(encoding="utf-8"))["server"]["entry_point"]
    needed = {"manifest.json", "pyproject.toml", entry, "server/serve.py", "SANDBOX.md"}
    checks = [
        Check("mcpb validate", valid.returncode == 0, valid.stdout + valid.stderr),
        Check("mcpb pack", packed.returncode == 0 and size > 0, packed.stdout + packed.stderr),
        Check("the bundle has what it runs", needed <= names, f"lacks {sorted(needed - names)}"),
        Check("the bundle has no tests", not any(name.startswith("tests/") for name in names)),
    ]
    return Outcome("mcpb bundle", npm_version(BUNDLER), checks, notes=[f"{len(names)} files, {size:,} bytes"])


def run_registry() -> Outcome:
    """Validate server.json against the JSON schema that it names, with ajv."""
    entry = _found("server.json")
    schema = json.loads(entry.read_text(encoding="utf-8"))["$schema"]
    command = [node(), Path(__file__).parent / "node" / "validate.mjs", entry]
    done = execute(command, {**node_environment(), "INTEROP_MODULES": str(npm_modules())}, seconds=120)
    if done.returncode == 2:
        raise Missing(f"the schema {schema} cannot be read from here: {done.stderr.strip()[-200:]}")
    checks = [Check("schema", done.returncode == 0, done.stdout + done.stderr)]
    return Outcome("server.json", schema.split("/")[-2], checks)


def _found(name: str) -> Path:
    """The file of this name in the root of the checkout; Missing if there is none."""
    if not (ROOT / name).is_file():
        raise Missing(f"this checkout has no {name}")
    return ROOT / name


def _tracked(folder: Path) -> Path:
    """A copy of the tracked files, so that nothing else of a working checkout gets into the bundle."""
    listed = execute(["git", "-C", ROOT, "ls-files", "-z"])
    if listed.returncode:
        raise Missing(f"the bundle is packed from the files that git tracks: {listed.stderr.strip()}")
    copy = folder / "checkout"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def _content(bundle: Path) -> tuple[set[str], int]:
    """The names of the files in a bundle, and its size in bytes; nothing if it was not written."""
    if not bundle.exists():
        return set(), 0
    with zipfile.ZipFile(bundle) as archive:
        return set(archive.namelist()), bundle.stat().st_size
