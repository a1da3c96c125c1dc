//! The programs: parsed flags in, an exit status out.

mod arrivals;
mod chat;
mod clocks;
mod corpus;
mod eval;
mod get;
mod launch;
pub mod logging;
mod model;
mod parity;
mod plan;
mod roofline;
mod room;
mod sample;
mod scaling;
mod serve;
mod sft;
mod tokenizer;
mod track;
pub mod trainer;
pub mod warpsmith;
mod watch;

use crate::cli::Parsed;
use crate::report::say;
use anyhow::Result;
use std::error::Error;
use std::fmt;
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
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            say(error_line(program, &error));
            ExitCode::from(USER_ERROR)
        }
    }
}

/// The reader of standard output has seen enough (`warpsmith sample … | head`), which is not an
/// error. A broken pipe of anything else, such as a connection, is one.
#[derive(Debug)]
struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("standard output is closed")
    }
}

impl Error for StdoutClosed {}

/// Writes to standard output and flushes it.
///
/// # Errors
/// [`StdoutClosed`], or one line that names standard output: its disk is full.
fn print(text: impl fmt::Display) -> Result<()> {
    print_to(&mut io::stdout(), text)
}

fn print_to(out: &mut impl Write, text: impl fmt::Display) -> Result<()> {
    write!(out, "{text}").and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => StdoutClosed.into(),
        _ => anyhow::Error::new(error).context("standard output"),
    })
}

/// Writes a line about the work to standard error, which keeps results on standard output clean.
fn note(text: impl std::fmt::Display) {
    say(one_line(&text.to_string()));
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

    /// Fails to write.
    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_of_standard_output_may_leave_and_nothing_else_may_break() {
        let run = |error: anyhow::Error| super::run("p", Ok(Parsed::Run(())), |()| Err(error));
        let closed = print_to(&mut Broken(io::ErrorKind::BrokenPipe), "text").unwrap_err();
        assert_eq!(run(closed.context("a command")), ExitCode::SUCCESS);
        let socket = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(run(socket.context("rank 1")), ExitCode::from(USER_ERROR));
        let full = print_to(&mut Broken(io::ErrorKind::StorageFull), "text").unwrap_err();
        assert!(error_line("p", &full).starts_with("p: standard output: no storage space"), "{full:#}");
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
