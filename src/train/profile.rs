//! `--profile`: a timeline of some steps; and marks for the tools that NVTX reaches.

use super::Trainer;
use crate::cli::flags::trainer::{CudaGraphs, TrainArgs};
use crate::cli::values::Steps;
use crate::device::open::DeviceName;
use crate::files;
use crate::nvtx;
use crate::ops::{Ops, Span};
use crate::parallel::environment::Process;
use crate::replica::Replica;
use crate::report::chrome::{self, Bar, Row};
use crate::roofline::running::Predictor;
use crate::trace::{HostTime, Names, Op, Tracer, table};
use crate::words::count;
use anyhow::{Context, Result, ensure};
use serde_json::Map;
use std::path::PathBuf;
use std::time::Instant;

/// The table of the steps' operations, beside the timeline of rank 0.
const TABLE: &str = "profile.txt";

/// The operations that the console lists.
const LISTED: usize = 12;

/// The profilers of a rank.
pub struct Profiler {
    tracer: Tracer,
    /// `None` without `--profile`, and once its steps are over.
    profile: Option<Profile>,
}

/// The timeline of `--profile`, until it is written.
struct Profile {
    steps: Steps,
    path: PathBuf,
    origin: Option<Instant>,
    bars: Vec<Bar>,
    /// `None` until there are weights, and where nothing is predicted.
    predictor: Option<Predictor>,
}

impl Profiler {
    /// Loads the tool of [`nvtx`], if one listens, and wraps the device if it or `--profile` needs
    /// that.
    ///
    /// # Errors
    /// If the tool cannot be loaded.
    pub fn open(args: &TrainArgs, dev: Box<dyn Ops>) -> Result<(Box<dyn Ops>, Option<Self>)> {
        let tool = nvtx::attach()?;
        let (steps, dir) = (args.files.profile, args.files.output_dir.as_deref());
        if tool.is_none() && steps.is_none() {
            return Ok((dev, None));
        }
        let one_by_one = args.device.name == DeviceName::Cpu || args.gpu.cuda_graphs == CudaGraphs::Never;
        if let Some(tool) = &tool {
            tool.name_thread(&format!("training, rank {}", args.process.rank));
            if !one_by_one {
                log::info!(
                    "NVTX: micro-steps are CUDA graphs, without ranges of layers and operations; --cuda-graphs 0 has \
                     them in every step, and --profile in its own"
                );
            }
        }
        if steps.is_some() && args.gpu.cuda_graphs == CudaGraphs::Always {
            log::info!("--profile: its steps are queued without CUDA graphs");
        }
        let tracer = Tracer::new(tool, one_by_one);
        let dev = Box::new(tracer.device(dev));
        let profile = steps.zip(dir).map(|(steps, dir)| {
            let path = dir.join(file_of_rank(&args.process));
            Profile { steps, path, origin: None, bars: Vec::new(), predictor: None }
        });
        Ok((dev, Some(Profiler { tracer, profile })))
    }

    /// The profile, if it is of this step, which counts from 1.
    fn of_step(&mut self, number: usize) -> Option<(&Tracer, &mut Profile)> {
        let Profiler { tracer, profile, .. } = self;
        let profile = profile.as_mut().filter(|profile| profile.steps.contains(number))?;
        Some((tracer, profile))
    }
}

/// Refuses steps that the run does not have. Those that were over when a resumed run was saved are
/// left out, with a warning on rank 0.
pub fn check_steps(
    profiler: &mut Option<Profiler>,
    total: usize,
    resumed: Option<usize>,
    process: &Process,
) -> Result<()> {
    let Some(Profiler { profile, .. }) = profiler else { return Ok(()) };
    let Some(Profile { steps, .. }) = profile else { return Ok(()) };
    ensure!(
        steps.last <= total,
        "--profile {steps}: the run has {}; give earlier ones, or raise -x",
        count(total, "step")
    );
    let resumed = resumed.unwrap_or(0);
    if steps.first > resumed {
        return Ok(());
    }
    let over = steps.last <= resumed;
    if process.is_rank0() {
        let left = if over { "no step is left" } else { "only the later ones are recorded" };
        log::warn!("--profile {steps}: the run resumes after step {resumed}, so {left}");
    }
    steps.first = resumed + 1;
    if over {
        *profile = None;
    }
    Ok(())
}

/// The file of a rank: `profile.json`, or of rank 1 of several, `profile_rank1.json`.
fn file_of_rank(process: &Process) -> String {
    match process.world_size {
        1 => "profile.json".to_owned(),
        _ => format!("profile_rank{}.json", process.rank),
    }
}

impl Profile {
    fn host_bar(&self, HostTime { span, start, end }: HostTime) -> Option<Bar> {
        let since = |time: Instant| time.checked_duration_since(self.origin?);
        let (start, end) = (since(start)?, since(end)?);
        Some(Bar { row: Row::Host, name: span.to_string(), start, end, args: Map::new() })
    }

    /// Writes the timeline of a rank.
    fn write(&self, rank: usize, device: &str) -> Result<()> {
        files::make_room(&self.path)?;
        files::write(&self.path, |out| chrome::write(out, rank, device, &self.bars))
    }

