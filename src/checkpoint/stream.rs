//! Streams tensors between a device and a file or a copy in memory, a few MiB at a time. Restoring
//! needs no full host copy; checkpoints make one if there is room.

use super::digest::Sections;
use crate::config::ModelConfig;
use crate::params::{self, ParamLayout, ParamSpec};
use crate::tensor::{self, Dtype};
use anyhow::{Context, Result, bail};
use half::bf16;
use std::io::{Read, Write};
use std::ops::Range;

/// The kinds of tensor in a checkpoint. All have the layout of
/// [`ParamLayout`](crate::params::ParamLayout).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    Params,
    M,
    V,
    /// Master weights: the parameters in f32, where the model computes in a narrower type.
    Master,
}

impl TensorKind {
    /// Prefix of the names of its tensors.
    fn prefix(self) -> &'static str {
        match self {
            TensorKind::Params => "",
            TensorKind::M => "m.",
            TensorKind::V => "v.",
            TensorKind::Master => "master.",
        }
    }

    /// The tensors of this kind in a file, stored as `dtype` from byte `start` on, those of
    /// parameters that it `holds`.
    pub(super) fn sections(
        self,
        config: &ModelConfig,
        dtype: Dtype,
        start: usize,
        holds: impl Fn(&ParamSpec) -> bool,
    ) -> Sections {
        let (layout, mut end) = (ParamLayout::new(config), start as u64);
        let section = |spec: &ParamSpec| {
            let start = end;
            end += (layout.range(spec.param).len() * dtype.size()) as u64;
            (format!("{}{}", self.prefix(), spec.name), start..end)
        };
        params::all(config).filter(|spec| holds(spec)).map(section).collect()
    }
}

/// Fills a chunk with the elements of a tensor from an index on, widened to f32. Called in
/// ascending order.
pub type Source<'a> = dyn FnMut(TensorKind, usize, &mut [f32]) -> Result<()> + 'a;

/// Takes the elements of a tensor from an index on. Called in ascending order.
pub type Sink<'a> = dyn FnMut(TensorKind, usize, &[f32]) -> Result<()> + 'a;

/// Elements moved at a time: enough for a disk and a bus to run at full speed.
const CHUNK: usize = 1 << 20;

/// Memory for the parameters of a model.
///
/// # Errors
/// If there is not enough.
pub(super) fn zeros(len: usize) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    let reserved = values.try_reserve_exact(len);
    reserved.with_context(|| format!("out of memory: the parameters need {} MiB", (4 * len) >> 20))?;
    values.resize(len, 0.0);
    Ok(values)
}

/// Calls `each` with the start and length of every chunk of these elements.
fn chunks(ranges: &[Range<usize>], mut each: impl FnMut(usize, usize) -> Result<()>) -> Result<()> {
    let starts = |range: &Range<usize>| (range.clone().step_by(CHUNK), range.end);
    ranges
        .iter()
        .map(starts)
        .try_for_each(|(mut starts, end)| starts.try_for_each(|start| each(start, CHUNK.min(end - start))))
}

/// Memory for the largest chunk of these elements.
fn buffer(ranges: &[Range<usize>]) -> Vec<f32> {
    vec![0.0; ranges.iter().map(|range| range.len().min(CHUNK)).max().unwrap_or_default()]
}

/// Writes elements of `kind` as `dtype`.
pub(super) fn write(
    out: &mut dyn Write,
    dtype: Dtype,
    kind: TensorKind,
    ranges: &[Range<usize>],
    source: &mut Source,
) -> Result<()> {
    let mut wide = buffer(ranges);
    let mut writer = FloatWriter::new(out, dtype);
    chunks(ranges, |start, n| {
        source(kind, start, &mut wide[..n])?;
        writer.write(&wide[..n])
    })
}

/// Writes floats as a type, rounded to nearest, ties to even.
pub(super) struct FloatWriter<'a> {
    out: &'a mut dyn Write,
    dtype: Dtype,
    narrow: Vec<u16>,
}

impl<'a> FloatWriter<'a> {
    /// `dtype` is f32, bf16 or fp16.
    pub fn new(out: &'a mut dyn Write, dtype: Dtype) -> Self {
        FloatWriter { out, dtype, narrow: Vec::new() }
    }

    pub fn write(&mut self, values: &[f32]) -> Result<()> {
        if self.dtype == Dtype::F32 {
            return Ok(self.out.write_all(bytemuck::cast_slice(values))?);
        }
        for chunk in values.chunks(CHUNK) {
            self.narrow.resize(chunk.len(), 0);
            tensor::round(&mut self.narrow, chunk, self.dtype);
            self.out.write_all(bytemuck::cast_slice(&self.narrow))?;
        }
        Ok(())
    }
}

/// Reads elements of `kind` into memory, with the calls that [`write`] makes.
pub(super) fn collect(kind: TensorKind, range: Range<usize>, source: &mut Source) -> Result<Vec<f32>> {
    let mut values = vec![0.0; range.len()];
    let first = range.start;
    chunks(&[range], |start, n| source(kind, start, &mut values[start - first..][..n]))?;
    Ok(values)
}

/// Makes the calls of `source` that [`write`] makes.
pub(super) fn ask(kind: TensorKind, ranges: &[Range<usize>], source: &mut Source) -> Result<()> {
    let mut wide = buffer(ranges);
    chunks(ranges, |start, n| source(kind, start, &mut wide[..n]))
}

/// Reads elements of `kind`, stored as `dtype`, f32 or bf16.
pub(super) fn read(
    input: &mut dyn Read,
    dtype: Dtype,
    kind: TensorKind,
    ranges: &[Range<usize>],
    sink: &mut Sink,
) -> Result<()> {
    let mut wide = buffer(ranges);
    let mut narrow = vec![bf16::ZERO; if dtype == Dtype::Bf16 { wide.len() } else { 0 }];
    chunks(ranges, |start, n| {
        let wide = &mut wide[..n];
        match dtype {
            Dtype::F32 => input.read_exact(bytemuck::cast_slice_mut(wide))?,
            Dtype::Bf16 => {
                input.read_exact(bytemuck::cast_slice_mut(&mut narrow[..n]))?;
                widen_bf16(wide, &narrow[..n]);
            }
            Dtype::F16 | Dtype::I32 => {
                bail!("expected f32 or bf16 as the type of the tensors, found {dtype}")
            }
        }
        sink(kind, start, wide)
    })
}

/// Widens exactly, to the bit: a bf16 is the upper half of an f32. The conversions of `half` would
/// make signaling NaNs quiet.
fn widen_bf16(out: &mut [f32], inp: &[bf16]) {
    for (o, &i) in out.iter_mut().zip(inp) {
        *o = f32::from_bits(u32::from(i.to_bits()) << 16);
    }
}
