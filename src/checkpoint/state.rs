//! llm.c's optimizer state, one file per process: the state that a run needs besides the parameters
//! to continue as if it had never stopped. The file has a header, the moments m and v and
//! optionally master weights in f32, and the position of the data loader.
//!
//! llm.c knows AdamW with f32 moments. The state of Muon, or with bf16 moments, has a version of
//! its own: header field 6 is 1 for Muon, which has no v of the blocks' matrices, field 7 is 1 if m
//! and v are bf16, and field 8 if the tensors are those of the adapters of LoRA alone.

use super::digest::Sections;
use super::stream::{self, Sink, Source, TensorKind};
use crate::config::ModelConfig;
use crate::data::loader::{LoaderState, ShuffleState};
use crate::llmc::{HEADER_BYTES, Header, STATE};
use crate::params::{self, ParamLayout, ParamSpec};
use crate::rng::Mt19937;
use crate::tensor::Dtype;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The version of llm.c's files, and that of files that it has no word for.
const VERSION: i32 = 1;
const OTHER_OPTIMIZER: i32 = 2;

/// A state file without its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub step: u64,
    pub num_processes: usize,
    pub rank: usize,
    /// Whether the file holds [`TensorKind::Master`].
    pub use_master_weights: bool,
    /// Whether Muon updates the blocks' matrices, which then have no [`TensorKind::V`].
    pub muon: bool,
    /// Whether the model has adapters, which then alone have state.
    pub adapters: bool,
    /// Type of m and v, F32 or Bf16.
    pub dtype: Dtype,
    /// State of the generator of stochastic rounding, now and before the last update.
    pub rng_state: u64,
    pub rng_state_last_update: u64,
    /// Position in the training data.
    pub loader: LoaderState,
}

impl State {
    fn header(&self) -> Result<Header> {
        let small = |name: &str, value: u64| {
            i32::try_from(value).with_context(|| format!("{name} is {value}, more than the format can hold"))
        };
        let is_bf16 = self.dtype == Dtype::Bf16;
        let other = self.muon || is_bf16 || self.adapters;
        let mut header = Header::new(&STATE, if other { OTHER_OPTIMIZER } else { VERSION });
        header.set(6, i32::from(self.muon));
        header.set(7, i32::from(is_bf16));
        header.set(8, i32::from(self.adapters));
        header.set(2, small("the number of processes", self.num_processes as u64)?);
        header.set(3, small("the rank", self.rank as u64)?);
        header.set(4, i32::from(self.use_master_weights));
        header.set(5, i32::from(self.loader.shuffle.is_some()));
        header.set(10, small("the step", self.step)?);
        header.set_u64(20, self.rng_state);
        header.set_u64(22, self.rng_state_last_update);
        header.set_u64(30, self.loader.current_shard_idx);
        header.set_u64(32, self.loader.current_sample_idx);
        Ok(header)
    }

    /// The parts a state file holds, in order.
    pub(super) fn kinds(&self) -> &'static [TensorKind] {
        if self.use_master_weights {
            &[TensorKind::M, TensorKind::V, TensorKind::Master]
        } else {
            &[TensorKind::M, TensorKind::V]
        }
    }

    /// Whether the file holds this kind of a parameter.
    fn holds(&self, kind: TensorKind, spec: &ParamSpec) -> bool {
        let of_muon = self.muon && kind == TensorKind::V && spec.is_block_matrix();
        spec.is_adapter() == self.adapters && !of_muon
    }

    /// The elements of a kind that the file holds, in the order of files.
    pub(super) fn ranges(&self, kind: TensorKind, config: &ModelConfig) -> Vec<Range<usize>> {
        let layout = ParamLayout::new(config);
        let held = params::all(config).filter(|spec| self.holds(kind, spec));
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for range in held.map(|spec| layout.range(spec.param)) {
            match ranges.last_mut().filter(|last| last.end == range.start) {
                Some(last) => last.end = range.end,
                None => ranges.push(range),
            }
        }
        ranges
    }

    /// The type of a kind in the file.
    fn dtype_of(&self, kind: TensorKind) -> Dtype {
        if matches!(kind, TensorKind::M | TensorKind::V) { self.dtype } else { Dtype::F32 }
    }

    /// Bytes of the file, with the tensors of a model.
    pub(super) fn size(&self, config: &ModelConfig) -> usize {
        let indices = |indices: &[i32]| 8 + 4 * indices.len();
        let shuffle = self.loader.shuffle.as_ref().map_or(0, |shuffle| {
            indices(&shuffle.shard_indices) + indices(&shuffle.intra_shard_indices) + Mt19937::BYTES
        });
        self.tensors_end(config) + shuffle
    }

    /// Offset of the end of the tensors.
    fn tensors_end(&self, config: &ModelConfig) -> usize {
        self.sections(config).last().map_or(HEADER_BYTES, |(_, bytes)| bytes.end as usize)
    }

    /// The tensors of the file.
    pub(super) fn sections(&self, config: &ModelConfig) -> Sections {
        let mut sections = Sections::new();
        for &kind in self.kinds() {
            let start = sections.last().map_or(HEADER_BYTES, |(_, bytes)| bytes.end as usize);
            sections.extend(kind.sections(config, self.dtype_of(kind), start, |spec| self.holds(kind, spec)));
        }
        sections
    }
}

