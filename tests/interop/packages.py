"""What we ship to registries and hosts, held against their tools: the .mcpb bundle and server.json."""

import json
import shutil
import tempfile
from pathlib import Path

from tests.interop.environments import ROOT, Missing, execute, node, node_environment, npm_modules, npm_version
from tests.interop.outcome import Check, Outcome

BUNDLER = "@anthropic-ai/mcpb"


def run_bundle() -> Outcome:
    """Validate the manifest of the .mcpb bundle with the bundler, and pack it."""
    manifest = _found("manifest.json")
    program = npm_modules() / BUNDLER / "dist" / "cli" / "cli.js"
    valid = execute([node(), program, "validate", manifest], node_environment(), seconds=120)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "virtualmle.mcpb"
        packed = execute([node(), program, "pack", _content(manifest, Path(folder)), bundle], node_environment(), 300)
        size = bundle.stat().st_size if bundle.exists() else 0
    checks = [
        Check("mcpb validate", valid.returncode == 0, valid.stdout + valid.stderr),
        Check("mcpb pack", packed.returncode == 0 and size > 0, packed.stdout + packed.stderr),
    ]
    return Outcome("mcpb bundle", npm_version(BUNDLER), checks, notes=[f"the packed bundle has {size:,} bytes"])


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
    """The file of this name in the repository's root or in packaging/; Missing if there is none."""
    for path in (ROOT / name, *sorted((ROOT / "packaging").rglob(name))):
        if path.is_file():
            return path
    raise Missing(f"this checkout has no {name}")


def _content(manifest: Path, folder: Path) -> Path:
    """A folder with the manifest and its neighbours, so that packing never takes in the whole checkout."""
    content = folder / "content"
    if manifest.parent != ROOT:
        shutil.copytree(manifest.parent, content)
        return content
    content.mkdir()
    shutil.copy(manifest, content)
    shutil.copy(ROOT / "pyproject.toml", content)
    return content
