"""Generate the Python stubs of ``protos/`` into ``src/``; with ``--check``, exit 1 if the committed ones differ.

``metergate.v1`` is a plain package: nothing that is generated is patched.
"""

import argparse
import sys
import sysconfig
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = Path("metergate", "v1")
SCRIPTS = Path(sysconfig.get_path("scripts"))


def generate(output: Path) -> None:
    """Write messages, services and their types below ``output``."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    plugins = [f"--{plugin}_out={output}" for plugin in ("python", "mypy", "grpc_python", "mypy_grpc")]
    # Beside this interpreter: its environment need not be the activated one.
    programs = [f"--plugin=protoc-gen-{name}={SCRIPTS / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    if protoc.main(["protoc", f"-I{PROTOS}", f"-I{well_known}", *programs, *plugins, *sources]) != 0:
        sys.exit("protoc failed")


def stubs_below(root: Path) -> dict[str, bytes]:
    """Every generated file by name."""
    return {path.name: path.read_bytes() for path in (root / STUBS).glob("*_pb2*")}


def main() -> None:
    """Generate, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        for stale in (ROOT / "src" / STUBS).glob("*_pb2*"):
            stale.unlink()
        generate(ROOT / "src")
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh, committed = stubs_below(Path(scratch)), stubs_below(ROOT / "src")
    drifted = sorted(name for name in fresh | committed if fresh.get(name) != committed.get(name))
    if drifted:
        sys.exit(f"generated code drifted, run make proto: {', '.join(drifted)}")


if __name__ == "__main__":
    main()
