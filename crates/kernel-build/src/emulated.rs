//! Kernels for the emulated device. The host's C++ compiler compiles every `.cu` file once for each
//! `floatX`, plain and instrumented for the checker, and puts all of them into a static library;
//! `tables.rs` lists the tables of kernels in it. Without a C++ compiler there is no emulated
//! device (`cfg(emulated)`), and the program says so when it is asked for.
//!
//! The `cc` crate finds the compiler (`CXX`), calls it and archives the objects. It does so without
//! flags of its own, as results must not depend on the profile, but `CXXFLAGS` follow ours. One
//! file is one call, so that each object can be cached by its content and the longest are compiled
//! first.

use crate::sources::{Declaration, includes, kernels, source_text};
use crate::{kernel_files, run_all, shared_dir};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The directory of the headers that turn CUDA into C++, from the root of the repository.
const HEADERS: &str = "crates/emulator/include";
/// The header for the tables of kernels, relative to [`HEADERS`].
const TABLE_HEADER: &str = "emulated/table.h";

const FLAGS: &str = "-std=c++17 -fPIC -fno-exceptions -fno-rtti -fno-threadsafe-statics -fno-strict-aliasing \
                     -ffp-contract=off -DWARPSMITH_EMULATED -I. -Ikernels";
/// With names and lines for messages.
const PLAIN_FLAGS: &str = "-O2 -g1";
/// Every access calls the checker, which takes most of the time: more optimization would only slow
/// the build down. Structs stay in one piece, as a GPU loads and stores a float2.
const CHECKED_FLAGS: &str = "-O1 -g -fsanitize=thread -fno-tree-sra";
/// The name of each `floatX`, and the flag that selects it.
const FLOATX: [(&str, &str); 3] =
    [("bf16", "-DFLOATX_BF16"), ("f16", "-DFLOATX_F16"), ("f32", "-DFLOATX_F32")];
/// Directories of kernels that are only for tests, compiled for bf16 alone, and the names of the
/// lists of their tables.
const FOR_TESTS: [(&str, &str); 2] = [("SELF_TEST", "tests/emulator"), ("PROBES", "tests/probes/kernels")];

/// One translation unit: a kernel file for one `floatX`, checked or not.
struct Unit {
    /// Relative to the root of the repository.
    source: String,
    floatx: &'static str,
    checked: bool,
    symbol: String,
    flags: Vec<String>,
}

/// Compiles and archives all units, and writes `emulated/tables.rs` into `out_dir`. Does nothing on
/// machines without a C++ compiler and on those that the emulator does not support.
///
/// # Errors
/// If a kernel does not compile.
pub fn build(root: &Path, out_dir: &Path) -> Result<(), String> {
    println!("cargo::rustc-check-cfg=cfg(emulated)");
    for dir in FOR_TESTS.iter().map(|(_, dir)| *dir).chain([HEADERS]) {
        println!("cargo::rerun-if-changed={dir}");
    }
    println!("cargo::rerun-if-env-changed=CXX");
    // As in the emulator's lib.rs.
    let supported = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux")
        && env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64" || arch == "aarch64");
    let Some(compiler) = Compiler::find(root).filter(|_| supported) else { return Ok(()) };
    println!("cargo::rustc-cfg=emulated");
    println!("cargo::rustc-env=WARPSMITH_CXX={}", compiler.name());
    let out = out_dir.join("emulated");
    fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let units = units();
    let objects = compiler.compile_all(&units, &out)?;
    let library = compiler.build.clone().out_dir(&out).try_create_archive("warpsmith_emulated", &objects);
    library.map_err(|e| format!("the kernels for the emulated device cannot be archived: {e}"))?;
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static=warpsmith_emulated");
    let tables_file = out.join("tables.rs");
    fs::write(&tables_file, tables(&units)).map_err(|e| format!("{}: {e}", tables_file.display()))
}

fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for (source, floatx) in sources("kernels")
        .into_iter()
        .map(|s| (s, &FLOATX[..]))
        .chain(FOR_TESTS.iter().flat_map(|(_, dir)| sources(dir)).map(|s| (s, &FLOATX[..1])))
    {
        for &(floatx, flag) in floatx {
            for checked in [false, true] {
                let stem = source.trim_end_matches(".cu").replace(['/', '-', '.'], "_");
                let variant = if checked { "checked" } else { "plain" };
                let mut flags: Vec<String> = FLAGS.split_whitespace().map(str::to_owned).collect();
                flags.extend([format!("-I{HEADERS}"), flag.to_owned()]);
                let more = if checked { CHECKED_FLAGS } else { PLAIN_FLAGS };
                flags.extend(more.split_whitespace().map(str::to_owned));
                units.push(Unit {
                    source: source.clone(),
                    floatx,
                    checked,
                    symbol: format!("{stem}_{floatx}_{variant}"),
                    flags,
                });
            }
        }
    }
    units
}

/// The kernel files in a directory, as paths from the root of the repository.
fn sources(dir: &str) -> Vec<String> {
    kernel_files(Path::new(dir)).into_iter().map(|name| format!("{dir}/{name}")).collect()
}

/// The C++ text of a unit. The kernel file is in an unnamed namespace, so that the linker does not
/// merge its inline functions and templates with those compiled for another `floatX` or without the
/// checker. The kernels have C names and are renamed.
fn wrapper(unit: &Unit) -> String {
    let Unit { source, symbol, .. } = unit;
    let (dir, file) = source.rsplit_once('/').expect("a file in a directory");
    let kernels = kernels(&source_text(Path::new(""), dir, file).unwrap_or_else(|e| panic!("{e}")));
    let mut text = format!("#include \"{TABLE_HEADER}\"\n");
    for Declaration { name, .. } in &kernels {
        writeln!(text, "#define {name} {name}_{symbol}").unwrap();
    }
    writeln!(text, "namespace {{\n#include \"{source}\"").unwrap();
    writeln!(text, "constexpr emulated::Kernel table[] = {{").unwrap();
    for Declaration { name, max_threads, cluster } in &kernels {
        writeln!(text, "    emulated::Entry<{name}>::kernel(\"{name}\", {max_threads}, {cluster}),").unwrap();
    }
    writeln!(text, "    {{}}}};\n}}").unwrap();
    writeln!(text, "extern \"C\" const emulated::Kernel* const warpsmith_kernels_{symbol};").unwrap();
    writeln!(text, "const emulated::Kernel* const warpsmith_kernels_{symbol} = table;").unwrap();
    text
}

/// The host's C++ compiler.
struct Compiler {
    build: cc::Build,
    /// Everything about the compiler that goes into an object: its path, arguments from the
    /// environment, its version.
    identity: (PathBuf, Vec<OsString>, Vec<u8>),
    /// Leaves the place of the repository out of objects, and so out of messages.
    prefix_map: String,
}

impl Compiler {
    /// The compiler that `CXX` names, or `c++`; `None` if it does not run.
    fn find(root: &Path) -> Option<Self> {
        let mut build = cc::Build::new();
        build.cpp(true).no_default_flags(true).warnings(false).extra_warnings(false);
        build.inherit_rustflags(false).inherit_trim_paths(false);
        // A missing compiler is not worth a warning: there is a message where the device is opened.
        let tool = build.clone().cargo_warnings(false).try_get_compiler().ok()?;
        let version = Command::new(tool.path()).arg("--version").output().ok()?;
        let identity = (tool.path().to_path_buf(), tool.args().to_vec(), version.stdout);
        let prefix_map = format!("-ffile-prefix-map={}/=", root.display());
        version.status.success().then_some(Compiler { build, identity, prefix_map })
    }

    /// The first line of its `--version`: `c++ (Debian 12.2.0-14) 12.2.0`.
    fn name(&self) -> String {
        String::from_utf8_lossy(&self.identity.2).lines().next().unwrap_or_default().trim().to_owned()
    }

