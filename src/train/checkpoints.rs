//! The checkpoints of a run. The state is copied into memory between two steps, and a thread writes
//! the copy while the next steps run.

use super::Trainer;
use super::rescue::Progress;
use super::resume::{Extras, Tensors};
use super::signals::Doing;
use super::stop::Work;
use crate::checkpoint::{self, Checkpoint, Copied, State};
use crate::replica::Replica;
use crate::tensor::Dtype;
use anyhow::{Context, Result, anyhow};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// The report on something that was written.
#[derive(Debug, Default, PartialEq)]
struct Written {
    /// A line for the console.
    line: Option<String>,
    /// The time from the start of the copy to the last file. Zero for the best model.
    elapsed: Duration,
}

type Job = Box<dyn FnOnce() -> Result<Written> + Send>;

/// A thread that writes one checkpoint at a time.
pub struct CheckpointWriter {
    /// `None` once the thread has been asked to end.
    jobs: Option<Sender<Job>>,
    results: Receiver<Result<Written>>,
    /// Whether a result is still to come.
    writing: bool,
    thread: Option<JoinHandle<()>>,
    /// Whether the user knows that checkpoints are written without a copy.
    warned: bool,
    /// The validation loss of `model_best.bin`, and of the one that is being written.
    best: Option<f32>,
    next_best: Option<f32>,
}

impl CheckpointWriter {
    /// # Errors
    /// If the thread cannot be started.
    pub fn start() -> Result<Self> {
        let (jobs, received) = channel::<Job>();
        let (answers, results) = channel();
        let work = move || received.into_iter().map(|job| job()).try_for_each(|result| answers.send(result));
        let thread = Builder::new().name("checkpoints".to_owned()).spawn(move || drop(work()));
        let thread = thread.context("cannot start the thread that writes checkpoints")?;
        Ok(CheckpointWriter {
            jobs: Some(jobs),
            results,
            writing: false,
            thread: Some(thread),
            warned: false,
            best: None,
            next_best: None,
        })
    }

    /// Hands a job to the thread, which has to be idle.
    fn begin(&mut self, job: Job) -> Result<()> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.writing = true;
        if sent { Ok(()) } else { Err(Self::gone()) }
    }

    /// The report on a checkpoint that has been written since the last call, if any.
    ///
    /// # Errors
    /// Those of writing it.
    fn poll(&mut self) -> Result<Option<Written>> {
        if !self.writing {
            return Ok(None);
        }
        let result = match self.results.try_recv() {
            Err(TryRecvError::Empty) => return Ok(None),
            result => result.unwrap_or_else(|_| Err(Self::gone())),
        };
        self.writing = false;
        result.map(Some)
    }

    /// Waits for the checkpoint that is being written, if any; otherwise as [`Self::poll`].
    fn wait(&mut self) -> Result<Option<Written>> {
        if !std::mem::take(&mut self.writing) {
            return Ok(None);
        }
        self.results.recv().unwrap_or_else(|_| Err(Self::gone())).map(Some)
    }

    fn gone() -> anyhow::Error {
        anyhow!("the thread that writes checkpoints ended early")
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            log::warn!("{error:#}");
        }
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The panic hook has already reported a panic in the thread.
            let _ = thread.join();
        }
    }
}

/// The checkpoints to keep: the newest ones, and those of every so many steps (0: none).
struct Retention {
    keep: usize,
    major_every: u64,
}

impl Retention {
    /// Removes other checkpoints, after that of step `newest` was written.
    fn prune(&self, dir: &Path, newest: u64) -> Result<()> {
        for old in checkpoint::prune(dir, newest, self.keep, self.major_every)? {
            log::info!("deleted checkpoint {old} from {}", dir.display());
        }
        Ok(())
    }
}

/// The place and the state for a checkpoint besides its tensors.
struct Target {
    dir: PathBuf,
    extras: Extras,
    /// The logs, whose lines up to here belong to the checkpoint.
    logs: Vec<File>,
    retention: Retention,
}

/// A checkpoint on its way to the disk.
struct Writing {
    checkpoint: Checkpoint,
    target: Target,
    started: Instant,
}

impl Writing {
    /// Writes a copy of the tensors.
    fn write_copy(self, copied: Copied) -> Result<Written> {
        self.write(|Writing { checkpoint, target, .. }| {
            checkpoint.save_copy(&target.dir, &target.extras, &copied)
        })
    }

