//! One parser for each sort of value, so that a bad one is refused where it was typed. Each returns what was
//! expected and what was found; the caller puts the flag in front.

use crate::device::cuda::{AUTO, MatmulChoice};
use crate::device::open::{DeviceName, DtypeChoice};
use crate::roofline::gpu::Gpu;
use crate::tensor::Dtype;
use std::fmt::Display;

/// Numbers above this are typing errors; anything below can be multiplied by another of its kind in 64 bits.
const COUNT_MAX: usize = i32::MAX as usize;

/// A whole number from 1.
pub fn count(text: &str) -> Result<usize, String> {
    whole_in(text, 1, COUNT_MAX)
}

/// A whole number from 0.
pub fn whole(text: &str) -> Result<usize, String> {
    whole_in(text, 0, COUNT_MAX)
}

/// The number of tokens in something large, from 1 to a million million.
pub fn tokens(text: &str) -> Result<usize, String> {
    whole_in(text, 1, 1_000_000_000_000)
}

/// "Every so many steps": 0 is off, and so is llm.c's -1.
pub fn every(text: &str) -> Result<usize, String> {
    if text == "-1" { Ok(0) } else { whole_in(text, 0, COUNT_MAX) }
}

/// A number of steps, or -1 for as many as the data gives.
pub fn steps(text: &str) -> Result<i64, String> {
    let found = text.parse::<i64>().ok().filter(|n| (-1..=COUNT_MAX as i64).contains(n));
    found.ok_or_else(|| expected("a whole number of at least 0, or -1 for all the data", text))
}

/// A number of batches, or -1 for as many as the data gives.
pub fn batches(text: &str) -> Result<i64, String> {
    let found = text.parse::<i64>().ok().filter(|n| *n == -1 || (1..=COUNT_MAX as i64).contains(n));
    found.ok_or_else(|| expected("a whole number of at least 1, or -1 for all the data", text))
}

/// The one device of `train_gpt2`.
pub fn cpu_device(text: &str) -> Result<DeviceName, String> {
    match device(text) {
        Ok(DeviceName::Cpu) => Ok(DeviceName::Cpu),
        _ => Err(format!("expected cpu, found {text}; it is train_gpt2cu that trains on GPUs")),
    }
}

/// The devices of `train_gpt2cu`.
pub fn cuda_device(text: &str) -> Result<DeviceName, String> {
    match device(text) {
        Ok(device) if device != DeviceName::Cpu => Ok(device),
        _ => Err(format!("expected cuda or emulated, found {text}; it is train_gpt2 that trains on CPUs")),
    }
}

/// Any device.
pub fn device(text: &str) -> Result<DeviceName, String> {
    match text {
        "cpu" => Ok(DeviceName::Cpu),
        "cuda" => Ok(DeviceName::Cuda),
        "emulated" => Ok(DeviceName::Emulated),
        _ => Err(expected("cpu, cuda or emulated", text)),
    }
}

/// Whose matrix products to use.
pub fn matmul(text: &str) -> Result<MatmulChoice, String> {
    match text {
        "fastest" => Ok(MatmulChoice::Fastest),
        "own" => Ok(MatmulChoice::Own),
        "cublaslt" => Ok(MatmulChoice::Cublaslt),
        _ => Err(expected("fastest, own or cublaslt", text)),
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

/// A switch, as llm.c writes them.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(expected("0 (off) or 1 (on)", text)),
    }
}

/// 0, 1 or 2.
pub fn level2(text: &str) -> Result<usize, String> {
    whole_in(text, 0, 2)
}

/// Fusion of GELU: 0, 1 or 2, or wherever it is faster.
pub fn gelu_fusion(text: &str) -> Result<i32, String> {
    match text {
        "auto" | "-1" => Ok(AUTO),
        "0" | "1" | "2" => Ok(i32::from(text.as_bytes()[0] - b'0')),
        _ => Err(expected("auto (or llm.c's -1), 0, 1 or 2", text)),
    }
}

/// 0 to 3.
pub fn level3(text: &str) -> Result<usize, String> {
    whole_in(text, 0, 3)
}

/// A finite number from 0.
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

/// A number from 0, below 1: the decay of a moving average.
pub fn decay(text: &str) -> Result<f32, String> {
    real(text)
        .filter(|x| (0.0..1.0).contains(x))
        .ok_or_else(|| expected("a number of at least 0 and below 1", text))
}

/// A number above 0, up to 1.
pub fn probability(text: &str) -> Result<f32, String> {
    real(text)
        .filter(|x| *x > 0.0 && *x <= 1.0)
        .ok_or_else(|| expected("a number above 0 and at most 1", text))
}

/// The beginning of a file's name.
pub fn file_name(text: &str) -> Result<String, String> {
    if text.contains(['/', '\\']) { Err(expected("a name without /", text)) } else { name(text) }
}

/// Text in which \n, \r, \t and \\ stand for what they do in C, because a shell makes those hard to type.
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

/// Type of the numbers a model computes with or is stored in, by our name or PyTorch's.
pub fn dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "f32" | "float32" => Ok(Dtype::F32),
        "bf16" | "bfloat16" => Ok(Dtype::Bf16),
        _ => Err(expected("f32 or bf16", text)),
    }
}

/// Type of the numbers on a GPU, by our name or PyTorch's.
pub fn gpu_dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "fp16" | "f16" | "float16" => Ok(Dtype::F16),
        _ => dtype(text).map_err(|_| expected("bf16, fp16 or f32", text)),
    }
}

/// Type of the numbers in a CPU's matrix products, or `auto`.
pub fn dtype_choice(text: &str) -> Result<DtypeChoice, String> {
    choice(text, dtype, "f32, bf16 or auto")
}

/// Type of the numbers on any device, or `auto`.
pub fn gpu_dtype_choice(text: &str) -> Result<DtypeChoice, String> {
    choice(text, gpu_dtype, "bf16, fp16, f32 or auto")
}

fn choice(text: &str, dtype: fn(&str) -> Result<Dtype, String>, names: &str) -> Result<DtypeChoice, String> {
    match text {
        "auto" => Ok(DtypeChoice::Auto),
        _ => dtype(text).map(DtypeChoice::Fixed).map_err(|_| expected(names, text)),
    }
}

fn whole_in(text: &str, min: usize, max: usize) -> Result<usize, String> {
    match text.parse::<i128>() {
        Ok(n) if n >= min as i128 && n <= max as i128 => Ok(n as usize),
        Ok(n) if n > max as i128 => Err(expected(format!("a whole number of at most {max}"), text)),
        _ => Err(expected(format!("a whole number of at least {min}"), text)),
    }
}

/// Read as `f64` and rounded, which is what `atof` and an assignment do in C.
fn real(text: &str) -> Option<f32> {
    text.parse::<f64>().ok().map(|x| x as f32).filter(|x| x.is_finite())
}

fn expected(what: impl Display, found: &str) -> String {
    let found = if found.is_empty() { "nothing" } else { found };
    format!("expected {what}, found {found}")
}