    /// Compiles the units that are not cached; returns the objects of all, in order.
    fn compile_all(&self, units: &[Unit], out: &Path) -> Result<Vec<PathBuf>, String> {
        let cache = shared_dir(out).join("emulated");
        fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
        let object = |unit: &Unit| cache.join(format!("{}-{:016x}.o", unit.symbol, self.fingerprint(unit)));
        let objects: Vec<PathBuf> = units.iter().map(object).collect();
        let mut missing: Vec<_> =
            units.iter().zip(&objects).filter(|(_, object)| !object.is_file()).collect();
        // The long ones first, so that none of them is left alone at the end.
        missing.sort_by_key(|(unit, _)| Reverse(fs::metadata(&unit.source).map_or(0, |m| m.len())));
        // An error in a header is one of every unit: the first is enough.
        let failed = AtomicBool::new(false);
        run_all(&missing, |(unit, object)| {
            if failed.load(Relaxed) {
                return Ok(());
            }
            self.compile(unit, object, out).inspect_err(|_| failed.store(true, Relaxed))
        })?;
        Ok(objects)
    }

    /// A hash of everything that goes into the object: builds of all profiles share objects in the
    /// target directory.
    fn fingerprint(&self, unit: &Unit) -> u64 {
        let mut hash = DefaultHasher::new();
        (&self.identity, &unit.flags, wrapper(unit)).hash(&mut hash);
        let (mut seen, mut pending) =
            (BTreeSet::new(), vec![unit.source.clone(), format!("{HEADERS}/{TABLE_HEADER}")]);
        while let Some(path) = pending.pop() {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            text.hash(&mut hash);
            for name in includes(&text) {
                for dir in ["kernels", HEADERS, &format!("{HEADERS}/emulated")] {
                    let path = format!("{dir}/{name}");
                    if seen.insert(path.clone()) {
                        pending.push(path);
                    }
                }
            }
        }
        hash.finish()
    }

    /// Compiles a unit; under another name first, so that an interrupted compile never leaves a
    /// usable-looking object. What the compiler says comes as warnings of the build script.
    fn compile(&self, unit: &Unit, object: &Path, out: &Path) -> Result<(), String> {
        let failed = |why: String| format!("{} does not compile for the emulated device: {why}", unit.source);
        let source = out.join(&unit.symbol).with_extension("cpp");
        fs::write(&source, wrapper(unit)).map_err(|e| failed(e.to_string()))?;
        let mut build = self.build.clone();
        build.flags(&unit.flags).flag(&self.prefix_map).out_dir(out).file(&source).cargo_metadata(false);
        let compiled = build.try_compile_intermediates().map_err(|e| {
            // The command, which follows, is long and says nothing about the kernel.
            failed(e.to_string().split(": \"").next().unwrap_or_default().to_owned())
        })?;
        let prefix = format!("{}-", unit.symbol);
        for entry in fs::read_dir(object.parent().unwrap()).unwrap().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                let _ = fs::remove_file(entry.path());
            }
        }
        // A copy: the two may lie on different file systems.
        let near = object.with_extension("tmp");
        fs::copy(&compiled[0], &near)
            .and_then(|_| fs::rename(&near, object))
            .map_err(|e| failed(e.to_string()))
    }
}

/// Lists the tables of all units: those of the program, and those for tests. The program that
/// includes the file defines the macro `tables!`.
fn tables(units: &[Unit]) -> String {
    let mut text = String::new();
    for (list, dir) in [("KERNELS", "kernels")].into_iter().chain(FOR_TESTS) {
        writeln!(text, "tables! {{ {list}:").unwrap();
        for Unit { source, floatx, checked, symbol, .. } in units.iter().filter(|u| u.source.starts_with(dir))
        {
            let file = Path::new(source).file_name().unwrap().to_str().unwrap();
            writeln!(text, "    {file:?}, {floatx:?}, {checked}, warpsmith_kernels_{symbol};").unwrap();
        }
        text.push_str("}\n");
    }
    text
}
