//! Tools, budget and machine code for the gate on the shipped kernels and for its mutants.

use kernel_build::budget::{self, Budget};
use kernel_build::nvcc::{self, Nvcc, Places};
use kernel_build::sass::{self, Code};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use warpsmith::device::cuda::disassembler;
use warpsmith::roofline::clocks::listing;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The compiler that made the kernels; the build script finds it the same way.
pub fn nvcc() -> Nvcc {
    nvcc::find(&Places::from_env(root()), nvcc::identity).unwrap().unwrap()
}

pub fn cuobjdump() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    disassembler::find(&nvcc().path, &path, &root().join(nvcc::OWN)).unwrap_or_else(|e| panic!("{e}"))
}

pub fn budget() -> Result<Budget, String> {
    let text = std::fs::read_to_string(root().join(budget::FILE));
    budget::parse(&text.map_err(|e| format!("{}: {e}", budget::FILE))?)
}

/// Counts the instructions of images (file, `floatX`, bytes) for these architectures.
pub fn disassemble(images: &[(&str, &str, &[u8])], arches: &[&str]) -> Vec<Code> {
    let tool = cuobjdump();
    let identity = nvcc::identity(&tool).unwrap();
    let mut jobs: Vec<_> =
        images.iter().flat_map(|image| arches.iter().map(move |arch| (image, *arch))).collect();
    jobs.sort_by_key(|((.., bytes), _)| std::cmp::Reverse(bytes.len()));
    let (next, code) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(&(&(file, floatx, bytes), arch)) = jobs.get(next.fetch_add(1, Relaxed)) {
            let mut hash = DefaultHasher::new();
            // The rules for counting are part of the key.
            (file, floatx, bytes, arch, &identity, sass::SOURCE).hash(&mut hash);
            let kept = format!("{}/{:016x}.sass.json", env!("CARGO_TARGET_TMPDIR"), hash.finish());
            let kernels = read_code(&kept, file, floatx, arch).unwrap_or_else(|| {
                let mut image = tempfile::NamedTempFile::new().unwrap();
                image.write_all(bytes).unwrap();
                let text =
                    disassembler::disassemble(&tool, image.path(), arch).unwrap_or_else(|e| panic!("{e}"));
                let kernels = read_listing(&text, file, floatx);
                write_code(&kept, &kernels);
                kernels
            });
            assert!(!kernels.is_empty(), "{file} ({floatx}, sm_{arch}): no kernel was disassembled");
            code.lock().unwrap().extend(kernels);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len()) {
            scope.spawn(work);
        }
    });
    let mut code = code.into_inner().unwrap();
    code.sort_by(|a, b| {
        (&a.file, &a.kernel, &a.floatx, &a.arch).cmp(&(&b.file, &b.kernel, &b.floatx, &b.arch))
    });
    code
}

/// Counts the instructions that `cuobjdump -sass` printed of one file's kernels.
pub fn read_listing(text: &str, file: &str, floatx: &str) -> Vec<Code> {
    let count = |kernel: listing::Listing| {
        let [file, floatx] = [file, floatx].map(str::to_string);
        let mut code = Code { file, floatx, arch: kernel.arch, kernel: kernel.kernel, ..Code::default() };
        kernel.instructions.iter().for_each(|i| code.count(i.name(), i.bits()));
        code
    };
    listing::parse(text).into_iter().map(count).collect()
}

/// Kernel, instructions, local accesses, counts.
type Kept = (String, usize, usize, BTreeMap<String, usize>);

/// Keeps the counts of one file: disassembling all files takes half a minute.
fn write_code(path: &str, kernels: &[Code]) {
    let kept: Vec<_> = kernels.iter().map(|c| (&c.kernel, c.instructions, c.local, &c.counts)).collect();
    std::fs::write(path, serde_json::to_string(&kept).unwrap()).unwrap();
}

/// The counts that an earlier run kept. A truncated file does not parse.
fn read_code(path: &str, file: &str, floatx: &str, arch: &str) -> Option<Vec<Code>> {
    let kept: Vec<Kept> = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    let code = |(kernel, instructions, local, counts)| {
        let [file, floatx, arch] = [file.to_string(), floatx.to_string(), format!("sm_{arch}")];
        Code { file, floatx, arch, kernel, instructions, local, counts }
    };
    Some(kept.into_iter().map(code).collect())
}

/// Prints the most that a kernel needs on any architecture, for each `floatX`.
pub fn print_table(found: &Budget) {
    let mut rows: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    for ((file, kernel, _), numbers) in found {
        let most =
            |what| numbers.iter().filter(|((w, _), _)| w == what).map(|(_, n)| *n).max().unwrap_or_default();
        let (registers, shared) = (most(budget::REGISTERS), most(budget::SHARED));
        rows.entry((file, kernel)).or_default().push(format!("{registers} | {shared}"));
    }
    println!("| kernel | registers bf16 | shared bytes | f16 | | f32 | |\n|---|--:|--:|--:|--:|--:|--:|");
    for ((_, kernel), cells) in rows {
        println!("| {kernel} | {} |", cells.join(" | "));
    }
}
