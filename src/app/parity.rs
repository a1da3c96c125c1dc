//! `warpsmith parity`: our results next to those of a debug state.

use super::{model, note, print};
use crate::checkpoint::{DebugState, ModelFile};
use crate::cli::flags::warpsmith::ParityArgs;
use crate::device::cpu::Cpu;
use crate::device::cpu::matmul::Precision;
use crate::device::open::{DeviceName, DeviceOptions};
use crate::ops::Ops;
use crate::report::progress::saying;
use crate::tensor::Dtype;
use crate::train::parity::{self, Parity, Row, STEPS};
use anyhow::{Result, ensure};
use std::process::ExitCode;

/// Exit status if something differs by more than it may.
const DIFFERS: u8 = 1;

pub fn parity(args: &ParityArgs) -> Result<ExitCode> {
    let found = args.losses.len();
    ensure!(found == 0 || found == STEPS, "--losses: expected {STEPS} numbers, found {found}");
    let path = args.model();
    ensure!(
        path != args.debug_state && (args.model.is_some() || path.exists()),
        "-e/--model: missing; expected the model of {}, such as gpt2_124M.bin",
        args.debug_state.display()
    );
    let source = model::find(&path)?;
    let file = saying("reading the model", false, || source.read())?;
    let state =
        saying("reading the debug state", false, || DebugState::read(&args.debug_state, &file.config))?;
    note(format_args!("model: {source}"));

    let device = args.numbers.device;
    let dtype = args.numbers.dtype.on(device, None);
    let options = DeviceOptions { tf32: false, ..DeviceOptions::new(device, dtype, args.numbers.threads) };
    let dev = options.open()?;
    print(format_args!("{}; {}; B {}, T {}\n\n", dev.describe(), file.config, state.B, state.T))?;
    let ours = run(&state, &file, dev)?;
    let mut ok = show(&ours.tensors)?;
    let (expected, origin) = match expected_losses(args, &state, &file) {
        Some(known) => known,
        None if (device, dtype) != (DeviceName::Cpu, Dtype::F32) => {
            (run(&state, &file, Box::new(Cpu::new(Precision::F32)?))?.losses, "the CPU in f32")
        }
        None => (Vec::new(), ""),
    };
    print("\n")?;
    if expected.is_empty() {
        ours.losses
            .iter()
            .enumerate()
            .try_for_each(|(step, loss)| print(format_args!("step {:>2}  {loss:.6}\n", step + 1)))?;
        print("losses of steps: not compared; give PyTorch's with --losses\n")?;
    } else {
        ok &= show(&parity::compare_losses(&ours.losses, &expected, dtype))?;
        print(format_args!("losses of steps: compared with {origin}\n"))?;
    }
    print(format_args!("overall okay: {}\n", u8::from(ok)))?;
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

fn run(state: &DebugState, file: &ModelFile, dev: Box<dyn Ops>) -> Result<Parity> {
    saying("computing", false, || parity::run(state, file, dev))
}

/// The losses that the steps should have, and where they come from, if any are known.
fn expected_losses(
    args: &ParityArgs,
    state: &DebugState,
    file: &ModelFile,
) -> Option<(Vec<f32>, &'static str)> {
    if !args.losses.is_empty() {
        return Some((args.losses.clone(), "--losses"));
    }
    parity::known_losses(&file.config, state).map(|known| (known.to_vec(), "PyTorch, as llm.c records them"))
}

/// Prints comparisons; returns whether all are within what is allowed.
fn show(rows: &[Row]) -> Result<bool> {
    print(format_args!(
        "{:<16} {:>12} {:>11}  {:>26}\n",
        "", "max diff", "% allowed", "ours and expected, there"
    ))?;
    for row in rows {
        let Row { name, max_difference, share, ours, expected, .. } = row;
        let verdict = if row.ok() { "ok".to_owned() } else { format!("DIFFERS at {}", row.at) };
        print(format_args!(
            "{name:<16} {max_difference:>12.3e} {:>11.2}  {ours:>12.6} {expected:>12.6}  {verdict}\n",
            100.0 * share
        ))?;
    }
    Ok(rows.iter().all(Row::ok))
}
