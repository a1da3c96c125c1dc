//! Kernels for GPUs: nvcc compiles each file for each `floatX` into one compressed fatbin of all
//! architectures, which the library then contains. The kernels of `tests/probes/` have a list of
//! their own.
//!
//! Fatbins are kept in the target directory under the hash of everything that went into them, so
//! that debug, release and test builds share them, and only a changed file is compiled again.
//!
//! The CUDA support of the `cc` crate does not fit: it makes one static library for one list of
//! architectures, not fatbins; it links `cudart`; and a build without nvcc fails.

use crate::nvcc::{self, Nvcc};
use crate::sources::source_text;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The types that `floatX` can be, and the flag that selects each.
const FLOATX: [(&str, Option<&str>); 3] =
    [("bf16", None), ("f16", Some("-DFLOATX_F16")), ("f32", Some("-DFLOATX_F32"))];

/// The name of the root in the lines of kernels (`-lineinfo`), which profilers show. Compilers take
/// it from `PWD` if that leads to where they are, so a program does not tell where it was built.
const HERE: &str = "/proc/self/cwd";

/// Kernel files that are compiled for the same program.
struct List {
    /// Files in `OUT_DIR`: the table of fatbins, and the compiler's output for each.
    table: &'static str,
    log: &'static str,
    /// The directory of the kernel files, from the root of the repository.
    dir: &'static str,
    floatx: &'static [(&'static str, Option<&'static str>)],
}

/// The kernels of the library, and those of `tests/probes/`, which are the same for every `floatX`.
const LISTS: [List; 2] = [
    List { table: "fatbins.rs", log: "ptxas.log", dir: "kernels", floatx: &FLOATX },
    List {
        table: "probe_fatbins.rs",
        log: "probe_ptxas.log",
        dir: "tests/probes/kernels",
        floatx: &[("bf16", None)],
    },
];

/// Writes each list's table of compiled kernels (an empty one without nvcc) and the compiler's log
/// into `out_dir`.
///
/// # Errors
/// If a kernel does not compile, or kernels are required that cannot be compiled.
pub fn build(root: &Path, out_dir: &Path) -> Result<(), String> {
    for name in nvcc::Places::VARIABLES.iter().chain(&["KERNEL_ARCHES"]) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    for list in &LISTS {
        println!("cargo::rerun-if-changed={}", list.dir);
    }
    let arches = nvcc::arches(std::env::var("KERNEL_ARCHES").ok().as_deref())?;
    let found = match arches.0.is_empty() {
        true => Err("it was built with KERNEL_ARCHES=none".to_string()),
        false => nvcc::find(&nvcc::Places::from_env(root), nvcc::identity)?,
    };
    println!("cargo::rustc-check-cfg=cfg(has_kernels, has_gate, has_clocks)");
    match found {
        Ok(nvcc) => {
            compile_all(root, out_dir, &nvcc, &arches)?;
            tell_tests(root, &nvcc, &arches.0);
            Ok(())
        }
        Err(why) => none(out_dir, &why),
    }
}

/// The code in each fatbin, as `--version` shows it: `sm_80`, …, `PTX of compute_80`.
fn contents((arches, ptx): &(Vec<String>, bool)) -> Vec<String> {
    let native = arches.iter().map(|arch| format!("sm_{arch}"));
    native.chain(ptx.then(|| format!("PTX of compute_{}", nvcc::PTX))).collect()
}

/// Sets the cfgs without which tests are ignored: `has_kernels`; `has_gate` if the kernels can also
/// be held to their budget, which takes the pinned nvcc and a disassembler; `has_clocks` if they
/// also have code for sm_90a, on which the clocks depend.
fn tell_tests(root: &Path, nvcc: &Nvcc, arches: &[String]) {
    println!("cargo::rerun-if-changed=dev/requirements-nvcc.txt");
    println!("cargo::rustc-cfg=has_kernels");
    if !nvcc::is_pinned(root, nvcc) || !has_disassembler(&nvcc.path, &root.join(nvcc::OWN)) {
        return;
    }
    println!("cargo::rustc-cfg=has_gate");
    if arches.iter().any(|arch| arch == "90a") {
        println!("cargo::rustc-cfg=has_clocks");
    }
}

/// Whether cuobjdump and nvdisasm are together beside nvcc, on `PATH`, or where `make nvcc` puts
/// them.
fn has_disassembler(nvcc: &Path, own: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = [nvcc, own].into_iter().filter_map(Path::parent).map(Path::to_path_buf);
    let has = |dir: PathBuf| ["cuobjdump", "nvdisasm"].iter().all(|tool| dir.join(tool).is_file());
    beside.chain(std::env::split_paths(&path)).any(has)
}

/// Writes the empty table. The two variables matter only here: if they were always listed, every
/// change of `PATH` would rebuild everything.
fn none(out_dir: &Path, why: &str) -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-env-changed=REQUIRE_KERNELS");
    if std::env::var("REQUIRE_KERNELS").is_ok_and(|v| v != "0" && !v.is_empty()) {
        return Err(format!(
            "REQUIRE_KERNELS is set, but {why}: `make nvcc` installs nvcc 13.0 into build/cuda"
        ));
    }
    LISTS.iter().try_for_each(|list| write_table(out_dir, list, &Compiled::Not(why), &[]))
}

