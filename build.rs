//! Compiles the kernels under `kernels/`: for GPUs, where there is an nvcc, and for the emulated device, where there is a C++
//! compiler. The parts are in `kernels/build/`, whose tests
//! are in `tests/kernel_build.rs`.

#[path = "kernels/build/emulated.rs"]
mod emulated;
#[path = "kernels/build/fatbins.rs"]
mod fatbins;

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(env("OUT_DIR"));
    if let Err(message) = fatbins::build(&root, &out_dir) {
        // Cargo shows each line as an error of its own.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
    emulated::build();
}

/// What cargo promises to set.
fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Where all profiles find what was compiled before: cargo's target directory, above `<profile>/build/<package>/out`.
fn shared_dir(inside_out_dir: &Path) -> &Path {
    let build = inside_out_dir.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "build"));
    build.and_then(Path::parent).and_then(Path::parent).unwrap_or(inside_out_dir)
}

/// The names of the kernel files, `*.cu`, in order.
fn kernel_files(kernels: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(kernels).unwrap_or_else(|e| panic!("{}: {e}", kernels.display()));
    let names =
        entries.map(|e| e.expect("a readable directory").file_name().into_string().expect("UTF-8 names"));
    let mut files: Vec<String> = names.filter(|name| name.ends_with(".cu")).collect();
    files.sort();
    files
}
