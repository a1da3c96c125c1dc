//! The MPI transport under a real `mpirun`. The ranks of these tests are this test program, started
//! again.

use super::mpirun::mpirun;
use super::{RECIPE, assert_alike, corpus, run};
use crate::common::{TRAIN_GPT2, losses, signal, stderr, stdout, wait_for_steps};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use warpsmith::parallel::environment::{Flags, Process};
use warpsmith::parallel::mpi::{self, Limits, Mpi};
use warpsmith::parallel::transport::Transport;

/// This rank, as `mpirun` describes it.
fn process() -> Process {
    let flags = Flags { gpus_per_node: 8, ..Flags::default() };
    Process::find(flags, &|name| std::env::var(name).ok()).unwrap()
}

fn begin(limits: Limits) -> Mpi {
    Mpi::begin(&process(), limits).unwrap()
}

/// Runs an ignored test of this file on each rank.
fn ranks(processes: &str, case: &str) -> Output {
    let mut command = mpirun();
    command.args(["-np", processes]).arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", &format!("mpi::{case}")]).output().unwrap()
}

/// The message from rank `from` to rank `to` in a round.
fn message(from: usize, to: usize, round: usize) -> Vec<u8> {
    let length = [0, 1, 7, 8, 1000, 100_000][(from + 2 * to + round) % 6];
    (0..length).map(|i| (i * 31 + from * 7 + to * 3 + round) as u8).collect()
}

