//! An SM of sm_90: the pipe that an instruction takes, for how long, and when its result is
//! available.
//!
//! All numbers are in one table, [`RATES`], each with its source. "Guide" is the table of
//! arithmetic throughput in NVIDIA's CUDA C++ programming guide for compute capability 9.0 (results
//! per clock and SM, a quarter of which belongs to each scheduler); "Luo" is the microbenchmarks of
//! Luo et al., arXiv 2402.13499 and 2501.12084, on an H100; "Abdelkhalik" those of arXiv 2208.11174
//! on an A100; "Jia" those of arXiv 1804.06826 on a V100; an "estimate" was never measured. They
//! are cited from memory, so check a number before much depends on it. [`Machine::calibrate`]
//! replaces numbers by GPU measurements.

use super::listing::Instruction;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Units that execute instructions in parallel, one of each per scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pipe {
    Tensor,
    /// Floating point and multiplication, in two halves of 16 lanes.
    Fma,
    /// Integers, comparisons, selections, packed conversions: 16 lanes.
    Alu,
    /// Transcendental functions and conversions: 4 lanes.
    Xu,
    /// Shared memory, shuffles, barriers in memory, and addresses of global memory: a quarter of
    /// the SM's.
    Lsu,
    /// Traffic with memory beyond the SM's own cache: a quarter of its port.
    Global,
    /// One lane per warp.
    Uniform,
    /// Branches and everything else that only takes an issue slot.
    Other,
}

impl Pipe {
    pub const ALL: [Pipe; 8] =
        [Pipe::Tensor, Pipe::Fma, Pipe::Alu, Pipe::Xu, Pipe::Lsu, Pipe::Global, Pipe::Uniform, Pipe::Other];

    pub fn name(self) -> &'static str {
        match self {
            Pipe::Tensor => "tensor",
            Pipe::Fma => "fma",
            Pipe::Alu => "alu",
            Pipe::Xu => "xu",
            Pipe::Lsu => "lsu",
            Pipe::Global => "global",
            Pipe::Uniform => "uniform",
            Pipe::Other => "other",
        }
    }
}

/// The time of an instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Opcodes without modifiers; a calibration names the first.
    pub names: &'static [&'static str],
    pub pipe: Pipe,
    /// Clocks that a warp's instruction keeps its pipe busy. For memory it is per 32 bits per
    /// thread; for tensor cores it is for the shape named in [`Machine::cost`].
    pub clocks: f64,
    /// Clocks from issue to result for instructions tracked by a scoreboard; stall counts cover the
    /// others.
    pub latency: f64,
    pub source: &'static str,
}

const fn rate(
    names: &'static [&'static str],
    pipe: Pipe,
    clocks: f64,
    latency: f64,
    source: &'static str,
) -> Rate {
    Rate { names, pipe, clocks, latency, source }
}

