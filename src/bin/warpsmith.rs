//! Everything around training: corpora, samples, evaluation, conversion, plots.

use std::process::ExitCode;

fn main() -> ExitCode {
    warpsmith::app::warpsmith::main()
}
