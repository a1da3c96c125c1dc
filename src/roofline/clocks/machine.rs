//! A multiprocessor of sm_90: which pipe an instruction takes and for how long, and when its result is there.
//!
//! One table, [`RATES`], with the source of each number. "Guide" is the table of arithmetic throughput in NVIDIA's CUDA C++
//! programming guide for compute capability 9.0 (results a clock and multiprocessor, of which a scheduler has a quarter); "Luo" is
//! the microbenchmarks of Luo et al., arXiv 2402.13499 and 2501.12084, on an H100; "Abdelkhalik" those of arXiv 2208.11174 on an
//! A100; "Jia" those of arXiv 1804.06826 on a V100; "estimate" is nobody's measurement. They are cited from memory, so check one
//! before much depends on it. [`Machine::calibrate`] replaces numbers by what was measured on a GPU.

use super::listing::Instruction;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Units that execute instructions beside each other, one of each for a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pipe {
    Tensor,
    /// Floating point and multiplication, in two halves of 16 lanes.
    Fma,
    /// Integers, comparisons, selections, packed conversions: 16 lanes.
    Alu,
    /// Transcendental functions and conversions: 4 lanes.
    Xu,
    /// Shared memory, shuffles, barriers in memory, and addresses of global memory: a quarter of the multiprocessor's.
    Lsu,
    /// Traffic with memory beyond the multiprocessor's own cache: a quarter of its port.
    Global,
    /// One lane for the warp.
    Uniform,
    /// Branches and the rest, which take an issue slot.
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
    /// Clocks that a warp's instruction keeps its pipe busy. For memory, of 32 bits a thread; for tensor cores, of the shape named
    /// in [`Machine::cost`].
    pub clocks: f64,
    /// Clocks from issue until the result is there, for what a scoreboard counts; the others' stall counts say it.
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

/// All opcodes that shipped kernels are made of. Another is an error, so that it gets its row.
#[rustfmt::skip]
pub const RATES: [Rate; 22] = [
    rate(&["HGMMA"], Pipe::Tensor, 128.0, 0.0,
        "64x256x16 is 262,144 of the 2,048 multiply-adds a clock that the data sheet's peak comes to (Luo: 95 % of it reached)"),
    rate(&["HMMA"], Pipe::Tensor, 6.4, 33.0,
        "16x8x16: 4 clocks at the peak, of which mma.sync reaches 62 % (Luo); ptxas puts 6 clocks between two. Latency: Luo"),
    rate(&["FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2"], Pipe::Fma, 2.0, 0.0,
        "Guide: 128, either half takes them"),
    rate(&["IMAD"], Pipe::Fma, 2.0, 0.0, "Guide: 64, one half takes them"),
    rate(&["IADD3", "IADD", "LOP3", "LEA", "SHF", "ISETP", "FSETP", "FSEL", "SEL", "FMNMX", "PRMT", "MOV", "VIADD", "VIMNMX",
        "VIADDMNMX", "IABS", "P2R", "R2P", "PLOP3", "F2FP", "I2FP", "CS2R", "FCHK", "BMSK", "SGXT", "VABSDIFF", "LOP", "I2IP",
        "HSETP2", "HMNMX2", "HSET2", "FSET"], Pipe::Alu, 2.0, 0.0,
        "Guide: 64. Of F2FP, I2FP, CS2R and FCHK: estimate"),
    rate(&["MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"], Pipe::Xu, 8.0, 18.0,
        "Guide: 16, for conversions that want a scoreboard an estimate. Latency: Abdelkhalik"),
    rate(&["SHFL"], Pipe::Lsu, 4.0, 23.0, "Guide: 32. Latency: Jia"),
    rate(&["LDS", "LDSM", "STS", "ATOMS", "LDL", "STL", "REDS"], Pipe::Lsu, 4.0, 29.0,
        "128 bytes a clock and multiprocessor (H100 white paper), no bank conflicts. Latency: Luo"),
    rate(&["SYNCS", "MATCH", "REDUX"], Pipe::Lsu, 4.0, 29.0, "as shared memory: estimate"),
    rate(&["LDG", "LD"], Pipe::Global, 8.0, 479.0,
        "64 bytes a clock and multiprocessor from L2: estimate. Latency of HBM that is not busy: Luo; 262 if L2 has it"),
    rate(&["LDGSTS"], Pipe::Global, 8.0, 479.0, "as LDG"),
    rate(&["STG", "ST", "RED", "ATOM", "ATOMG"], Pipe::Global, 8.0, 479.0, "as LDG; atomics by their bytes: estimate"),
    rate(&["UTMALDG", "UTMASTG", "UTMACCTL", "UBLKCP", "UTMAPF", "UTMACMDFLUSH"], Pipe::Global, 1.0, 479.0,
        "one thread asks; the bytes go past the scheduler. Estimate"),
    rate(&["LDC"], Pipe::Other, 2.0, 30.0, "estimate"),
    rate(&["S2R", "S2UR"], Pipe::Other, 2.0, 25.0, "estimate"),
    rate(&["R2UR", "VOTE", "VOTEU", "ELECT"], Pipe::Alu, 2.0, 12.0, "Guide: 64 votes. The others: estimate"),
    rate(&["ULDC", "UMOV", "UIADD3", "UIMAD", "ULEA", "ULOP3", "USHF", "UISETP", "USEL", "UPLOP3", "UPRMT", "UP2UR", "UR2UP", "UFLO",
        "UPOPC", "UBREV", "UBMSK", "USGXT", "R2URX", "UF2FP"], Pipe::Uniform, 2.0, 12.0,
        "ptxas puts 2 clocks between two: estimate"),
    rate(&["BAR"], Pipe::Other, 2.0, 20.0, "once the last warp is there: estimate"),
    rate(&["MEMBAR", "FENCE", "ERRBAR", "CCTL"], Pipe::Other, 2.0, 30.0, "estimate"),
    rate(&["USETMAXREG", "ACQBULK", "NANOSLEEP"], Pipe::Other, 2.0, 30.0, "estimate"),
    rate(&["BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "ENDCOLLECTIVE", "KILL", "BPT", "YIELD"],
        Pipe::Other, 2.0, 12.0, "their stall counts say it; a jump itself is an estimate of nothing more"),
    rate(&["NOP", "WARPGROUP", "DEPBAR", "LDGDEPBAR", "ARRIVES", "PMTRIG", "SETCTAID", "LEPC", "RPCMOV", "BMOV", "GETLMEMBASE"],
        Pipe::Other, 1.0, 12.0, "an issue slot; what they wait for is modelled"),
];

/// Parameters that every row of a matrix is combined with: a multiprocessor reads them again and again, so they are in a cache. Half
/// in the first, which answers in 41 clocks, half in the second, in 262 (Luo); that it is half is an estimate.
pub const CACHED: [&str; 2] = ["bias", "weight"];
pub const CACHED_LATENCY: f64 = (41.0 + 262.0) / 2.0;

/// Clocks after which a scoreboard that counts reads of operands is released. An estimate: address and data have left the registers.
pub const READ_CLOCKS: f64 = 16.0;

/// Clocks of work that may stand before the pipes that have a queue (all memory, and transcendental functions): four shuffles, two
/// transcendental functions. An estimate; only bursts notice.
pub const QUEUE_CLOCKS: f64 = 16.0;

/// Clocks of work that may be under way beyond the multiprocessor for each scheduler before it takes no more: 4 KiB. An estimate.
pub const FLIGHT_CLOCKS: f64 = 256.0;

/// The cost of an instruction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub pipe: Pipe,
    /// Clocks of that pipe, for one warp.
    pub clocks: f64,
    /// Clocks of the pipe of addresses too, where [`Pipe::Global`] is the first.
    pub lsu_clocks: f64,
    /// It takes one half of [`Pipe::Fma`] and not either.
    pub one_half: bool,
    pub latency: f64,
}

/// The table as it holds for a GPU.
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
    /// Takes over what was measured: `{"LDG": {"latency": 610}, "MUFU": {"clocks": 8}}`, by the first opcode of a row.
    ///
    /// # Errors
    /// If it is not such a text, or names no row.
    pub fn calibrate(&mut self, json: &str) -> Result<()> {
        let measured: BTreeMap<String, Measured> =
            serde_json::from_str(json).context("expected clocks and latencies by opcode")?;
        for (name, measured) in measured {
            let row = self.rates.iter_mut().find(|rate| rate.names[0] == name);
            let row = row.with_context(|| format!("{name}: expected the first opcode of a row of RATES"))?;
            let numbers = [measured.clocks, measured.latency];
            let sound = numbers.iter().flatten().all(|n| n.is_finite() && *n >= 0.0);
            ensure!(sound, "{name}: expected clocks of 0 or more, found {numbers:?}");
            row.clocks = measured.clocks.unwrap_or(row.clocks);
            row.latency = measured.latency.unwrap_or(row.latency);
        }
        Ok(())
    }

    fn rate(&self, name: &str) -> Option<&Rate> {
        self.rates.iter().find(|rate| rate.names.contains(&name))
    }

    /// The cost of a warp's instruction. Every thread is counted as active.
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

/// Multiply-adds of a tensor instruction beside those that the table's clocks are of: `HGMMA.64x256x16`, `HMMA.16816`. Numbers of
/// 32 bits take twice as long.
fn tensor_work(instruction: &Instruction) -> Result<f64> {
    let fault = || format!("{}: the shape of a product is not known", instruction.opcode);
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

/// `LDSM.16.M88.4` moves four.
fn matrices(instruction: &Instruction) -> u32 {
    instruction
        .opcode
        .rsplit('.')
        .next()
        .and_then(|n| n.parse().ok())
        .filter(|n| [2, 4].contains(n))
        .unwrap_or(1)
}
