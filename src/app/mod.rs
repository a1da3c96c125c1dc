//! The programs: parsed flags in, an exit status out.

mod clocks;
mod corpus;
mod launch;
pub mod logging;
mod model;
mod roofline;
mod scaling;
pub mod trainer;
pub mod warpsmith;

use crate::cli::Parsed;
use anyhow::Result;
use std::io::{self, Write};
use std::process::ExitCode;

/// Exit status after an error that the user can correct.
const USER_ERROR: u8 = 2;

/// Runs `body` with the parsed flags, or prints the help or version that was requested. Returns the
/// exit status; an error goes to standard error as one line.
pub fn run<T>(
    program: &str,
    parsed: Result<Parsed<T>>,
    body: impl FnOnce(T) -> Result<ExitCode>,
) -> ExitCode {
    let outcome = parsed.and_then(|parsed| match parsed {
        Parsed::Run(args) => body(args),
        Parsed::Print(text) => print(text).map(|()| ExitCode::SUCCESS),
    });
    match outcome {
        Ok(status) => status,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error closed, there is nowhere to report.
            let _ = writeln!(io::stderr(), "{}", error_line(program, &error));
            ExitCode::from(USER_ERROR)
        }
    }
}

/// Whether the reader has closed the pipe (`warpsmith sample … | head`), which is not an error.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes to standard output and flushes it.
fn print(text: impl std::fmt::Display) -> Result<()> {
    let mut out = io::stdout();
    Ok(write!(out, "{text}").and_then(|()| out.flush())?)
}

/// `program: outer: inner`, on one line.
fn error_line(program: &str, error: &anyhow::Error) -> String {
    one_line(&format!("{program}: {error:#}"))
}

/// Replaces each run of white space and control characters by one space.
fn one_line(text: &str) -> String {
    text.split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn an_error_is_one_line_whatever_it_holds() {
        let error = Err::<(), _>(anyhow!("line one\n\tline two\u{7}")).context("file\r\nname").unwrap_err();
        assert_eq!(error_line("prog", &error), "prog: file name: line one line two");
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let of_kind =
            |kind: io::ErrorKind| anyhow::Error::from(io::Error::from(kind)).context("standard output");
        assert!(is_closed_pipe(&of_kind(io::ErrorKind::BrokenPipe)));
        assert!(!is_closed_pipe(&of_kind(io::ErrorKind::StorageFull)));
    }

    #[test]
    fn only_a_run_reaches_the_body() {
        let mut seen = None;
        let status = run("p", Ok(Parsed::Run(7)), |n| {
            seen = Some(n);
            Ok(ExitCode::from(3))
        });
        assert_eq!((seen, status), (Some(7), ExitCode::from(3)));
        run("p", Ok(Parsed::Print::<i32>(String::new())), |_| panic!("ran"));
    }
}
