//! Parsers of values, so that a bad one is refused where it was typed. Each error names what was
//! expected and what was found; the caller puts the flag in front. Flags with a few named values
//! use clap's enums instead.

use crate::device::cuda::AUTO;
use crate::device::open::{DeviceName, DtypeChoice};
use crate::parallel::environment::MAX_PROCESSES;
use crate::roofline::gpu::Gpu;
use crate::tensor::{Dtype, Stored};
use clap::ValueEnum;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// Numbers above this are typing errors; the product of any two below it fits into 64 bits.
const COUNT_MAX: usize = i32::MAX as usize;

/// Most tokens in something large.
pub const TOKENS_MAX: usize = 1_000_000_000_000;

/// Types that a CPU computes in, and that model files store.
pub const CPU_DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// Types that GPUs compute in.
pub const GPU_DTYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

/// A whole number of at least 1.
pub fn count(text: &str) -> Result<usize, String> {
    whole_in(text, 1, COUNT_MAX)
}

/// A whole number of at least 0.
pub fn whole(text: &str) -> Result<usize, String> {
    whole_in(text, 0, COUNT_MAX)
}

/// The URL of a server, without a slash at its end.
pub fn http_url(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    match host {
        Some(host) if !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(url.to_owned())
        }
        _ => Err(expected("a URL such as http://127.0.0.1:5000", text)),
    }
}

/// A number of processes.
pub fn processes(text: &str) -> Result<usize, String> {
    whole_in(text, 1, MAX_PROCESSES)
}

/// Sequences that are decoded at the same time.
pub fn slots(text: &str) -> Result<usize, String> {
    whole_in(text, 1, 1024)
}

/// Sequences that wait.
pub fn queue(text: &str) -> Result<usize, String> {
    whole_in(text, 0, 65536)
}

/// An address to listen at.
pub fn address(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| expected("localhost or an IP address, such as 0.0.0.0", text)),
    }
}

/// A number of tokens in something large, at least 1: whole, or with K, M or B for thousands,
/// millions and billions.
pub fn tokens(text: &str) -> Result<usize, String> {
    let Some((number, unit)) = [("K", 1e3), ("M", 1e6), ("B", 1e9)]
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
    else {
        return whole_in(text, 1, TOKENS_MAX);
    };
    let is_plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let tokens = number.parse::<f64>().ok().filter(|_| is_plain).map(|number| (number * unit).round());
    match tokens {
        Some(tokens) if tokens > TOKENS_MAX as f64 => Err(expected("at most 1000B tokens", text)),
        Some(tokens) if tokens >= 1.0 => Ok(tokens as usize),
        _ => Err(expected("a number of tokens such as 524288, 375M or 0.5B", text)),
    }
}

/// The start of a batch ramp and its length, both in tokens: `32768:4B`.
pub fn batch_ramp(text: &str) -> Result<(usize, usize), String> {
    let wanted = || expected("FROM:TOKENS, such as 32768:4B", text);
    let (from, length) = text.split_once(':').ok_or_else(wanted)?;
    Ok((tokens(from)?, tokens(length)?))
}

/// Steps of a run, from `first` to `last`, which count from 1: `3:5`, or `3` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    pub first: usize,
    pub last: usize,
}

impl Steps {
    pub fn contains(self, step: usize) -> bool {
        (self.first..=self.last).contains(&step)
    }

    /// `step 3` or `steps 3:5`.
    pub fn named(self) -> String {
        let noun = if self.first == self.last { "step" } else { "steps" };
        format!("{noun} {self}")
    }
}

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once(':').unwrap_or((text, text));
        match (count(first), count(last)) {
            (Ok(first), Ok(last)) if first <= last => Ok(Steps { first, last }),
            _ => Err(expected("FIRST:LAST, steps that count from 1 and ascend, such as 3:5", text)),
        }
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Steps { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}:{last}") }
    }
}

/// An interval in steps. 0 is off, and so is llm.c's -1.
pub fn every(text: &str) -> Result<usize, String> {
    if text == "-1" { Ok(0) } else { whole_in(text, 0, COUNT_MAX) }
}

/// A number of steps, or -1 for all the data.
pub fn steps(text: &str) -> Result<i64, String> {
    let found = text.parse::<i64>().ok().filter(|n| (-1..=COUNT_MAX as i64).contains(n));
    found.ok_or_else(|| expected("a whole number of at least 0, or -1 for all the data", text))
}

/// A number of batches, or -1 for all the data.
pub fn batches(text: &str) -> Result<i64, String> {
    let found = text.parse::<i64>().ok().filter(|n| *n == -1 || (1..=COUNT_MAX as i64).contains(n));
    found.ok_or_else(|| expected("a whole number of at least 1, or -1 for all the data", text))
}

/// The one device of `train_gpt2`.
pub fn cpu_device(text: &str) -> Result<DeviceName, String> {
    match DeviceName::from_str(text, false) {
        Ok(DeviceName::Cpu) => Ok(DeviceName::Cpu),
        _ => Err(format!("expected cpu, found {text}; train_gpt2cu trains on GPUs")),
    }
}