/// Writes the bytes of a state file with tensors of a model from `source`.
pub(super) fn encode(
    state: &State,
    config: &ModelConfig,
    source: &mut Source,
    out: &mut dyn Write,
) -> Result<()> {
    state.header()?.write(out)?;
    for &kind in state.kinds() {
        stream::write(out, state.dtype_of(kind), kind, &state.ranges(kind, config), source)?;
    }
    let Some(shuffle) = &state.loader.shuffle else { return Ok(()) };
    write_indices(out, &shuffle.shard_indices)?;
    write_indices(out, &shuffle.intra_shard_indices)?;
    Ok(out.write_all(&shuffle.rng.to_bytes())?)
}

fn write_indices(out: &mut dyn Write, indices: &[i32]) -> Result<()> {
    out.write_all(&(indices.len() as u64).to_le_bytes())?;
    Ok(out.write_all(bytemuck::cast_slice(indices))?)
}

/// A state file that is valid, and whose tensors have not been read yet.
pub struct StateReader {
    pub state: State,
    config: ModelConfig,
    file: File,
    path: PathBuf,
}

impl StateReader {
    /// Opens the state file at `path`, whose tensors have to be those of a model.
    ///
    /// # Errors
    /// One line, if the file cannot be read, is of another kind, contradicts itself, or does not
    /// have the size that it states.
    pub fn open(path: &Path, config: &ModelConfig) -> Result<StateReader> {
        let (header, mut file, bytes) = Header::open(path, &STATE)?;
        let state =
            read_state(&header, &mut file, bytes, config).with_context(|| path.display().to_string())?;
        Ok(StateReader { state, config: *config, file, path: path.to_path_buf() })
    }

    /// Reads the tensors: M, V and, if present, Master.
    pub fn read(mut self, sink: &mut Sink) -> Result<()> {
        let mut read = || {
            self.file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
            let mut kinds = self.state.kinds().iter();
            kinds.try_for_each(|&kind| {
                let (dtype, ranges) = (self.state.dtype_of(kind), self.state.ranges(kind, &self.config));
                stream::read(&mut self.file, dtype, kind, &ranges, sink)
            })
        };
        read().with_context(|| format!("cannot read {}", self.path.display()))
    }
}

fn read_state(header: &Header, file: &mut File, bytes: u64, config: &ModelConfig) -> Result<State> {
    let flag = |index: usize| match header.i32(index) {
        0 => Ok(false),
        1 => Ok(true),
        other => bail!("expected 0 or 1 in header field {index}, found {other}"),
    };
    let other_optimizer = header.version() == OTHER_OPTIMIZER;
    let (num_processes, rank, step) = (header.i32(2), header.i32(3), header.i32(10));
    ensure!((0..num_processes).contains(&rank), "found rank {rank} of {num_processes} processes");
    let step = u64::try_from(step).with_context(|| format!("expected a step of at least 0, found {step}"))?;
    let mut state = State {
        step,
        num_processes: num_processes as usize,
        rank: rank as usize,
        use_master_weights: flag(4)?,
        muon: other_optimizer && flag(6)?,
        adapters: other_optimizer && flag(8)?,
        dtype: if other_optimizer && flag(7)? { Dtype::Bf16 } else { Dtype::F32 },
        rng_state: header.u64(20),
        rng_state_last_update: header.u64(22),
        loader: LoaderState {
            current_shard_idx: header.u64(30),
            current_sample_idx: header.u64(32),
            shuffle: None,
        },
    };
    let of = |adapters| if adapters { "adapters" } else { "a whole model" };
    let (expected, found) = (of(config.lora.is_some()), of(state.adapters));
    ensure!(expected == found, "expected the state of {expected}, found that of {found}");
    let tensors = state.tensors_end(config) as u64;
    let mut rest = bytes.checked_sub(tensors).with_context(|| {
        let len = ParamLayout::new(config).len();
        format!("expected at least {tensors} bytes for tensors of {len} elements, found {bytes}")
    })?;
    if flag(5)? {
        file.seek(SeekFrom::Start(tensors))?;
        state.loader.shuffle = Some(read_shuffle(file, &mut rest)?);
    }
    state.loader.check()?;
    ensure!(rest == 0, "expected {} bytes, found {bytes}", bytes - rest);
    Ok(state)
}

fn read_shuffle(file: &mut File, rest: &mut u64) -> Result<ShuffleState> {
    let shard_indices = read_indices(file, rest, "shards")?;
    let intra_shard_indices = read_indices(file, rest, "samples")?;
    let mut rng = [0; Mt19937::BYTES];
    take(file, rest, &mut rng)?;
    Ok(ShuffleState { shard_indices, intra_shard_indices, rng: Mt19937::from_bytes(&rng)? })
}

/// Reads `out` from the remaining `rest` bytes of the file.
fn take(file: &mut File, rest: &mut u64, out: &mut [u8]) -> Result<()> {
    let wanted = out.len() as u64;
    *rest = rest
        .checked_sub(wanted)
        .with_context(|| format!("expected {wanted} more bytes of the loader's position, found {rest}"))?;
    Ok(file.read_exact(out)?)
}

fn read_indices(file: &mut File, rest: &mut u64, of_what: &str) -> Result<Vec<i32>> {
    let mut count = [0; 8];
    take(file, rest, &mut count)?;
    let count = u64::from_le_bytes(count);
    // Checked before memory is allocated: the count may be anything.
    ensure!(count <= *rest / 4, "found a count of {count} {of_what}, more than the file has room for");
    let mut indices = vec![0i32; count as usize];
    take(file, rest, bytemuck::cast_slice_mut(&mut indices))?;
    Ok(indices)
}
