//! Several processes that train together, as a launcher starts them: the result does not depend on how many there are, and
//! none is left behind when another ends.

mod common;

use common::{Corpus, TRAIN_GPT2, TRAIN_GPT2CU, WARPSMITH, forget_after, losses, refuse, stderr, stdout};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn corpus() -> Corpus {
    let corpus = Corpus::new();
    common::write_small_model(&corpus.path("small.bin"));
    corpus
}

/// Eight micro-batches a step, however many processes share them.
const RECIPE: &str =
    "-i x_train_*.bin -j x_val_*.bin -b 1 -t 32 -d 256 -l 1e-3 -v 0 -s 0 -e small.bin --threads 1";

/// Starts the ranks of a run, which meet through a file in the corpus's directory.
fn start(corpus: &Corpus, program: &str, world_size: usize, flags: &str) -> Vec<Child> {
    let rank = |rank: usize| {
        let mut command = Command::new(program);
        command.current_dir(corpus.dir.path()).args(RECIPE.split(' ')).args(flags.split_whitespace());
        if world_size > 1 {
            command.args(["-pi", "fs", "-pf", "."]);
            command.env("WORLD_SIZE", world_size.to_string());
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    (0..world_size).map(rank).collect()
}

fn finish(ranks: Vec<Child>) -> Vec<Output> {
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

type Losses = Vec<(u64, String, String)>;

/// Runs to the end, expects that only rank 0 says anything, and returns loss and norm of each step.
#[track_caller]
fn run(corpus: &Corpus, program: &str, world_size: usize, flags: &str, out: &str) -> Losses {
    let outputs = finish(start(corpus, program, world_size, &format!("{flags} -o {out}")));
    for (rank, output) in outputs.iter().enumerate() {
        assert!(output.status.success(), "rank {rank}: {}", stderr(output));
        assert_eq!(stdout(output).is_empty(), rank > 0, "rank {rank} says {}", stdout(output));
    }
    losses(&corpus.path(out))
}

/// Losses and norms of each step are the same to within rounding.
#[track_caller]
fn assert_alike(got: &Losses, want: &Losses, loss: f64, norm: f64) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        let off = |got: &str, want: &str| {
            let (got, want): (f64, f64) = (got.parse().unwrap(), want.parse().unwrap());
            (got / want - 1.0).abs()
        };
        let (l, n) = (off(&got.1, &want.1), off(&got.2, &want.2));
        // Also false for NaN.
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
    // Three processes share another number of micro-batches: of their own total, then.
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

#[test]
fn kernels_on_several_emulated_devices_train_alike() {
    let corpus = corpus();
    for (dtype, loss, norm) in [("f32", 1e-5, 1e-4), ("bf16", 2e-3, 2e-2)] {
        let flags = format!("--device emulated --deterministic 1 --dtype {dtype} -d 64 -x 4");
        let alone = run(&corpus, TRAIN_GPT2CU, 1, &flags, &format!("{dtype}-1"));
        let together = run(&corpus, TRAIN_GPT2CU, 2, &flags, &format!("{dtype}-2"));
        assert_alike(&together, &alone, loss, norm);
        let again = run(&corpus, TRAIN_GPT2CU, 2, &flags, &format!("{dtype}-again"));
        assert_eq!(together, again, "sums over ranks are formed in one order");
    }
}

#[test]
fn what_some_processes_began_others_finish() {
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

/// Waits until a run has done a step.
fn wait_for_steps(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_to_string(dir.join("metrics.jsonl")).map_or(0, |text| text.lines().count()) < 3 {
        assert!(Instant::now() < deadline, "no step within a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_process_that_is_killed_takes_the_others_along() {
    let corpus = corpus();
    for victim in [0, 2] {
        let out = format!("killed-{victim}");
        let mut ranks = start(&corpus, TRAIN_GPT2, 3, &format!("-d 96 -x 100000 -n 5 -nk 2 -o {out}"));
        wait_for_steps(&corpus.path(&out));
        ranks[victim].kill().unwrap();
        let killed = Instant::now();
        for (rank, output) in finish(ranks).iter().enumerate().filter(|(rank, _)| *rank != victim) {
            assert_eq!(output.status.code(), Some(2), "rank {rank}");
            let message = stderr(output);
            assert!(message.contains("is gone"), "rank {rank}: {message}");
            assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        }
        assert!(killed.elapsed() < Duration::from_secs(20), "they took {:?}", killed.elapsed());
    }
}

#[test]
fn a_signal_to_one_process_stops_all_at_one_step() {
    let corpus = corpus();
    let ranks = start(&corpus, TRAIN_GPT2, 2, "-d 64 -x 100000 -o out");
    wait_for_steps(&corpus.path("out"));
    let pid = ranks[1].id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    for output in finish(ranks) {
        assert_eq!(output.status.code(), Some(128 + 15), "{}", stderr(&output));
    }
    let steps = losses(&corpus.path("out")).len();
    assert!(corpus.path(&format!("out/DONE_{steps:08}")).exists(), "a checkpoint of step {steps}");
}

/// Two machines of two processes each, which are network namespaces; `None` where the system lets nobody make them.
fn on_machines(corpus: &Corpus, own_flags: &[&str], flags: &str) -> Option<Command> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("dev/machines.sh");
    let tried = Command::new(&script).args(["1", "1", "true"]).output().unwrap();
    if !tried.status.success() {
        println!("skipped: {}", stderr(&tried).trim_end());
        return None;
    }
    let mut command = Command::new(script);
    command.current_dir(corpus.dir.path()).args(own_flags).args(["2", "2", TRAIN_GPT2]);
    command.args(RECIPE.split(' ')).args(flags.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

#[test]
fn two_machines_train_as_one_does() {
    let corpus = corpus();
    let alone = run(&corpus, TRAIN_GPT2, 4, "-x 5", "one");
    for (flags, out) in [(&[][..], "two"), (&["-6"], "two-6")] {
        let Some(mut command) = on_machines(&corpus, flags, &format!("-x 5 -o {out}")) else { return };
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        assert!(stdout(&output).contains("4 processes over TCP"), "{}", stdout(&output));
        assert_eq!(losses(&corpus.path(out)), alone, "bit for bit");
    }
}

#[test]
fn a_machine_that_is_cut_off_is_named_on_both_sides() {
    let corpus = corpus();
    let flags = ["-c", "cut"];
    let Some(mut command) = on_machines(&corpus, &flags, "-d 128 -x 100000 -o out") else { return };
    let job = command.spawn().unwrap();
    wait_for_steps(&corpus.path("out"));
    std::fs::write(corpus.path("cut"), "").unwrap();
    let cut = Instant::now();
    let output = job.wait_with_output().unwrap();
    // A minute without a sign of life, some seconds for a last word, and what a busy machine takes.
    assert!(cut.elapsed() < Duration::from_secs(100), "it took {:?}", cut.elapsed());
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    for rank in 0..4 {
        let own: Vec<&str> = said.lines().filter(|line| line.starts_with(&format!("[{rank}]"))).collect();
        let there =
            |other: &usize| own[0].contains(&format!("rank {other} has given no sign of life for 60 s"));
        let blamed: Vec<usize> = (0..4).filter(there).collect();
        assert!(own.len() == 1 && blamed.len() == 1 && blamed[0] / 2 != rank / 2, "{said}");
    }
}

/// With Open MPI or MPICH, whichever this machine has.
#[test]
fn mpirun_starts_them_too() {
    if Command::new("mpirun").arg("--version").output().is_err() {
        println!("skipped: no mpirun; apt install openmpi-bin");
        return;
    }
    let corpus = corpus();
    let alone = run(&corpus, TRAIN_GPT2, 1, "-x 5", "alone");
    for processes in ["2", "4"] {
        let mut command = Command::new("mpirun");
        command.current_dir(corpus.dir.path());
        // More processes than cores, and by whoever runs tests in a container.
        let variables =
            ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"];
        command.envs(variables.map(|name| (name, "1")));
        command.args(["-np", processes, TRAIN_GPT2]).args(RECIPE.split(' '));
        let output = command.args(["-x", "5", "-o", processes]).output().unwrap();
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        assert!(stdout(&output).contains(", by Open MPI") || stdout(&output).contains(", by MPICH"));
        assert_alike(&losses(&corpus.path(processes)), &alone, 1e-5, 1e-4);
    }
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
    refuse(&[], "-pn 2 -pr 0 -pi mpi", &["-pi mpi", "without MPI"]);
    refuse(&[], "-pn 2 -pr 0", &["-pi tcp -ps HOST"]);
    refuse(&[], "-pn 2 -pr 0 -b 2 -t 16 -d 32", &["B * T * processes = 2 * 16 * 2 = 64", "found 32"]);
    refuse(&[], "-z 1", &["-z/--zero-stage", "expected 0"]);
}

/// `warpsmith launch FLAGS -- COMMAND`, in the corpus's directory.
fn launch(corpus: &Corpus, flags: &str, command: &[&str]) -> Command {
    let mut launch = Command::new(WARPSMITH);
    launch.current_dir(corpus.dir.path()).arg("launch").args(flags.split(' ')).arg("--").args(command);
    launch.stdout(Stdio::piped()).stderr(Stdio::piped());
    launch
}

/// A trainer that leaves its process number in a file named after its rank.
fn trainer(flags: &str) -> [String; 3] {
    let script = format!("echo $$ > pid-$RANK; exec {TRAIN_GPT2} {RECIPE} {flags}").replace('*', "\\*");
    ["sh", "-c", &script].map(str::to_owned)
}

#[test]
fn the_launcher_starts_ranks_and_shows_what_they_say() {
    let corpus = corpus();
    let alone = run(&corpus, TRAIN_GPT2, 1, "-x 3", "alone");
    let command = trainer("-x 3 -o launched");
    let output = launch(&corpus, "-n 2", &command.each_ref().map(String::as_str)).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).lines().all(|line| line.starts_with("[0] ")), "{}", stdout(&output));
    let row = format!("| {:<50} |", "2 processes over TCP, by warpsmith launch");
    assert!(stdout(&output).contains(&row), "{}", stdout(&output));
    assert_alike(&losses(&corpus.path("launched")), &alone, 1e-5, 1e-4);
}

#[test]
fn the_launcher_ends_all_ranks_when_one_fails() {
    let corpus = corpus();
    let started = Instant::now();
    let script = "if [ $RANK = 1 ]; then echo no more >&2; exit 7; fi; exec sleep 100";
    let output = launch(&corpus, "-n 3", &["sh", "-c", script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(stderr(&output), "[1] no more\n");
    assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
    refuse(&mut launch(&corpus, "-n 2", &["/nowhere/program"]), &["cannot start /nowhere/program"]);
    refuse(&mut launch(&corpus, "-n 0", &["true"]), &["-n/--processes", "found 0"]);
    refuse(&mut launch(&corpus, "-n 2 --restarts 1", &["true"]), &["--restarts 1", "-y 1"]);
}

#[test]
fn the_launcher_begins_again_from_the_last_checkpoint() {
    let corpus = corpus();
    let flags = "-x 30 -n 5 -y 1";
    let whole = run(&corpus, TRAIN_GPT2, 2, flags, "whole");
    let command = trainer(&format!("{flags} -o out"));
    // For the check of --restarts, which looks for the flag among the words of the command.
    let words = command.each_ref().map(String::as_str).into_iter().chain(["sh", "-y", "1"]);
    let job = launch(&corpus, "-n 2 --restarts 3", &words.collect::<Vec<_>>()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !corpus.path("out/DONE_00000010").exists() {
        assert!(Instant::now() < deadline, "no checkpoint within a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = std::fs::read_to_string(corpus.path("pid-1")).unwrap();
    assert!(Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
    let output = job.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("rank 1 ended with signal: 9 (SIGKILL); restart 1 of 3"),
        "{}",
        stderr(&output)
    );
    assert!(stdout(&output).contains("checkpoint of step"), "{}", stdout(&output));
    assert_eq!(losses(&corpus.path("out")), whole, "bit for bit");
}

#[test]
fn a_signal_to_the_launcher_stops_the_run_with_a_checkpoint() {
    let corpus = corpus();
    let command = trainer("-d 64 -x 100000 -o out");
    let job = launch(&corpus, "-n 2", &command.each_ref().map(String::as_str)).spawn().unwrap();
    wait_for_steps(&corpus.path("out"));
    assert!(Command::new("kill").args(["-TERM", &job.id().to_string()]).status().unwrap().success());
    let output = job.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(128 + 15), "{}", stderr(&output));
    let steps = losses(&corpus.path("out")).len();
    assert!(corpus.path(&format!("out/DONE_{steps:08}")).exists(), "a checkpoint of step {steps}");
}
