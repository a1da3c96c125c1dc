//! The flags of tasks that are scored during training.

use crate::cli::values;
use crate::eval::tasks::TaskFile;
use anyhow::{Result, ensure};
use clap::{ArgAction, Args};

/// Tasks other than HellaSwag, whose flags are llm.c's.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Evaluation and samples")]
pub struct TaskFlags {
    /// Score a task as lm_eval does; may be given several times. NAME: hellaswag, piqa, copa,
    /// arc_easy, arc_challenge, winogrande, lambada, multiple_choice; FILE: its JSON lines
    #[arg(id = "task", long = "task", value_name = "NAME=FILE", value_parser = str::parse::<TaskFile>,
          action = ArgAction::Append)]
    pub files: Vec<TaskFile>,
    /// Score the tasks of --task every N steps, but not before the first, and at the end [default:
    /// as -v]
    #[arg(id = "task_every", long = "task-every", value_name = "N", value_parser = values::count)]
    pub every: Option<usize>,
}

impl TaskFlags {
    /// Steps between scores; 0 without tasks.
    pub fn interval(&self, val_loss_every: usize) -> usize {
        if self.files.is_empty() { 0 } else { self.every.unwrap_or(val_loss_every) }
    }

    /// Refuses tasks that nothing would score, or score twice.
    pub(in crate::cli) fn check(&self, val_loss_every: usize) -> Result<()> {
        ensure!(
            self.every.is_none() || !self.files.is_empty(),
            "--task-every: no task is given; give --task NAME=FILE, or drop the flag"
        );
        ensure!(
            self.files.is_empty() || self.interval(val_loss_every) > 0,
            "--task: scored every -v steps, and -v 0 is never; give --task-every or -v"
        );
        each_once(&self.files)
    }
}

/// Refuses a task that is given twice: results are named by their task.
///
/// # Errors
/// One line that names it.
pub fn each_once(files: &[TaskFile]) -> Result<()> {
    for (i, file) in files.iter().enumerate() {
        let twice = files[..i].iter().any(|earlier| earlier.task == file.task);
        ensure!(!twice, "--task {file}: {} is given twice; give each task once", file.task.name());
    }
    Ok(())
}
