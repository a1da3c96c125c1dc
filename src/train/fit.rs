//! `-b auto`: the largest micro-batch that fits into memory.

use super::memory::RankMemory;
use super::report::Report;
use super::setup::Start;
use super::tokenizer::RunTokenizer;
use crate::cli::flags::trainer::{MicroBatch, Shuffle, TrainArgs};
use crate::memory::mib;
use crate::ops::Ops;
use crate::parallel::environment::Process;
use crate::replica::ReplicaPlan;
use anyhow::{Context, Result, bail, ensure};
use std::borrow::Cow;

/// Sequences of the largest micro-batch that is looked for.
const MOST: usize = 1 << 20;

/// Returns the flags with the largest micro-batch that fits into `room` bytes, if `-b auto` asks
/// for it. The choice is the same on all ranks: it is that of rank 0, which needs the most.
///
/// # Errors
/// One line, if not even one sequence fits, or the run to resume has an order that depends on `-b`.
pub fn choose_batch<'a>(
    args: &'a TrainArgs,
    start: &Start,
    tokenizer: &RunTokenizer,
    dev: &dyn Ops,
    room: Option<u64>,
) -> Result<Cow<'a, TrainArgs>> {
    if args.batch.micro_batch != MicroBatch::Auto {
        return Ok(Cow::Borrowed(args));
    }
    ensure!(
        start.order()? != Some(Shuffle::Llmc),
        "-b auto: the run in -o has --shuffle llmc, whose order depends on -b; give its number"
    );
    let room = room.context("-b auto: the free memory is not known here; give a number")?;
    // Questions are read after the batch is known. None is longer than the model's context.
    let question = if args.asks_questions() { start.config().maxT } else { 0 };
    let plan = start.plan(args, tokenizer, question, dev)?;
    match largest_batch(args, &plan, dev, room)? {
        Some(sequences) => Ok(Cow::Owned(args.with_batch_size(sequences)?)),
        None => {
            let needed = RankMemory::new(args, &plan, dev, None).total() as u64;
            bail!(
                "-b auto: one sequence of {} tokens takes {}, and {} are free; a smaller model (-e), a smaller -t, \
                 more recomputation (-r 2) or more processes with -z 3 need less",
                args.batch.sequence_length,
                mib(needed),
                mib(room)
            )
        }
    }
}

/// Says which batch was chosen.
pub fn say(report: &mut Report, args: &TrainArgs, memory: &RankMemory) {
    if let (MicroBatch::Auto, Some(room)) = (args.batch.micro_batch, memory.room) {
        report.console().line(format_args!(
            "-b auto: {} of the {} sequences of a step at a time, which take {} of {}",
            args.batch.batch_size,
            sequences(args),
            mib(memory.total() as u64),
            mib(room)
        ));
    }
}

/// Sequences of a step on each rank.
fn sequences(args: &TrainArgs) -> usize {
    args.total_batch_tokens() / (args.batch.sequence_length * args.process.world_size)
}

/// Returns the largest micro-batch whose memory fits into `room` bytes on every rank: of those that
/// divide the sequences of a step, if `-d` gives them. `None` if not even one sequence fits.
///
/// # Errors
/// If the device cannot run the model.
pub fn largest_batch(
    args: &TrainArgs,
    plan: &ReplicaPlan,
    dev: &dyn Ops,
    room: u64,
) -> Result<Option<usize>> {
    let args = TrainArgs { process: Process { rank: 0, ..args.process.clone() }, ..args.clone() };
    let bytes = |B: usize| -> Result<u64> {
        plan.config.check_batch(B, args.batch.sequence_length)?;
        Ok(RankMemory::new(&args, &plan.with_batch(B, dev)?, dev, None).total() as u64)
    };
    if bytes(1)? > room {
        return Ok(None);
    }
    let fits = |B: usize| bytes(B).is_ok_and(|bytes| bytes <= room);
    Ok(Some(match args.batch.total_batch_size {
        Some(_) => divisors(sequences(&args)).into_iter().rev().find(|&B| fits(B)).unwrap_or(1),
        None => last(fits),
    }))
}

/// All divisors, in ascending order.
fn divisors(n: usize) -> Vec<usize> {
    let small: Vec<_> = (1..=n.isqrt()).filter(|d| n.is_multiple_of(*d)).collect();
    let large = small.iter().rev().map(|d| n / d).filter(|d| d * d > n);
    small.iter().copied().chain(large).collect()
}

/// The last number up to [`MOST`] that fits, where 1 does and none after the first that does not.
fn last(fits: impl Fn(usize) -> bool) -> usize {
    let (mut most, mut above) = (1, MOST + 1);
    while above - most > 1 {
        let middle = if above > MOST { (2 * most).min(MOST) } else { most.midpoint(above) };
        if fits(middle) {
            most = middle
        } else {
            above = middle
        }
        if most == MOST {
            break;
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors_ascend_and_leave_none_out() {
        for n in 1..200usize {
            let expected: Vec<usize> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
            assert_eq!(divisors(n), expected, "{n}");
        }
    }

    #[test]
    fn the_last_that_fits_is_found() {
        for most in [1, 2, 3, 4, 5, 63, 64, 65, 1000, MOST - 1, MOST] {
            assert_eq!(last(|B| B <= most), most);
        }
        assert_eq!(last(|_| true), MOST);
    }
}
