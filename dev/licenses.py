#!/usr/bin/env python3
"""Writes the licenses of everything that the programs contain, as their licenses demand.

Usage: dev/licenses.py DIRECTORY [--features mpi] [--target x86_64-unknown-linux-gnu]

DIRECTORY/crates.txt lists the Rust crates that are linked, and the text of each license once.
DIRECTORY/rust.html has those of Rust's standard library. A crate without a text is an error.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RULE = "=" * 80

# Crates under MIT whose packages lack its text: the holders that their repositories name. The text
# itself is that of our own LICENSE.
HOLDERS = {
    "epaint_default_fonts": "Copyright (c) 2018-2021 Emil Ernerfeldt",
    "tiktoken-rs": "Copyright (c) 2023 Roger Zurawicki\n"
    "Copyright (c) 2022 OpenAI, Shantanu Jain (vocabularies)",
}
# zstd is under BSD or GPL; these files hold the latter.
NOT_CHOSEN = {"zstd-sys": {"zstd/COPYING"}}


def die(text):
    sys.exit(f"licenses: {text}")


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def linked(target, features):
    """The packages whose code the programs contain: neither procedural macros nor what only builds
    or tests."""
    command = ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={target}"]
    metadata = json.loads(run(*command, *(["--features", features] if features else [])))
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    ours = set(metadata["workspace_members"])
    pending = [metadata["resolve"]["root"]]
    found = set()
    while pending:
        package = pending.pop()
        is_macro = any("proc-macro" in made["kind"] for made in packages[package]["targets"])
        if package in found or is_macro:
            continue
        found.add(package)
        for dependency in nodes[package]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                pending.append(dependency["pkg"])
    return sorted((packages[p] for p in found - ours), key=lambda p: (p["name"], p["version"]))


def texts_in(package):
    """The license files of a package, by path within it. C code and fonts have their own in
    subdirectories."""
    top = Path(package["manifest_path"]).parent
    pattern = re.compile(r"(un)?licen[sc]e|copying|notice|copyright|ofl|ufl", re.IGNORECASE)
    names = {}
    for directory, _, files in os.walk(top):
        for file in files:
            path = Path(directory, file)
            name = path.relative_to(top).as_posix()
            is_code = path.suffix in {".rs", ".c", ".h", ".py", ".sh", ".toml", ".json", ".html"}
            if pattern.match(file) and not is_code and name not in NOT_CHOSEN.get(package["name"], ()):
                names[name] = path.read_text(errors="replace").strip()
    return names


def mit(holders):
    text = (ROOT / "LICENSE").read_text()
    body = text.partition("Permission is hereby granted")
    if not body[1]:
        die("LICENSE: expected the text of the MIT license")
    return f"MIT License\n\n{holders}\n\n{body[1]}{body[2]}".strip()


def texts_of(package, packages):
    """The license texts of a package: its own, or those of another crate of its repository."""
    texts = texts_in(package)
    if package["name"] in HOLDERS:
        texts["MIT"] = mit(HOLDERS[package["name"]])
    if not texts:
        for other in packages:
            same = other["repository"] == package["repository"] and other["license"] == package["license"]
            if package["repository"] and same and other is not package:
                texts = texts_in(other)
                break
    if not texts:
        name, license = package["name"], package["license"]
        die(f"{name} ({license}) has no license text: add its holder to HOLDERS in {Path(__file__).name}")
    return texts


def crates(packages):
    """All license texts, each once, after the table of crates."""
    table, users = [], {}
    for package in packages:
        label = f"{package['name']} {package['version']}"
        table.append(f"{label:<40} {package['license']}\n    {package['repository'] or ''}".rstrip())
        for name, text in texts_of(package, packages).items():
            users.setdefault(text, []).append(f"{label}: {name}")
    parts = [f"The programs contain {len(packages)} Rust crates:\n", "\n".join(table) + "\n"]
    for text, files in users.items():
        parts.append("\n".join([RULE, *files, RULE, "", text, ""]))
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--features", default="")
    parser.add_argument("--target", default="x86_64-unknown-linux-gnu")
    args = parser.parse_args()
    packages = linked(args.target, args.features)
    if not packages:
        die("cargo metadata lists no crates")
    args.directory.mkdir(parents=True, exist_ok=True)
    (args.directory / "crates.txt").write_text(crates(packages))
    sysroot = run("rustc", "--print", "sysroot").strip()
    library = Path(sysroot, "share/doc/rust/COPYRIGHT-library.html")
    if not library.is_file():
        die(f"{library}: missing, expected it from rustup; install Rust from https://rustup.rs")
    shutil.copyfile(library, args.directory / "rust.html")


main()