    /// Writes the tensors by `save`, then removes older checkpoints.
    fn write(self, save: impl FnOnce(&Self) -> Result<()>) -> Result<Written> {
        let (start, dir) = (Instant::now(), self.target.dir.display());
        // A checkpoint without the lines before it would lose them after a power cut.
        let synced = self.target.logs.iter().try_for_each(File::sync_data);
        synced.with_context(|| format!("{dir}: cannot sync the logs"))?;
        save(&self)?;
        let ms = start.elapsed().as_millis();
        let Some(State { step, .. }) = self.checkpoint.state else {
            log::info!("wrote the best model so far to {dir} in {ms} ms");
            return Ok(Written::default());
        };
        self.target.retention.prune(&self.target.dir, step)?;
        let line = Some(format!("checkpoint {step} written to {dir} in {ms} ms"));
        Ok(Written { line, elapsed: self.started.elapsed() })
    }
}

/// The type of parameters in a model file: llm.c has no fp16 files, and f32 holds fp16 exactly.
pub(super) fn file_dtype(params: Dtype) -> Dtype {
    if params == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F32 }
}

impl Trainer {
    /// Writes a checkpoint of the state before `step`, if one is due by its number or at the end,
    /// or `now`, because the run stops. At the end this waits until it is written.
    ///
    /// # Errors
    /// If the checkpoint before could not be written, or this one cannot be copied.
    pub(super) fn checkpoint(&mut self, step: usize, last: bool, now: bool) -> Result<()> {
        let written = self.writer.as_mut().map_or(Ok(None), CheckpointWriter::poll);
        self.note_written(written)?;
        let every = self.files.checkpoint_every;
        let due = now || last || every > 0 && step > 0 && step.is_multiple_of(every);
        if self.files.output_dir.is_some() && due && self.saved_step != Some(step) {
            self.stop.signals.note(Doing::Checkpoint);
            self.stop_clock()?;
            self.finish_checkpoint()?;
            let state = Some(self.state(step));
            self.between("checkpoint", |trainer| trainer.save(state))?;
            (self.saved_step, self.progress) = (Some(step), Progress::Before(step));
        }
        if now || last { self.finish_checkpoint() } else { Ok(()) }
    }

    /// Writes the parameters with the lowest validation loss so far, in runs that write
    /// checkpoints.
    pub(super) fn save_best(&mut self) -> Result<()> {
        if self.files.output_dir.is_none() || self.files.checkpoint_every == 0 {
            return Ok(());
        }
        if let Some(writer) = &mut self.writer {
            writer.next_best = self.best_val_loss;
        }
        self.save(None)
    }

    /// Sets the lowest validation loss so far, that of the `model_best.bin` on the disk.
    pub(super) fn set_best(&mut self, best: Option<f32>) {
        self.best_val_loss = best;
        if let Some(writer) = &mut self.writer {
            writer.best = best;
        }
    }

    /// Removes what a killed run left in the directory of a resumed one.
    pub(super) fn prune(&self) -> Result<()> {
        if let (Some(dir), Some(step)) = (self.output_dir(), self.resumed_step) {
            checkpoint::remove_temporaries(dir)?;
            self.retention().prune(dir, step as u64)?;
        }
        Ok(())
    }

    /// Waits until the checkpoint in the background is written, if there is one.
    pub(super) fn finish_checkpoint(&mut self) -> Result<()> {
        let written = self.writer.as_mut().map_or(Ok(None), CheckpointWriter::wait);
        self.note_written(written)
    }