    /// Writes the table beside the timeline.
    fn write_table(&self, title: &str) -> Result<()> {
        let lines = [vec![title.to_owned()], table(&self.bars, usize::MAX)].concat();
        files::write(&self.path.with_file_name(TABLE), |out| Ok(writeln!(out, "{}", lines.join("\n"))?))
    }
}

impl Trainer {
    /// Tells profilers the names of the tensors that were allocated.
    pub(super) fn name_tensors(&self) {
        let Some(Profiler { tracer, .. }) = &self.profiler else { return };
        let (params, stored) = (&self.replica.model.weights.params, self.replica.zero.params());
        let (memory, params, stored) = (self.hunt.memory.clone(), params.clone(), stored.clone());
        tracer.set_names(Names { memory, params, stored });
    }

    /// Runs a step, which counts from 0, as a span of its own, and records it if `--profile` says
    /// so.
    pub(super) fn profiled<T>(
        &mut self,
        step: usize,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        self.begin_profile(step)?;
        self.replica.dev.enter(Span::Step(step + 1));
        let done = work(self);
        self.replica.dev.leave();
        let done = done?;
        self.end_profile(step)?;
        Ok(done)
    }

    /// Runs work between steps as a span of that name.
    pub(super) fn between<T>(&mut self, name: &'static str, work: impl FnOnce(&mut Self) -> T) -> T {
        self.replica.dev.enter(Span::Between(name));
        let done = work(self);
        self.replica.dev.leave();
        done
    }

    /// Starts to record, if it is a step of the profile, with nothing of the one before in flight.
    fn begin_profile(&mut self, step: usize) -> Result<()> {
        let Trainer { profiler, replica, .. } = self;
        let profiler = profiler.as_mut().and_then(|profiler| profiler.of_step(step + 1));
        let Some((tracer, profile)) = profiler else { return Ok(()) };
        replica.finish_params()?;
        if profile.bars.is_empty() {
            replica.dev.record_for_profiler(true).context("--profile")?;
            let gpu = replica.dev.gpu();
            profile.predictor = gpu.and_then(|gpu| Predictor::new(&replica.model.weights, &gpu));
        }
        replica.zero.peers.note_times()?;
        tracer.begin_step(replica.dev.as_mut())
    }

    /// Ends the record of a step, once all its work is done, and after the last one of the profile
    /// writes it.
    fn end_profile(&mut self, step: usize) -> Result<()> {
        let Trainer { profiler, replica, report, .. } = self;
        let profiler = profiler.as_mut().and_then(|profiler| profiler.of_step(step + 1));
        let Some((tracer, profile)) = profiler else { return Ok(()) };
        replica.finish_params()?;
        let work = replica.zero.peers.take_times()?;
        // Reading the times of thousands of stamps is not part of the next step.
        report.clock.stop(replica.dev.as_mut())?;
        let traced = tracer.end_step(replica.dev.as_mut())?;
        let origin = *profile.origin.get_or_insert(traced.begin());
        let predict = |op: &Op| profile.predictor.as_mut()?.us(op);
        let bars = tracer.with_names(|names| traced.bars(step + 1, names, work, origin, predict));
        profile.bars.extend(bars);
        if step + 1 == profile.steps.last { self.write_profile() } else { Ok(()) }
    }

    /// Writes what was recorded, and shows where time went.
    fn write_profile(&mut self) -> Result<()> {
        let Some(profiler) = &mut self.profiler else { return Ok(()) };
        let (tracer, Some(mut profile)) = (&profiler.tracer, profiler.profile.take()) else { return Ok(()) };
        let Replica { zero, dev, .. } = &mut self.replica;
        dev.record_for_profiler(false).context("--profile")?;
        let host: Vec<_> =
            tracer.end_profile().into_iter().filter_map(|time| profile.host_bar(time)).collect();
        profile.bars.extend(host);
        let process = &zero.peers.process;
        profile.write(process.rank, &dev.describe()).context("--profile")?;
        let steps = profile.steps.named();
        log::info!("wrote the profile of {steps} to {}", profile.path.display());
        if process.is_rank0() {
            let title = format!("profile of {steps} on {}, per step", dev.describe());
            profile.write_table(&title).context("--profile")?;
            self.show_profile(&title, &profile);
        }
        Ok(())
    }

    fn show_profile(&mut self, title: &str, profile: &Profile) {
        let console = self.report.console();
        console.line(title);
        table(&profile.bars, LISTED).iter().for_each(|line| console.line(line));
        let files = [profile.path.clone(), profile.path.with_file_name(TABLE)];
        let [timeline, table] = files.map(|path| path.display().to_string());
        console.line(format!("timeline in {timeline} (open it at ui.perfetto.dev), all rows in {table}"));
    }

    /// At the end of a run: writes the profile if the run ended within its steps, and says so.
    pub(super) fn finish_profile(&mut self) {
        let Some(Profiler { profile: Some(profile), .. }) = &self.profiler else { return };
        let steps = profile.steps;
        if profile.bars.is_empty() {
            log::warn!("--profile {steps}: not written, because the run stopped before step {}", steps.first);
            return;
        }
        log::warn!("--profile {steps}: the run stopped before step {}", steps.last);
        if let Err(error) = self.write_profile() {
            log::warn!("{error:#}");
        }
    }
}
