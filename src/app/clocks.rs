//! `warpsmith roofline --kernel`: the predicted clocks of one kernel.

use crate::app::print;
use crate::device::cuda::fatbins::{self, FATBINS, WHY_NONE};
use crate::device::cuda::launches::launches;
use crate::device::cuda::{disassembler, kernels};
use crate::files;
use crate::roofline::clocks::listing::parse;
use crate::roofline::clocks::machine::Machine;
use crate::roofline::clocks::table::{self, Row};
use crate::roofline::clocks::{self, Kernel, Launched, PARAMETERS_START};
use crate::roofline::gpu::Gpu;
use crate::tensor::Dtype;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::path::Path;

/// File of latencies measured on a GPU, in its directory of records.
const CALIBRATION: &str = "clocks.json";
const ARCH: &str = "90a";

/// Prints the clocks loop by loop, from the machine code in this program, or else the rows of the
/// committed table.
pub fn print_kernel(name: &str, gpu: &Gpu, records: &Path) -> Result<()> {
    ensure!(
        gpu.wgmma,
        "--gpu: expected h200 or h100, because --kernel knows the clocks of sm_90 only, found {}",
        gpu.name
    );
    let rows: Vec<Row> = table::parse(table::TEXT)?.into_iter().filter(|row| row.kernel == name).collect();
    let spec = kernels().into_iter().find(|spec| spec.name == name).with_context(|| unknown(name))?;
    let (machine, measured) = machine(&records.join(gpu.name).join(CALIBRATION))?;
    match disassembled(spec.file, name, &machine) {
        Ok(kernel) => print(format_args!("{measured}\n{kernel}")),
        Err(why) if rows.is_empty() => bail!("{name}: not in {}, and {why:#}", table::FILE),
        Err(why) => {
            let uncalibrated =
                if measured.starts_with("predicted;") { "; measured latencies are not included" } else { "" };
            print(format_args!(
                "{}: from {}, because {why:#}{uncalibrated}\n{}",
                name,
                table::FILE,
                table::to_text(&rows)
            ))
        }
    }
}

/// The machine with its measured latencies, if any, and a line that names their source.
fn machine(calibration: &Path) -> Result<(Machine, String)> {
    let mut machine = Machine::default();
    if !calibration.exists() {
        return Ok((
            machine,
            "predicted from published and estimated latencies; nothing measured".to_string(),
        ));
    }
    let fault = || calibration.display().to_string();
    let text = files::read_text(calibration, files::TEXT_BYTES)?;
    machine.calibrate(&text).with_context(fault)?;
    Ok((machine, format!("predicted; latencies measured in {}", calibration.display())))
}

fn disassembled(file: &str, name: &str, machine: &Machine) -> Result<Kernel> {
    let fatbin = fatbins::find(FATBINS, file, Dtype::Bf16);
    let fatbin = fatbin.with_context(|| format!("this program has no kernels for GPUs: {WHY_NONE}"))?;
    let tool = disassembler::find_own().map_err(|why| anyhow!(why))?;
    let copy = std::env::temp_dir().join(format!("warpsmith-{}.fatbin", std::process::id()));
    std::fs::write(&copy, fatbin.image).with_context(|| copy.display().to_string())?;
    let text = disassembler::disassemble(&tool, &copy, ARCH);
    // A copy that cannot be removed does no harm.
    let _ = std::fs::remove_file(&copy);
    let listings = parse(&text.map_err(|why| anyhow!(why))?);
    let listing = listings.iter().find(|listing| listing.kernel == name);
    let listing = listing.with_context(|| format!("this program has no kernels for sm_{ARCH}"))?;
    let launches = launches(Dtype::Bf16)?;
    let (spec, launch) = launches.get(name).with_context(|| format!("{name} is not launched for bf16"))?;
    let parameters = spec.parameters(PARAMETERS_START).into_iter().map(|p| (p.address, p.name, p.is_pointer));
    let launched = Launched::new(launch.threads, launch.shared_bytes, parameters);
    clocks::analyze(listing, &launched, machine)
}

/// The error for an unknown kernel, with the kernels of the most similar names.
fn unknown(name: &str) -> String {
    const NEAR: usize = 5;
    let mut names: Vec<&str> = kernels().into_iter().map(|spec| spec.name).collect();
    names.sort_by_key(|other| std::cmp::Reverse(similarity(name, other)));
    format!("--kernel: expected a kernel such as {}, found {name}", names[..NEAR].join(", "))
}

/// Similarity of two names in thousandths: the pairs of letters that they share, over all pairs
/// (Dice's coefficient).
fn similarity(a: &str, b: &str) -> usize {
    let pairs = |text: &str| text.as_bytes().windows(2).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (ours, mut theirs) = (pairs(a), pairs(b));
    let all = ours.len() + theirs.len();
    let found = ours.iter().filter(|&pair| {
        let at = theirs.iter().position(|other| other == pair);
        at.map(|at| theirs.swap_remove(at)).is_some()
    });
    2000 * found.count() / all.max(1)
}
