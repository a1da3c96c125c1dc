//! `warpsmith launch`: many processes of a trainer on this machine.

use crate::cli::tools::LaunchArgs;
use crate::parallel::launch::Job;
use anyhow::{Result, ensure};
use std::process::ExitCode;
use std::time::Duration;

/// Returns the exit status of the ranks.
pub fn launch(args: LaunchArgs) -> Result<ExitCode> {
    let resumes = args.command.windows(2).any(|pair| {
        let [flag, value] = pair else { return false };
        (flag == "-y" || flag == "--resume") && value == "1"
    });
    ensure!(
        args.restarts == 0 || resumes,
        "--restarts {}: expected -y 1 among the program's flags, without which it would begin from the start",
        args.restarts
    );
    let job = Job {
        command: args.command,
        processes: args.processes,
        restarts: args.restarts,
        grace: Duration::from_secs(5),
    };
    Ok(ExitCode::from(job.run()? as u8))
}