/// The devices of `train_gpt2cu`.
pub fn cuda_device(text: &str) -> Result<DeviceName, String> {
    match DeviceName::from_str(text, false) {
        Ok(device) if device != DeviceName::Cpu => Ok(device),
        _ => Err(format!("expected cuda or emulated, found {text}; train_gpt2 trains on CPUs")),
    }
}

/// A GPU whose steps can be predicted.
pub fn gpu(text: &str) -> Result<&'static Gpu, String> {
    Gpu::named(text).map_err(|error| error.to_string())
}

/// A seed of the Mersenne twister.
pub fn seed(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| expected(format!("a whole number from 0 to {}", u32::MAX), text))
}

/// A seed of our own generators.
pub fn long_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| expected(format!("a whole number from 0 to {}", u64::MAX), text))
}

/// A switch as llm.c writes it.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(expected("0 (off) or 1 (on)", text)),
    }
}

/// The passes in which GELU is fused: none, forward, both, or those in which that is faster.
pub fn gelu_fusion(text: &str) -> Result<i32, String> {
    match text {
        "auto" | "-1" => Ok(AUTO),
        "0" | "1" | "2" => Ok(i32::from(text.as_bytes()[0] - b'0')),
        _ => Err(expected("auto (or llm.c's -1), 0, 1 or 2", text)),
    }
}

/// A finite number of at least 0.
pub fn non_negative(text: &str) -> Result<f32, String> {
    real(text).filter(|x| *x >= 0.0).ok_or_else(|| expected("a number of at least 0", text))
}

/// A finite number above 0.
pub fn positive(text: &str) -> Result<f32, String> {
    real(text).filter(|x| *x > 0.0).ok_or_else(|| expected("a number above 0", text))
}

/// A number from 0 to 1.
pub fn fraction(text: &str) -> Result<f32, String> {
    real(text).filter(|x| (0.0..=1.0).contains(x)).ok_or_else(|| expected("a number from 0 to 1", text))
}

/// The decay of a moving average, or a rate of dropout: at least 0 and below 1.
pub fn decay(text: &str) -> Result<f32, String> {
    real(text)
        .filter(|x| (0.0..1.0).contains(x))
        .ok_or_else(|| expected("a number of at least 0 and below 1", text))
}

/// A number above 0 and at most 1.
pub fn probability(text: &str) -> Result<f32, String> {
    real(text)
        .filter(|x| *x > 0.0 && *x <= 1.0)
        .ok_or_else(|| expected("a number above 0 and at most 1", text))
}

/// The prefix of a file's name.
pub fn file_name(text: &str) -> Result<String, String> {
    if text.contains(['/', '\\']) { Err(expected("a name without /", text)) } else { name(text) }
}

/// Text in which \n, \r, \t and \\ mean what they mean in C, because they are hard to type in a
/// shell.
pub fn separator(text: &str) -> Result<String, String> {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        plain.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('\\') => '\\',
                _ => return Err(expected(r"\n, \r, \t or \\ after a backslash", text)),
            },
            _ => c,
        });
    }
    name(&plain)
}

/// Text that is not empty.
pub fn name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("expected a name, found nothing".into()) } else { Ok(text.into()) }
}

/// One of `known`, by our name or another that is in use.
pub fn dtypes(known: &[Dtype]) -> impl TypedValueParser<Value = Dtype> + use<> {
    parsed(named(known))
}

/// A type of a model's matrices in a file: floats, or Q8_0.
pub fn stored() -> impl TypedValueParser<Value = Stored> + use<> {
    let mut names = named(&[Dtype::F32, Dtype::Bf16, Dtype::F16]);
    names.push(PossibleValue::new(Stored::Q8_0.to_string()));
    parsed(names)
}

/// One of `known`, or `auto`.
pub fn dtype_choices(known: &[Dtype]) -> impl TypedValueParser<Value = DtypeChoice> + use<> {
    let mut names = named(known);
    names.push(PossibleValue::new("auto"));
    parsed(names)
}

fn named(known: &[Dtype]) -> Vec<PossibleValue> {
    known.iter().map(|dtype| PossibleValue::new(dtype.name()).aliases(&dtype.names()[1..])).collect()
}

/// A `T` by one of `names`, each of which parses.
fn parsed<T: FromStr<Err = String> + Clone + Send + Sync + 'static>(
    names: Vec<PossibleValue>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names).map(|name| name.parse().expect("one of the names"))
}

fn whole_in(text: &str, min: usize, max: usize) -> Result<usize, String> {
    match text.parse::<i128>() {
        Ok(n) if n >= min as i128 && n <= max as i128 => Ok(n as usize),
        Ok(n) if n > max as i128 => Err(expected(format!("a whole number of at most {max}"), text)),
        _ => Err(expected(format!("a whole number of at least {min}"), text)),
    }
}

/// Reads an `f64` and rounds it, as C does with `atof` and an assignment.
fn real(text: &str) -> Option<f32> {
    text.parse::<f64>().ok().map(|x| x as f32).filter(|x| x.is_finite())
}

fn expected(what: impl Display, found: &str) -> String {
    let found = if found.is_empty() { "nothing" } else { found };
    format!("expected {what}, found {found}")
}
