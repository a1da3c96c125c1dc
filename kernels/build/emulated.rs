//! The kernels for the emulated device: every `.cu` file is compiled by the host's C++ compiler once for each `floatX`, plain
//! and instrumented for the checker. Makes a static library, and `tables.rs`, which lists the tables of kernels in it.
//! Without a C++ compiler there is no emulated device (`cfg(emulated)`), which says so when it is asked for.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const FLAGS: &str = "-std=c++17 -fPIC -fno-exceptions -fno-rtti -fno-threadsafe-statics -fno-strict-aliasing \
                     -ffp-contract=off -w -DWARPSMITH_EMULATED -I. -Ikernels";
/// With names and lines for messages.
const PLAIN_FLAGS: &str = "-O2 -g1";
/// Every access calls the checker, which takes most of the time: more optimisation would only make the build longer. Structs stay
/// whole, as a GPU loads and stores a float2.
const CHECKED_FLAGS: &str = "-O1 -g -fsanitize=thread -fno-tree-sra";
/// What each `floatX` is called in Rust (`Dtype::…`), in symbols, and chosen by.
const FLOATX: [(&str, &str, &str); 3] =
    [("Bf16", "bf16", "-DFLOATX_BF16"), ("F16", "f16", "-DFLOATX_F16"), ("F32", "f32", "-DFLOATX_F32")];
/// Kernels that only test the emulated device, not compiled for every `floatX`.
const SELF_TEST: &str = "tests/emulator";

/// One translation unit: a kernel file for one `floatX`, checked or not.
struct Unit {
    /// Relative to the root of the crate.
    source: String,
    dtype: &'static str,
    checked: bool,
    symbol: String,
    flags: Vec<String>,
}

pub fn build() {
    println!("cargo:rustc-check-cfg=cfg(emulated)");
    println!("cargo:rerun-if-changed={SELF_TEST}");
    println!("cargo:rerun-if-env-changed=CXX");
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let supported = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux")
        && env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64" || arch == "aarch64");
    if !supported || !Command::new(&compiler).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return;
    }
    println!("cargo:rustc-cfg=emulated");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap()).join("emulated");
    fs::create_dir_all(&out).unwrap();
    let units = units();
    let objects = compile_all(&compiler, &units, &out);
    archive(&objects, &out);
    fs::write(out.join("tables.rs"), tables(&units)).unwrap();
}

fn units() -> Vec<Unit> {
    let mut units = Vec::new();
    for (source, dtypes) in sources("kernels")
        .into_iter()
        .map(|s| (s, &FLOATX[..]))
        .chain(sources(SELF_TEST).into_iter().map(|s| (s, &FLOATX[..1])))
    {
        for &(dtype, name, flag) in dtypes {
            for checked in [false, true] {
                let stem = source.trim_end_matches(".cu").replace(['/', '-', '.'], "_");
                let variant = if checked { "checked" } else { "plain" };
                let mut flags: Vec<String> = FLAGS.split_whitespace().map(str::to_owned).collect();
                flags.push(flag.to_owned());
                let more = if checked { CHECKED_FLAGS } else { PLAIN_FLAGS };
                flags.extend(more.split_whitespace().map(str::to_owned));
                units.push(Unit {
                    source: source.clone(),
                    dtype,
                    checked,
                    symbol: format!("{stem}_{name}_{variant}"),
                    flags,
                });
            }
        }
    }
    units
}

/// The kernel files in a directory, as paths from the root of the crate.
fn sources(dir: &str) -> Vec<String> {
    crate::kernel_files(Path::new(dir)).into_iter().map(|name| format!("{dir}/{name}")).collect()
}

/// Name and launch bound of every `extern "C" __global__ void [__launch_bounds__(N…)] name(`.
fn kernels(text: &str) -> Vec<(String, String)> {
    let code: String = text.lines().flat_map(|line| [line.split("//").next().unwrap(), "\n"]).collect();
    let mut found = Vec::new();
    for rest in code.split("extern \"C\" __global__ void").skip(1) {
        let rest = rest.trim_start();
        let (bound, rest) = match rest.strip_prefix("__launch_bounds__(") {
            Some(rest) => {
                let (arguments, rest) = rest.split_once(')').expect("a closed __launch_bounds__");
                (arguments.split(',').next().unwrap(), rest)
            }
            None => ("0", rest),
        };
        let (name, _) = rest.split_once('(').expect("the parameters of a kernel");
        found.push((name.trim().to_owned(), bound.trim().to_owned()));
    }
    found
}

/// The C++ text of a unit. All of a kernel file is in a nameless namespace, so that its inline functions and templates are
/// not merged by the linker with those compiled for another `floatX` or without the checker; the kernels themselves have C
/// names and are renamed.
fn wrapper(unit: &Unit) -> String {
    let Unit { source, symbol, .. } = unit;
    let kernels = kernels(&fs::read_to_string(source).unwrap());
    let mut text = String::from("#include \"kernels/emulated/table.h\"\n");
    for (name, _) in &kernels {
        writeln!(text, "#define {name} {name}_{symbol}").unwrap();
    }
    writeln!(text, "namespace {{\n#include \"{source}\"").unwrap();
    writeln!(text, "constexpr emulated::Kernel table[] = {{").unwrap();
    for (name, bound) in &kernels {
        writeln!(text, "    emulated::Entry<{name}>::kernel(\"{name}\", {bound}),").unwrap();
    }
    writeln!(text, "    {{}}}};\n}}").unwrap();
    writeln!(text, "extern \"C\" const emulated::Kernel* const warpsmith_kernels_{symbol};").unwrap();
    writeln!(text, "const emulated::Kernel* const warpsmith_kernels_{symbol} = table;").unwrap();
    text
}