/// All opcodes in shipped kernels. An unknown opcode is an error, so that it gets a row.
#[rustfmt::skip]
pub const RATES: [Rate; 22] = [
    rate(&["HGMMA"], Pipe::Tensor, 128.0, 0.0,
        "64x256x16 is 262,144 multiply-adds; the data sheet's peak is 2,048 per clock (Luo: 95 % of it reached)"),
    rate(&["HMMA"], Pipe::Tensor, 6.4, 33.0,
        "16x8x16: 4 clocks at the peak, and mma.sync reaches 62 % of it (Luo); ptxas puts 6 clocks between two. Latency: Luo"),
    rate(&["FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2"], Pipe::Fma, 2.0, 0.0,
        "Guide: 128, on either half"),
    rate(&["IMAD"], Pipe::Fma, 2.0, 0.0, "Guide: 64, on one half"),
    rate(&["IADD3", "IADD", "LOP3", "LEA", "SHF", "ISETP", "FSETP", "FSEL", "SEL", "FMNMX", "PRMT", "MOV", "VIADD", "VIMNMX", "VIMNMX3",
        "VIADDMNMX", "IABS", "P2R", "R2P", "PLOP3", "F2FP", "I2FP", "CS2R", "FCHK", "BMSK", "SGXT", "VABSDIFF", "LOP", "I2IP",
        "HSETP2", "HMNMX2", "VHMNMX", "HSET2", "FSET"], Pipe::Alu, 2.0, 0.0,
        "Guide: 64. F2FP, I2FP, CS2R and FCHK: estimate"),
    rate(&["MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"], Pipe::Xu, 8.0, 18.0,
        "Guide: 16; estimate for conversions that need a scoreboard. Latency: Abdelkhalik"),
    rate(&["SHFL"], Pipe::Lsu, 4.0, 23.0, "Guide: 32. Latency: Jia"),
    rate(&["LDS", "LDSM", "STS", "STSM", "ATOMS", "LDL", "STL", "REDS"], Pipe::Lsu, 4.0, 29.0,
        "128 bytes per clock and SM (H100 white paper), no bank conflicts. Latency: Luo"),
    rate(&["SYNCS", "MATCH", "REDUX"], Pipe::Lsu, 4.0, 29.0, "as shared memory: estimate"),
    rate(&["LDG", "LD"], Pipe::Global, 8.0, 479.0,
        "64 bytes per clock and SM from L2: estimate. Latency of idle HBM: Luo; 262 on an L2 hit"),
    rate(&["LDGSTS"], Pipe::Global, 8.0, 479.0, "as LDG"),
    rate(&["STG", "ST", "STAS", "RED", "REDG", "ATOM", "ATOMG"], Pipe::Global, 8.0, 479.0, "as LDG; atomics by their bytes: estimate"),
    rate(&["UTMALDG", "UTMASTG", "UTMAREDG", "UTMACCTL", "UBLKCP", "UBLKRED", "UBLKPF", "UTMAPF", "UTMACMDFLUSH"], Pipe::Global, 1.0, 479.0,
        "issued by one thread; the bytes bypass the scheduler. Estimate"),
    rate(&["LDC"], Pipe::Other, 2.0, 30.0, "estimate"),
    rate(&["S2R", "S2UR", "B2R"], Pipe::Other, 2.0, 25.0, "estimate"),
    rate(&["R2UR", "VOTE", "VOTEU", "ELECT"], Pipe::Alu, 2.0, 12.0, "Guide: 64 votes. The others: estimate"),
    rate(&["ULDC", "UMOV", "UIADD3", "UIMAD", "ULEA", "ULOP3", "USHF", "UISETP", "USEL", "UPLOP3", "UPRMT", "UP2UR", "UR2UP", "UFLO",
        "UPOPC", "UBREV", "UBMSK", "USGXT", "R2URX", "UF2FP"], Pipe::Uniform, 2.0, 12.0,
        "ptxas puts 2 clocks between two: estimate"),
    rate(&["BAR", "UCGABAR_ARV", "UCGABAR_WAIT"], Pipe::Other, 2.0, 20.0, "after the last warp arrives: estimate"),
    rate(&["MEMBAR", "FENCE", "ERRBAR", "CGAERRBAR", "CCTL"], Pipe::Other, 2.0, 30.0, "estimate"),
    rate(&["USETMAXREG", "ACQBULK", "PREEXIT", "NANOSLEEP"], Pipe::Other, 2.0, 30.0, "estimate"),
    rate(&["BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "ENDCOLLECTIVE", "KILL", "BPT", "YIELD"],
        Pipe::Other, 2.0, 12.0, "covered by their stall counts; no extra time for the jump itself, an estimate"),
    rate(&["NOP", "WARPGROUP", "DEPBAR", "LDGDEPBAR", "ARRIVES", "PMTRIG", "PREEXIT", "SETCTAID", "LEPC", "RPCMOV", "BMOV", "GETLMEMBASE"],
        Pipe::Other, 1.0, 12.0, "an issue slot; their waits are modeled"),
];

/// Parameters that are combined with every row of a matrix: an SM reads them repeatedly, so they
/// are cached, half of them in L1, which answers in 41 clocks, and half in L2, in 262 (Luo). The
/// half is an estimate.
pub const CACHED: [&str; 2] = ["bias", "weight"];
pub const CACHED_LATENCY: f64 = (41.0 + 262.0) / 2.0;

/// Clocks after which a scoreboard that tracks operand reads is released. An estimate: address and
/// data have left the registers.
pub const READ_CLOCKS: f64 = 16.0;

/// Clocks of work that may queue in front of the pipes that have a queue (all memory, and
/// transcendental functions): four shuffles, two transcendental functions. An estimate that matters
/// only to bursts.
pub const QUEUE_CLOCKS: f64 = 16.0;

/// Clocks of work per scheduler that may be in flight beyond the SM before it accepts no more: 4
/// KiB. An estimate.
pub const FLIGHT_CLOCKS: f64 = 256.0;

/// The cost of an instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub pipe: Pipe,
    /// Clocks of that pipe, for one warp.
    pub clocks: f64,
    /// Clocks on the address pipe too, for instructions of [`Pipe::Global`].
    pub lsu_clocks: f64,
    /// Whether it needs one particular half of [`Pipe::Fma`].
    pub one_half: bool,
    pub latency: f64,
}

