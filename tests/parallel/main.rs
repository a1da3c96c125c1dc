//! Several processes that train together, as a launcher starts them: the result does not depend on
//! their number, and none is left running when another ends.

#[path = "../common/mod.rs"]
mod common;
mod launch;
mod machines;
mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(not(feature = "mpi"))]
mod mpi {
    #[test]
    #[ignore = "needs MPI (apt install libopenmpi-dev libclang-dev, then make MPI=1)"]
    fn every_test_over_mpi() {
        panic!("this was built without MPI");
    }
}
mod mpirun;
mod sharded;

use common::{
    Corpus, TRAIN_GPT2, TRAIN_GPT2CU, as_rank, forget_after, losses, refuse, signal, stderr, stdout,
    wait_for_steps,
};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn corpus() -> Corpus {
    let corpus = Corpus::new();
    common::write_small_model(&corpus.path("small.bin"));
    corpus
}

const DATA: &str = "-i x_train_*.bin -j x_val_*.bin --threads 1";

/// Eight micro-batches per step, for any number of processes.
const RECIPE: &str =
    "-i x_train_*.bin -j x_val_*.bin --threads 1 -b 1 -t 32 -d 256 -l 1e-3 -v 0 -s 0 -e small.bin";

/// Starts the ranks of a run, which find each other through a file in the corpus's directory.
fn start(corpus: &Corpus, program: &str, world_size: usize, flags: &str) -> Vec<Child> {
    let rank = |rank: usize| {
        let mut command = Command::new(program);
        command.current_dir(corpus.dir.path()).args(flags.split_whitespace());
        as_rank(&mut command, rank, world_size).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    (0..world_size).map(rank).collect()
}

fn finish(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

type Losses = Vec<(u64, String, String)>;

/// Runs to the end, expects output from rank 0 only, and returns loss and norm of each step.
#[track_caller]
fn run(corpus: &Corpus, program: &str, world_size: usize, flags: &str, out: &str) -> Losses {
    let outputs = finish(start(corpus, program, world_size, &format!("{RECIPE} {flags} -o {out}")));
    for (rank, output) in outputs.iter().enumerate() {
        assert!(output.status.success(), "rank {rank}: {}", stderr(output));
        assert_eq!(stdout(output).is_empty(), rank > 0, "rank {rank} printed {}", stdout(output));
    }
    losses(&corpus.path(out))
}

/// Asserts that losses and norms of each step are equal up to rounding.
#[track_caller]
fn assert_alike(got: &Losses, want: &Losses, loss: f64, norm: f64) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        let off = |got: &str, want: &str| {
            let (got, want): (f64, f64) = (got.parse().unwrap(), want.parse().unwrap());
            (got / want - 1.0).abs()
        };
        let (l, n) = (off(&got.1, &want.1), off(&got.2, &want.2));
        // False for NaN, too.
        assert!(got.0 == want.0 && l <= loss && n <= norm, "step {}: {got:?}, expected {want:?}", want.0);
    }
}

fn validations(dir: &Path) -> Vec<f64> {
    let log = std::fs::read_to_string(dir.join("main.log")).unwrap();
    let values = log.lines().filter_map(|line| line.split_once("tel:"));
    values.map(|(_, loss)| loss.parse().unwrap()).collect()
}

#[test]
fn one_two_three_and_four_processes_train_alike() {
    let corpus = corpus();
    // The number of micro-batches must be a multiple of three for three processes.
    for (flags, worlds) in [("-x 30 -v 10 -m 7", &[2, 4, 8][..]), ("-x 10 -d 192 -v 5 -m 7", &[2, 3])] {
        let alone = run(&corpus, TRAIN_GPT2, 1, flags, "alone");
        for &world_size in worlds {
            let together = run(&corpus, TRAIN_GPT2, world_size, flags, "together");
            assert_alike(&together, &alone, 1e-5, 1e-4);
            let [together, alone] = ["together", "alone"].map(|dir| validations(&corpus.path(dir)));
            assert_eq!(together.len(), alone.len());
            for (a, b) in together.iter().zip(&alone) {
                assert!((a / b - 1.0).abs() <= 1e-4, "validation loss {a}, expected {b}");
            }
            std::fs::remove_dir_all(corpus.path("together")).unwrap();
        }
        std::fs::remove_dir_all(corpus.path("alone")).unwrap();
    }
}