fn compile_all(compiler: &str, units: &[Unit], out: &Path) -> Vec<PathBuf> {
    let cache = crate::shared_dir(out).join("emulated");
    fs::create_dir_all(&cache).unwrap();
    let version = Command::new(compiler).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    let object =
        |unit: &Unit| cache.join(format!("{}-{:016x}.o", unit.symbol, unit.fingerprint(compiler, &version)));
    let objects: Vec<PathBuf> = units.iter().map(object).collect();
    let mut missing: Vec<_> = units.iter().zip(&objects).filter(|(_, object)| !object.is_file()).collect();
    // The long ones first, so that none of them is left alone at the end.
    missing.sort_by_key(|(unit, _)| Reverse(fs::metadata(&unit.source).map_or(0, |m| m.len())));
    let all = crate::run_all(&missing, |(unit, object)| {
        compile(compiler, unit, object, out);
        Ok(())
    });
    all.expect("a unit that does not compile ends the build");
    objects
}

impl Unit {
    /// A hash of all that goes into the object: builds of every profile share objects in the target directory.
    fn fingerprint(&self, compiler: &str, version: &[u8]) -> u64 {
        let mut hash = DefaultHasher::new();
        (compiler, version, &self.flags, wrapper(self)).hash(&mut hash);
        let (mut seen, mut pending) =
            (BTreeSet::new(), vec![self.source.clone(), "kernels/emulated/table.h".to_owned()]);
        while let Some(path) = pending.pop() {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            text.hash(&mut hash);
            let includes = text.lines().filter_map(|line| line.trim_start().strip_prefix("#include \""));
            for name in includes.filter_map(|rest| rest.split('"').next()) {
                for dir in ["kernels", "kernels/emulated"] {
                    let path = format!("{dir}/{name}");
                    if seen.insert(path.clone()) {
                        pending.push(path);
                    }
                }
            }
        }
        hash.finish()
    }
}

/// Compiles a unit; under another name first, so that nothing half done is taken for an object.
fn compile(compiler: &str, unit: &Unit, object: &Path, out: &Path) {
    let root = env::var("CARGO_MANIFEST_DIR").unwrap();
    let (source, unfinished) =
        (out.join(&unit.symbol).with_extension("cpp"), out.join(&unit.symbol).with_extension("o"));
    fs::write(&source, wrapper(unit)).unwrap();
    let result = Command::new(compiler)
        .args(&unit.flags)
        .arg(format!("-ffile-prefix-map={root}/="))
        .args(["-c", "-o"])
        .args([&unfinished, &source])
        .output()
        .unwrap();
    if !result.status.success() {
        let messages = String::from_utf8_lossy(&result.stderr);
        eprintln!("{} does not compile for the emulated device:\n{messages}", unit.source);
        exit(1);
    }
    let prefix = format!("{}-", unit.symbol);
    for entry in fs::read_dir(object.parent().unwrap()).unwrap().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            let _ = fs::remove_file(entry.path());
        }
    }
    // A copy: the two may lie on different file systems.
    let near = object.with_extension("tmp");
    fs::copy(&unfinished, &near).and_then(|_| fs::rename(&near, object)).unwrap();
}

fn archive(objects: &[PathBuf], out: &Path) {
    let library = out.join("libwarpsmith_emulated.a");
    // ar adds to what is there: kernels that are gone would stay.
    let _ = fs::remove_file(&library);
    let ar = env::var("AR").unwrap_or_else(|_| "ar".to_owned());
    let status = Command::new(&ar).arg("crs").arg(&library).args(objects).status();
    if !status.is_ok_and(|s| s.success()) {
        eprintln!("{ar} could not make {}", library.display());
        exit(1);
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=warpsmith_emulated");
}

/// Declares every unit's table and lists them: those of the kernels, and those that test the emulated device.
fn tables(units: &[Unit]) -> String {
    let mut text = String::from("unsafe extern \"C\" {\n");
    for unit in units {
        writeln!(text, "    static warpsmith_kernels_{}: TablePointer;", unit.symbol).unwrap();
    }
    text.push_str("}\n");
    for (list, of_self_test) in [("KERNELS", false), ("SELF_TEST", true)] {
        writeln!(text, "pub static {list}: &[Table] = &[").unwrap();
        for unit in units.iter().filter(|unit| unit.source.starts_with(SELF_TEST) == of_self_test) {
            let Unit { source, dtype, checked, symbol, .. } = unit;
            let file = Path::new(source).file_name().unwrap().to_str().unwrap();
            writeln!(
                text,
                "    Table {{ file: {file:?}, dtype: Dtype::{dtype}, checked: {checked}, \
                 first: &raw const warpsmith_kernels_{symbol} }},"
            )
            .unwrap();
        }
        text.push_str("];\n");
    }
    text
}
