//! Command lines: what may be asked for, and how a wrong one is refused.
//!
//! Parsing never prints and never exits. A `main` is one call of [`run`].

mod check;
pub mod commands;
pub mod devices;
pub mod logging;
mod parse;
pub mod readme;
pub mod tools;
pub mod train;
pub mod train_gpt2;
pub mod values;

pub use check::ModelSource;
pub use parse::{Parsed, flags};
pub use train::Program;

use anyhow::Result;
use std::io::{self, Write};
use std::process::ExitCode;

/// Exit status of a run that the user can put right.
const USER_ERROR: u8 = 2;

/// Runs `body` on what was parsed, or prints the text that was asked for in place of a run, and turns the outcome
/// into the exit status of `program`.
pub fn run<T>(program: &str, parsed: Result<Parsed<T>>, body: impl FnOnce(T) -> Result<()>) -> ExitCode {
    exit_with(
        program,
        parsed.and_then(|parsed| match parsed {
            Parsed::Run(args) => body(args),
            Parsed::Print(text) => print(text),
        }),
    )
}

/// Turns the outcome of `program` into its exit status; an error goes to standard error as one line.
pub fn exit_with(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to be done about an error if standard error is closed.
            let _ = writeln!(io::stderr(), "{}", error_line(program, &error));
            ExitCode::from(USER_ERROR)
        }
    }
}

/// Whether the reader of the output has seen enough (`warpsmith sample … | head`), which is no error.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes to standard output at once.
fn print(text: impl std::fmt::Display) -> Result<()> {
    let mut out = io::stdout();
    Ok(write!(out, "{text}").and_then(|()| out.flush())?)
}

/// `program: outer: inner`, with what would break the line replaced by spaces.
fn error_line(program: &str, error: &anyhow::Error) -> String {
    one_line(&format!("{program}: {error:#}"))
}

/// Runs of white space and control characters become one space.
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
        run("p", Ok(Parsed::Run(7)), |n| {
            seen = Some(n);
            Ok(())
        });
        assert_eq!(seen, Some(7));
        run("p", Ok(Parsed::Print::<i32>(String::new())), |_| panic!("ran"));
    }
}