/// With `--shuffle sequences`, the default, and 32 sequences per step.
#[test]
fn the_micro_batch_and_the_number_of_processes_change_rounding_only() {
    let corpus = corpus();
    let flags = |B: usize| format!("-b {B} -t 16 -d 512 -x 20 -n 8 -y 1");
    let want = run(&corpus, TRAIN_GPT2, 1, &flags(8), "8-1");
    for (B, world_size) in
        [(4, 1), (2, 1), (1, 1), (8, 2), (4, 2), (2, 2), (1, 2), (8, 4), (4, 4), (2, 4), (1, 4)]
    {
        let got = run(&corpus, TRAIN_GPT2, world_size, &flags(B), &format!("{B}-{world_size}"));
        assert_alike(&got, &want, 1e-5, 1e-4);
    }
    // In the middle of an epoch, which has 15 steps.
    for (B, world_size) in [(2, 4), (4, 1)] {
        forget_after(&corpus.path("8-1"), 8);
        let resumed = run(&corpus, TRAIN_GPT2, world_size, &flags(B), "8-1");
        assert_alike(&resumed, &want, 1e-5, 1e-4);
    }
}

#[test]
fn kernels_on_several_emulated_devices_train_alike() {
    let corpus = corpus();
    for (dtype, loss, norm) in [("f32", 1e-5, 1e-4), ("bf16", 2e-3, 2e-2)] {
        let flags = format!("--device emulated --deterministic 1 --dtype {dtype} -d 64 -x 4");
        let alone = run(&corpus, TRAIN_GPT2CU, 1, &flags, &format!("{dtype}-1"));
        let together = run(&corpus, TRAIN_GPT2CU, 2, &flags, &format!("{dtype}-2"));
        assert_alike(&together, &alone, loss, norm);
        let again = run(&corpus, TRAIN_GPT2CU, 2, &flags, &format!("{dtype}-again"));
        assert_eq!(together, again, "sums over ranks have a fixed order");
    }
}

#[test]
fn a_run_resumes_with_another_number_of_processes() {
    let corpus = corpus();
    let flags = "-x 24 -n 8 -y 1";
    let whole = run(&corpus, TRAIN_GPT2, 1, flags, "whole");
    run(&corpus, TRAIN_GPT2, 4, flags, "parts");
    for world_size in [2, 1] {
        forget_after(&corpus.path("parts"), 16);
        let resumed = run(&corpus, TRAIN_GPT2, world_size, flags, "parts");
        assert_alike(&resumed, &whole, 1e-5, 1e-4);
    }
    forget_after(&corpus.path("parts"), 16);
    let bits = run(&corpus, TRAIN_GPT2, 4, flags, "parts");
    assert_eq!(bits[..16], run(&corpus, TRAIN_GPT2, 4, flags, "again")[..16]);
}

#[test]
fn a_killed_process_ends_the_others() {
    let corpus = corpus();
    for victim in [0, 2] {
        let out = format!("killed-{victim}");
        let mut ranks =
            start(&corpus, TRAIN_GPT2, 3, &format!("{RECIPE} -d 96 -x 100000 -n 5 -nk 2 -o {out}"));
        wait_for_steps(&corpus.path(&out), 3);
        ranks[victim].kill().unwrap();
        let killed = Instant::now();
        for (rank, output) in finish(ranks).iter().enumerate().filter(|(rank, _)| *rank != victim) {
            assert_eq!(output.status.code(), Some(2), "rank {rank}");
            let message = stderr(output);
            assert!(message.contains("is gone"), "rank {rank}: {message}");
            // Rank 0 has a whole copy of the state, and saves it.
            let steps = losses(&corpus.path(&out)).len();
            let saved = format!("the checkpoint of step {steps} ");
            let written = corpus.path(&format!("{out}/DONE_{steps:08}")).exists();
            assert!(rank > 0 || written, "no checkpoint of step {steps}: {message}");
            let lines = if message.contains(&saved) { 2 } else { 1 };
            assert!(rank > 0 || lines == 2 || steps.is_multiple_of(5), "{message}");
            // On a busy machine the start may take long enough for a line about that.
            let found = message.lines().filter(|line| !line.contains("warning: waiting ")).count();
            assert_eq!(found, lines, "{message}");
        }
        assert!(killed.elapsed() < Duration::from_secs(20), "they took {:?}", killed.elapsed());
    }
}