    /// Reports on a checkpoint that has been written.
    fn note_written(&mut self, written: Result<Option<Written>>) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            match &written {
                // The state that may be saved now has to be true of the disk.
                Err(_) => (self.saved_step, self.best_val_loss) = (None, writer.best),
                Ok(Some(Written { line: None, .. })) => writer.best = writer.next_best,
                Ok(_) => {}
            }
        }
        self.stop.checkpoint_since = self.stop.checkpoint_since.filter(|_| matches!(written, Ok(None)));
        if let Some(Written { line: Some(line), elapsed }) = written? {
            self.report.console().line(line);
            self.stop.measured(Work::Checkpoint, elapsed);
        }
        Ok(())
    }

    /// Copies the tensors and starts to write a checkpoint, after the one before. Ranks other than
    /// 0 write nothing, but take part in the downloads of sharded tensors.
    fn save(&mut self, state: Option<State>) -> Result<()> {
        self.finish_checkpoint()?;
        let started = Instant::now();
        let (config, dtype) = (self.replica.model.weights.config, self.replica.zero.params().dtype());
        let base_model = self.base_model.clone();
        let checkpoint = Checkpoint { config, dtype: file_dtype(dtype), state, base_model };
        let target = self.target()?;
        let tensors = Tensors::of(&self.replica);
        self.replica.finish_params()?;
        let Replica { zero, dev, .. } = &mut self.replica;
        let source: &mut checkpoint::Source = &mut |kind, start, out| {
            zero.download(dev.as_mut(), tensors.get(kind), tensors.frozen(kind), start, out)
        };
        let (Some(target), Some(writer)) = (target, &mut self.writer) else {
            return checkpoint.participate(source);
        };
        let writing = Writing { checkpoint, target, started };
        if let Some(copied) = writing.checkpoint.copy(source)? {
            self.stop.checkpoint_since = Some(started);
            return writer.begin(Box::new(move || writing.write_copy(copied)));
        }
        if !std::mem::replace(&mut writer.warned, true) {
            self.report.console().warning("too little memory for a copy; training waits for each checkpoint");
        }
        let written = writing
            .write(|Writing { checkpoint, target, .. }| checkpoint.save(&target.dir, &target.extras, source));
        self.note_written(written.map(Some))
    }

    /// The target of a checkpoint that is written now; `None` on ranks that write nothing.
    fn target(&mut self) -> Result<Option<Target>> {
        let Some(dir) = self.output_dir().map(ToOwned::to_owned) else { return Ok(None) };
        let logs = self.report.keep_logs()?;
        self.lock.as_mut().map_or(Ok(()), |lock| lock.renew())?;
        Ok(Some(Target { dir, extras: self.extras(), logs, retention: self.retention() }))
    }

    fn retention(&self) -> Retention {
        let (keep, major_every) = (self.files.checkpoints_keep, self.files.checkpoints_major_every);
        Retention { keep, major_every: major_every as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(line: &str) -> Written {
        Written { line: Some(line.to_owned()), elapsed: Duration::ZERO }
    }

    /// A job that waits for a word before it ends.
    fn job(result: Result<Written>) -> (Sender<()>, Job) {
        let (go, wait) = channel();
        let job = move || {
            wait.recv().unwrap();
            result
        };
        (go, Box::new(job))
    }

    #[test]
    fn work_goes_on_while_a_checkpoint_is_written() {
        let mut writer = CheckpointWriter::start().unwrap();
        assert!(writer.poll().unwrap().is_none() && writer.wait().unwrap().is_none());
        let (go, first) = job(Ok(written("one")));
        writer.begin(first).unwrap();
        assert!(writer.poll().unwrap().is_none(), "it is still being written");
        go.send(()).unwrap();
        assert_eq!(writer.wait().unwrap(), Some(written("one")));
        assert!(writer.poll().unwrap().is_none(), "each result is seen once");
    }

    #[test]
    fn an_error_is_seen_at_the_next_look() {
        let mut writer = CheckpointWriter::start().unwrap();
        let (go, failing) = job(Err(anyhow!("full")));
        writer.begin(failing).unwrap();
        go.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let error = loop {
            match writer.poll() {
                Err(error) => break error,
                Ok(_) => assert!(Instant::now() < deadline),
            }
        };
        assert_eq!(error.to_string(), "full");
        let (go, next) = job(Ok(written("two")));
        writer.begin(next).unwrap();
        go.send(()).unwrap();
        assert_eq!(writer.wait().unwrap(), Some(written("two")));
    }

    #[test]
    fn the_end_waits_for_the_last_checkpoint() {
        let mut writer = CheckpointWriter::start().unwrap();
        let (ended, end) = channel();
        let slow = move || {
            std::thread::sleep(Duration::from_millis(50));
            ended.send(()).unwrap();
            Ok(Written::default())
        };
        writer.begin(Box::new(slow)).unwrap();
        drop(writer);
        end.try_recv().expect("written before the writer is gone");
    }
}
