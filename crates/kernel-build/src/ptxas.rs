//! The output of `ptxas -v` about compiled kernels, and what of it is not acceptable.

/// The resources of one kernel on one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Relative to `kernels/`.
    pub file: String,
    pub floatx: String,
    /// `sm_90a`
    pub arch: String,
    pub kernel: String,
    pub registers: usize,
    /// Bytes of local memory: variables, and spilled registers.
    pub stack: usize,
    pub spill_stores: usize,
    pub spill_loads: usize,
    /// Bytes of static shared memory.
    pub shared: usize,
}

/// The contents of a build's `ptxas.log`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub kernels: Vec<Usage>,
    /// Warnings, and remarks about lost performance, with the file and `floatX` they belong to.
    pub warnings: Vec<String>,
}

/// Reads the log: for each file a line `# layernorm.cu bf16`, then the output of nvcc.
pub fn parse(log: &str) -> Report {
    let mut report = Report::default();
    let (mut file, mut floatx) = ("", "");
    for line in log.lines() {
        if let Some((name, x)) = line.strip_prefix("# ").and_then(|header| header.split_once(' ')) {
            (file, floatx) = (name, x);
        } else if let Some((kernel, arch)) = entry(line) {
            let [file, floatx, arch, kernel] = [file, floatx, arch, kernel].map(str::to_string);
            let nothing = Usage {
                file,
                floatx,
                arch,
                kernel,
                registers: 0,
                stack: 0,
                spill_stores: 0,
                spill_loads: 0,
                shared: 0,
            };
            report.kernels.push(nothing);
        } else if is_warning(line) {
            let warning = format!("{file} {floatx}: {}", line.trim());
            if !report.warnings.contains(&warning) {
                report.warnings.push(warning);
            }
        } else if let Some(usage) = report.kernels.last_mut() {
            add(usage, line);
        }
    }
    report
}

/// Whether a line is a warning of nvcc, or a remark of ptxas that a kernel is slower than it looks.
fn is_warning(line: &str) -> bool {
    let warning = line.contains("warning") && !line.starts_with("Remark: ");
    warning || line.contains("Performance Loss") || line.contains("(C75")
}

/// Name and architecture in "ptxas info    : Compiling entry function 'NAME' for 'sm_80'".
fn entry(line: &str) -> Option<(&str, &str)> {
    let mut quoted = line.split_once("Compiling entry function ")?.1.split('\'');
    Some((quoted.nth(1)?, quoted.nth(1)?))
}

/// Reads "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", about the kernel or
/// a function it calls, and "ptxas info    : Used 11 registers, used 1 barriers, 128 bytes smem".
fn add(usage: &mut Usage, line: &str) {
    for part in line.rsplit(": ").next().unwrap_or(line).split(", ") {
        let mut words = part.split_whitespace();
        let (number, what) = match words.next() {
            Some("Used") => (words.next(), words.next().unwrap_or_default().to_string()),
            first => (first, words.collect::<Vec<_>>().join(" ")),
        };
        let Some(number) = number.and_then(|n| n.parse::<usize>().ok()) else { continue };
        match what.as_str() {
            "registers" => usage.registers = number,
            "bytes stack frame" | "bytes cumulative stack size" | "bytes lmem" => {
                usage.stack = usage.stack.max(number)
            }
            "bytes spill stores" => usage.spill_stores += number,
            "bytes spill loads" => usage.spill_loads += number,
            "bytes smem" => usage.shared = number,
            _ => {}
        }
    }
}

/// Returns a line for each fault. `files` are the kernel files, `arches` and `floatx` what each was
/// compiled for.
pub fn faults(report: &Report, files: &[&str], floatx: &[&str], arches: &[&str]) -> Vec<String> {
    let mut faults = report.warnings.clone();
    for u in &report.kernels {
        let name = format!("{} in {} ({}, {})", u.kernel, u.file, u.floatx, u.arch);
        if u.spill_stores + u.spill_loads > 0 {
            let (stores, loads) = (u.spill_stores, u.spill_loads);
            faults.push(format!("{name} spills registers: {stores} bytes of stores, {loads} of loads"));
        } else if u.stack > 0 {
            faults.push(format!("{name} uses {} bytes of local memory", u.stack));
        }
        if u.registers == 0 {
            faults.push(format!("{name}: registers are not reported; has the compiler's log changed?"));
        }
    }
    for file in files {
        for x in floatx {
            faults.extend(missing(report, file, x, arches));
        }
    }
    faults
}

/// Reports kernels that exist on some architecture but not on all.
fn missing(report: &Report, file: &str, floatx: &str, arches: &[&str]) -> Vec<String> {
    let here = |u: &&Usage| u.file == file && u.floatx == floatx;
    let mut names: Vec<&str> = report.kernels.iter().filter(here).map(|u| u.kernel.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return vec![format!("{file} ({floatx}): no kernel was compiled")];
    }
    let has = |kernel: &str, arch: &str| {
        report
            .kernels
            .iter()
            .filter(here)
            .any(|u| u.kernel == kernel && u.arch.strip_prefix("sm_") == Some(arch))
    };
    let pairs = names.iter().flat_map(|kernel| arches.iter().map(move |arch| (*kernel, *arch)));
    let lacking = pairs.filter(|(kernel, arch)| !has(kernel, arch));
    lacking
        .map(|(kernel, arch)| format!("{kernel} in {file} ({floatx}): not compiled for sm_{arch}"))
        .collect()
}