/// The table of rates, with a GPU's calibration if there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    rates: Vec<Rate>,
}

impl Default for Machine {
    fn default() -> Self {
        Machine { rates: RATES.to_vec() }
    }
}

/// One row of a calibration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    clocks: Option<f64>,
    latency: Option<f64>,
}

impl Machine {
    /// Applies measurements: `{"LDG": {"latency": 610}, "MUFU": {"clocks": 8}}`, keyed by the first
    /// opcode of a row.
    ///
    /// # Errors
    /// If the text is malformed, or names no row.
    pub fn calibrate(&mut self, json: &str) -> Result<()> {
        let measured: BTreeMap<String, Measured> =
            serde_json::from_str(json).context("expected clocks and latencies by opcode")?;
        for (name, measured) in measured {
            let row = self.rates.iter_mut().find(|rate| rate.names[0] == name);
            let row = row.with_context(|| format!("{name}: expected the first opcode of a row of RATES"))?;
            for n in [measured.clocks, measured.latency].into_iter().flatten() {
                ensure!(n.is_finite() && n >= 0.0, "{name}: expected clocks of 0 or more, found {n}");
            }
            row.clocks = measured.clocks.unwrap_or(row.clocks);
            row.latency = measured.latency.unwrap_or(row.latency);
        }
        Ok(())
    }

    fn rate(&self, name: &str) -> Option<&Rate> {
        self.rates.iter().find(|rate| rate.names.contains(&name))
    }

    /// The cost of a warp's instruction, with every thread active.
    ///
    /// # Errors
    /// If the table does not have the opcode.
    pub fn cost(&self, instruction: &Instruction) -> Result<Cost> {
        let name = instruction.name();
        let rate = self.rate(name).with_context(|| {
            format!("{}: no row of RATES in src/roofline/clocks/machine.rs", instruction.opcode)
        })?;
        let scale = match name {
            "HGMMA" | "HMMA" => tensor_work(instruction)?,
            "LDSM" | "STSM" => f64::from(matrices(instruction)),
            "LDS" | "STS" | "LDG" | "LD" | "STG" | "ST" | "LDGSTS" | "LDL" | "STL" => {
                (f64::from(instruction.bits()) / 32.0).max(1.0)
            }
            _ => 1.0,
        };
        let lsu_clocks = match rate.pipe {
            Pipe::Global if rate.clocks > 1.0 => 4.0 * scale,
            _ => 0.0,
        };
        let one_half = name == "IMAD";
        Ok(Cost { pipe: rate.pipe, clocks: rate.clocks * scale, lsu_clocks, one_half, latency: rate.latency })
    }
}

/// Multiply-adds of a tensor instruction relative to the shape of the table's clocks:
/// `HGMMA.64x256x16`, `HMMA.16816`. 32-bit elements take twice as long.
fn tensor_work(instruction: &Instruction) -> Result<f64> {
    let fault = || format!("{}: unknown MMA shape", instruction.opcode);
    let shape = instruction.opcode.split('.').nth(1).with_context(fault)?;
    let twice = if instruction.has("TF32") { 2.0 } else { 1.0 };
    let share = match shape {
        "16816" => 1.0,
        "1688" => 0.5,
        _ => {
            let dims: Vec<f64> =
                shape.split('x').map(str::parse).collect::<Result<_, _>>().with_context(fault)?;
            dims.iter().product::<f64>() / (64.0 * 256.0 * 16.0)
        }
    };
    Ok(share * twice)
}

/// Number of matrices an `LDSM` or `STSM` moves: four for `LDSM.16.M88.4`.
fn matrices(instruction: &Instruction) -> u32 {
    instruction
        .opcode
        .rsplit('.')
        .next()
        .and_then(|n| n.parse().ok())
        .filter(|n| [2, 4].contains(n))
        .unwrap_or(1)
}