#[test]
fn a_signal_to_one_process_stops_all_at_one_step() {
    let corpus = corpus();
    // Large enough for a checkpoint to take a while.
    let flags = "--layers 1 --heads 2 --channels 128 -b 1 -t 16 -d 32 -x 100000 -v 0 -s 0 -o out";
    let mut ranks = start(&corpus, TRAIN_GPT2, 2, &format!("{DATA} {flags}"));
    wait_for_steps(&corpus.path("out"), 3);
    signal(ranks[1].id(), "TERM");
    // A launcher would now end the others, so everything must be complete by now.
    ranks[1].wait().unwrap();
    let steps = losses(&corpus.path("out")).len();
    assert!(corpus.path(&format!("out/DONE_{steps:08}")).exists(), "a checkpoint of step {steps}");
    for output in finish(ranks) {
        assert_eq!(output.status.code(), Some(128 + 15), "{}", stderr(&output));
    }
}

#[test]
fn inconsistent_ranks_are_named() {
    let corpus = corpus();
    run(&corpus, TRAIN_GPT2, 2, "-x 4 -n 2", "out");
    // As if the other machine did not share the disk.
    std::fs::create_dir(corpus.path("elsewhere")).unwrap();
    for (own, what) in [
        ("-o elsewhere -n 2 -y 1", "the step that -o resumes from: expected what rank 0 has, found 0"),
        ("-o out -n 2 -y 1 -l 2e-3", "-x, -l and the schedule"),
        ("-o out -n 2 -y 1 -z 1", "-z, --sum-every-micro-step"),
        ("-o out -n 2 -y 1 -v 2", "the data of -j"),
    ] {
        let ranks = ["-o out -n 2 -y 1", own].into_iter().enumerate().map(|(rank, flags)| {
            let mut command = Command::new(TRAIN_GPT2);
            command.current_dir(corpus.dir.path()).args(format!("{RECIPE} -x 8 {flags}").split(' '));
            as_rank(&mut command, rank, 2).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        let outputs = finish(ranks.collect());
        assert_eq!(outputs[1].status.code(), Some(2), "{own}");
        assert!(stderr(&outputs[1]).contains(&format!("rank 1: {what}")), "{own}: {}", stderr(&outputs[1]));
        assert_eq!(outputs[0].status.code(), Some(2), "{own}");
        assert!(stderr(&outputs[0]).contains("rank 1 "), "{own}: {}", stderr(&outputs[0]));
    }
    assert_eq!(losses(&corpus.path("out")).len(), 4, "nothing is lost");
}

#[test]
fn a_launcher_that_contradicts_itself_is_refused() {
    let corpus = corpus();
    let refuse = |variables: &[(&str, &str)], flags: &str, words: &[&str]| {
        let mut command = corpus.train();
        command.args(["-x", "1"]).args(flags.split_whitespace()).envs(variables.iter().copied());
        refuse(&mut command, words);
    };
    refuse(&[("WORLD_SIZE", "2")], "", &["WORLD_SIZE=2 but no RANK"]);
    refuse(&[("WORLD_SIZE", "2"), ("RANK", "2")], "", &["RANK=2", "less than WORLD_SIZE=2"]);
    refuse(&[], "-pn 2", &["-pn 2", "launcher"]);
    let mpi = if cfg!(feature = "mpi") { "sees rank 0 of 1, expected rank 0 of 2" } else { "without MPI" };
    refuse(&[], "-pn 2 -pr 0 -pi mpi", &["MPI", mpi]);
    refuse(&[], "-pn 2 -pr 0", &["-pi tcp -ps HOST"]);
    refuse(&[], "-pn 2 -pr 0 -b 2 -t 16 -d 32", &["B * T * processes = 2 * 16 * 2 = 64", "found 32"]);
    refuse(&[], "-z 4", &["-z/--zero-stage", "expected", "found 4"]);
}
