//! The kernels for the emulated device: every `.cu` file is compiled by the host's C++ compiler once for each `floatX`, plain
//! and instrumented for the checker. Makes a static library, and `emulated_tables.rs`, which lists the tables of kernels in it.
//! Without a C++ compiler there is no emulated device (`cfg(emulated)`), which says so when it is asked for.

use std::collections::VecDeque;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;
use std::thread;

const FLAGS: &str = "-std=c++17 -fPIC -fno-exceptions -fno-rtti -fno-threadsafe-statics -fno-strict-aliasing \
                     -ffp-contract=off -w -DWARPSMITH_EMULATED -I. -Ikernels";
/// With names and lines for messages.
const PLAIN_FLAGS: &str = "-O2 -g1";
/// Every access calls the checker, which takes most of the time: more optimisation would only make the build longer.
const CHECKED_FLAGS: &str = "-O1 -g -fsanitize=thread";
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

/// The kernel files in a directory, sorted.
fn sources(dir: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> = names.filter(|n| n.ends_with(".cu")).map(|n| format!("{dir}/{n}")).collect();
    found.sort();
    found
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
    let pending = Mutex::new(units.iter().collect::<VecDeque<_>>());
    let workers = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let Some(unit) = pending.lock().unwrap().pop_front() else { break };
                    compile(compiler, unit, out);
                }
            });
        }
    });
    units.iter().map(|unit| out.join(&unit.symbol).with_extension("o")).collect()
}

/// Compiles a unit, unless its object is newer than all it was made from and was made by the same command.
fn compile(compiler: &str, unit: &Unit, out: &Path) {
    let path = |extension: &str| out.join(&unit.symbol).with_extension(extension);
    let (wrapper_path, object, command_path) = (path("cpp"), path("o"), path("command"));
    let root = env::var("CARGO_MANIFEST_DIR").unwrap();
    let wrapper = wrapper(unit);
    let command = format!("{compiler} {} -ffile-prefix-map={root}/= {wrapper}", unit.flags.join(" "));
    if fs::read_to_string(&command_path).is_ok_and(|old| old == command) && is_current(&object, &path("d")) {
        return;
    }
    fs::write(&wrapper_path, &wrapper).unwrap();
    let result = Command::new(compiler)
        .args(&unit.flags)
        .arg(format!("-ffile-prefix-map={root}/="))
        .args(["-MMD", "-c", "-o"])
        .args([&object, &wrapper_path])
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&result.stderr);
    if !result.status.success() {
        eprintln!("{} does not compile for the emulated device:\n{messages}", unit.source);
        exit(1);
    }
    messages.lines().for_each(|line| println!("cargo:warning={line}"));
    fs::write(&command_path, &command).unwrap();
}

/// Whether `object` is newer than everything that the make rule in `rule` names.
fn is_current(object: &Path, rule: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let (Some(made), Ok(rule)) = (modified(object), fs::read_to_string(rule)) else { return false };
    let Some((_, inputs)) = rule.split_once(": ") else { return false };
    let mut inputs = inputs.split_whitespace().filter(|word| *word != "\\");
    inputs.all(|input| modified(Path::new(input)).is_some_and(|m| m < made))
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