fn compile_all(root: &Path, out_dir: &Path, nvcc: &Nvcc, arches: &(Vec<String>, bool)) -> Result<(), String> {
    let cache = crate::shared_dir(out_dir).join("fatbins");
    fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    let mut jobs = Vec::new();
    for list in &LISTS {
        for file in crate::kernel_files(&root.join(list.dir)) {
            let sources = source_text(root, list.dir, &file)?;
            for &(floatx, define) in list.floatx {
                let mut flags = nvcc::gencode(arches);
                flags.extend(define.map(str::to_string));
                jobs.push(Job::new(list.dir, &file, floatx, flags, &sources, nvcc, &cache));
            }
        }
    }
    let mut missing: Vec<&Job> = jobs.iter().filter(|job| !job.is_done()).collect();
    missing.sort_by_key(|job| std::cmp::Reverse(job.source_bytes));
    crate::run_all(&missing, |job| job.compile(root, nvcc))?;
    let compiled = Compiled::By(nvcc, contents(arches));
    LISTS.iter().try_for_each(|list| write_table(out_dir, list, &compiled, &jobs))
}

/// Whether there are kernels for GPUs.
enum Compiled<'a> {
    /// By which nvcc, and the code in each fatbin.
    By(&'a Nvcc, Vec<String>),
    /// Why not.
    Not(&'a str),
}

/// One call of nvcc.
struct Job {
    dir: &'static str,
    file: String,
    floatx: &'static str,
    flags: Vec<String>,
    fatbin: PathBuf,
    source_bytes: usize,
}

impl Job {
    fn new(
        dir: &'static str,
        file: &str,
        floatx: &'static str,
        arches: Vec<String>,
        sources: &str,
        nvcc: &Nvcc,
        cache: &Path,
    ) -> Job {
        let flags: Vec<String> = nvcc::FLAGS.split(' ').map(str::to_string).chain(arches).collect();
        let mut hash = DefaultHasher::new();
        (&nvcc.identity, &flags, sources, HERE).hash(&mut hash);
        let stem = file.trim_end_matches(".cu");
        let fatbin = cache.join(format!("{stem}-{floatx}-{:016x}.fatbin", hash.finish()));
        Job { dir, file: file.to_string(), floatx, flags, fatbin, source_bytes: sources.len() }
    }

    fn log(&self) -> PathBuf {
        self.fatbin.with_extension("log")
    }

    fn is_done(&self) -> bool {
        self.fatbin.is_file() && self.log().is_file()
    }

    /// Writes the log first and both under temporary names: an interrupted build leaves nothing
    /// that looks done.
    fn compile(&self, root: &Path, nvcc: &Nvcc) -> Result<(), String> {
        let own = |extension: &str| self.fatbin.with_extension(format!("{}.{extension}", std::process::id()));
        let (fatbin, log) = (own("fatbin"), own("log"));
        // Build scripts run in the root.
        let mut command = Command::new(nvcc.path.strip_prefix(root).unwrap_or(&nvcc.path));
        command
            .current_dir(root)
            .env("PWD", HERE)
            .args(&self.flags)
            .arg("-o")
            .arg(&fatbin)
            .arg(format!("{}/{}", self.dir, self.file));
        let output = command.output().map_err(|e| format!("{}: {e}", nvcc.path.display()))?;
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let hint = "KERNEL_ARCHES=none builds without kernels for GPUs";
            return Err(format!(
                "{}/{} ({}) does not compile ({hint}):\n{said}",
                self.dir, self.file, self.floatx
            ));
        }
        let put = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| format!("{}: {e}", to.display()));
        fs::write(&log, said.as_bytes()).map_err(|e| format!("{}: {e}", log.display()))?;
        put(&log, &self.log())?;
        put(&fatbin, &self.fatbin)
    }
}

/// Writes the table that `src/device/cuda/fatbins.rs` or the probes include, and the compiler's
/// output for the gate in `tests/kernel_build/` and that of the probes.
fn write_table(out_dir: &Path, list: &List, compiled: &Compiled, jobs: &[Job]) -> Result<(), String> {
    let (mut table, mut log) = (String::from("pub static FATBINS: &[Fatbin] = &[\n"), String::new());
    for job in jobs.iter().filter(|job| job.dir == list.dir) {
        let (file, floatx, path) = (&job.file, job.floatx, &job.fatbin);
        let bytes =
            format!("{{ static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!({path:?})); &IMAGE.0 }}");
        println!("cargo::rerun-if-changed={}", path.display());
        let _ = writeln!(table, "    Fatbin {{ file: {file:?}, floatx: {floatx:?}, image: {bytes} }},");
        let said = fs::read_to_string(job.log()).map_err(|e| format!("{}: {e}", job.log().display()))?;
        let _ = write!(log, "# {file} {floatx}\n{said}");
    }
    let (version, contents, why) = match compiled {
        Compiled::By(nvcc, contents) => (nvcc.version, &contents[..], ""),
        Compiled::Not(why) => ((0, 0), &[][..], *why),
    };
    let own = nvcc::OWN;
    let _ = writeln!(table, "];\npub const NVCC_VERSION: (u32, u32) = {version:?};");
    // The probes use only some of these.
    for (name, kind, value) in [
        ("CONTENTS", "&[&str]", format!("&{contents:?}")),
        ("OWN_NVCC", "&str", format!("{own:?}")),
        ("WHY_NONE", "&str", format!("{why:?}")),
    ] {
        let _ = writeln!(table, "#[allow(dead_code)]\npub const {name}: {kind} = {value};");
    }
    let write = |name: &str, text: &str| {
        let path = out_dir.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))
    };
    write(list.table, &table)?;
    write(list.log, &log)
}