#[test]
#[ignore = "a rank under mpirun"]
fn case_exchanges() {
    // Split into pieces, the last of which is shorter, full, or absent.
    let mut transport = begin(Limits { message_bytes: 7, ..Limits::default() });
    let (rank, world_size) = (transport.rank(), transport.world_size());
    assert_eq!((rank, world_size), (process().rank, 3));
    assert!(transport.describe().starts_with("3 processes over MPI ("), "{}", transport.describe());
    // As in trainers: initialized and finalized in one thread, used in another.
    let exchanges = std::thread::spawn(move || {
        for round in 0..12 {
            let outgoing: Vec<Vec<u8>> = (0..world_size).map(|to| message(rank, to, round)).collect();
            let expected: Vec<Vec<u8>> = (0..world_size).map(|from| message(from, rank, round)).collect();
            let mut received: Vec<Vec<u8>> = expected.iter().map(|bytes| vec![0xee; bytes.len()]).collect();
            let outgoing: Vec<&[u8]> = outgoing.iter().map(Vec::as_slice).collect();
            let mut incoming: Vec<&mut [u8]> = received.iter_mut().map(Vec::as_mut_slice).collect();
            transport.exchange(&outgoing, &mut incoming).unwrap();
            for from in (0..world_size).filter(|&from| from != rank) {
                assert!(received[from] == expected[from], "round {round}, from rank {from}");
            }
        }
    });
    exchanges.join().unwrap();
    assert!(Mpi::begin(&process(), Limits::default()).is_err(), "MPI is initialized once");
    mpi::end(true);
    println!("rank {rank} is done.");
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn messages_of_all_lengths_arrive() {
    let output = ranks("3", "case_exchanges");
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    for rank in 0..3 {
        assert!(stdout(&output).contains(&format!("rank {rank} is done.")), "{}", stdout(&output));
    }
}

/// Sends `bytes` bytes to all ranks, expects three from each, and ends as the trainers do.
fn exchange(transport: &mut Mpi, bytes: usize) {
    let mut received = vec![[0u8; 3]; transport.world_size()];
    let mut incoming: Vec<&mut [u8]> = received.iter_mut().map(<[u8; 3]>::as_mut_slice).collect();
    let result = transport.exchange(&vec![&[1u8; 9][..bytes]; transport.world_size()], &mut incoming);
    if let Err(e) = &result {
        eprintln!("refused: {e:#}.");
    }
    mpi::end(result.is_ok());
}

#[test]
#[ignore = "a rank under mpirun"]
fn case_another_length() {
    let mut transport = begin(Limits::default());
    let bytes = if transport.rank() == 1 { 4 } else { 3 };
    exchange(&mut transport, bytes);
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn another_length_than_expected_is_named() {
    let output = ranks("2", "case_another_length");
    assert!(!output.status.success());
    let line = "refused: rank 1 sent 4 bytes where 3 were expected: start all ranks with the same program and flags.";
    assert!(stderr(&output).contains(line), "{}", stderr(&output));
}

#[test]
#[ignore = "a rank under mpirun"]
fn case_silent() {
    let mut transport = begin(Limits { timeout: Duration::from_secs(1), ..Limits::default() });
    if transport.rank() == 1 {
        std::thread::sleep(Duration::from_secs(300));
    }
    exchange(&mut transport, 3);
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn a_silent_rank_is_named_and_ended() {
    let began = Instant::now();
    let output = ranks("3", "case_silent");
    assert!(!output.status.success());
    assert!(stderr(&output).contains("refused: rank 1 has sent no message for 1 s"), "{}", stderr(&output));
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn processes_over_mpi_train_as_one_does() {
    let corpus = corpus();
    let flags = "-x 6 -v 3 -m 4";
    let alone = run(&corpus, TRAIN_GPT2, 1, flags, "alone");
    for (processes, method) in [("2", "auto"), ("4", "mpi"), ("3", "mpi")] {
        let mut command = mpirun();
        // Three processes need another number of micro-batches, so only the transport is tested.
        let total = if processes == "3" { "192" } else { "256" };
        let out = format!("{processes}-{method}");
        command.current_dir(corpus.dir.path()).args(["-np", processes, TRAIN_GPT2]);
        command.args(RECIPE.split(' ').map(|word| if word == "256" { total } else { word }));
        let output = command.args(flags.split(' ')).args(["-pi", method, "-o", &out]).output().unwrap();
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        let row = format!("{processes} processes over MPI (");
        assert!(stdout(&output).contains(&row) && stdout(&output).contains("), by "), "{}", stdout(&output));
        let steps = losses(&corpus.path(&out));
        match processes {
            "3" => assert_eq!(steps.len(), 6),
            _ => assert_alike(&steps, &alone, 1e-5, 1e-4),
        }
    }
}

/// A trainer that writes its process id to a file named after its rank.
fn trainer(flags: &str) -> [String; 3] {
    let script = format!(
        "echo $$ > pid-${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}}; exec {TRAIN_GPT2} {RECIPE} -pi mpi {flags}"
    );
    ["sh", "-c", &script.replace('*', "\\*")].map(str::to_owned)
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn a_rank_that_is_killed_ends_the_job() {
    let corpus = corpus();
    let mut command = mpirun();
    command.current_dir(corpus.dir.path()).args(["-np", "2"]).args(trainer("-x 100000 -o out"));
    let job = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_steps(&corpus.path("out"), 3);
    let pid = |rank: usize| std::fs::read_to_string(corpus.path(&format!("pid-{rank}"))).unwrap();
    signal(pid(1), "KILL");
    let killed = Instant::now();
    let output = job.wait_with_output().unwrap();
    assert!(!output.status.success());
    // An ended process is listed as a zombie until its parent waits for it.
    let runs = |pid: &str| {
        let state = stdout(&Command::new("ps").args(["-o", "stat=", "-p", pid]).output().unwrap());
        !state.trim().is_empty() && !state.starts_with('Z')
    };
    while runs(pid(0).trim()) {
        assert!(killed.elapsed() < Duration::from_secs(20), "rank 0 is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(killed.elapsed() < Duration::from_secs(20), "it took {:?}", killed.elapsed());
}

#[test]
#[cfg_attr(not(has_mpirun), ignore = "needs mpirun (apt install openmpi-bin, then touch build.rs)")]
fn a_rank_that_fails_ends_the_job() {
    let corpus = corpus();
    for (failing, waiting) in [(0, 1), (1, 0)] {
        let mut command = mpirun();
        command.current_dir(corpus.dir.path());
        for rank in 0..2 {
            command.args((rank == 1).then_some(":")).args(["-np", "1", TRAIN_GPT2]).args(RECIPE.split(' '));
            command.args(["-x", "100000"]);
            // The file is read after MPI is initialized.
            command.args(if rank == failing { ["-i", "none.bin"] } else { ["-pi", "mpi"] });
        }
        let began = Instant::now();
        let output = command.output().unwrap();
        assert!(!output.status.success());
        assert!(began.elapsed() < Duration::from_secs(30), "rank {waiting} waited {:?}", began.elapsed());
        let said = stderr(&output);
        assert!(said.contains("train_gpt2: ") && said.contains("none.bin"), "{said}");
    }
}
