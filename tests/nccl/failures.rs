//! Failures end the process in time, with a line that names the culprit.

use super::*;
use std::process::Child;
use std::time::Instant;
use warpsmith::parallel::mesh::{self, Meeting, Rendezvous, TcpMesh};
use warpsmith::parallel::secret::Secret;

/// Starts one all-reduce and waits for it. Returns the outcome.
fn sum(nccl: &mut Nccl, stream: usize) -> String {
    let one = operation(Collective::AllReduce, 0x1000, 100, Dtype::F32, stream);
    let result = nccl.start(vec![one]).and_then(|_| nccl.finish());
    let again = nccl.start(vec![one]).and_then(|_| nccl.finish());
    match result {
        Ok(()) => again.map(|()| "done".to_owned()).unwrap(),
        Err(e) => {
            assert_eq!(again.unwrap_err().to_string(), e.to_string(), "a failure is permanent");
            format!("refused: {e:#}")
        }
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_alone() {
    let stream = open_gpu();
    let timeouts = Timeouts { progress: Duration::from_millis(1200), ..TIMEOUTS };
    match Nccl::open(threads(1).pop().unwrap(), timeouts) {
        Ok(mut nccl) => println!("{}.", sum(&mut nccl, stream)),
        Err(e) => println!("refused: {e:#}."),
    }
}

/// Runs a case with these settings, and expects `line` in its output. Returns the names of rank 0's
/// calls.
#[track_caller]
fn expect(libraries: &StandIns, case: &str, settings: &[(&str, &str)], line: &str) -> Vec<String> {
    let _ = std::fs::remove_file(libraries.path("log"));
    let said = libraries.run(case, settings);
    assert!(said.contains(line), "expected {line}, found\n{said}");
    libraries.check_events();
    calls(libraries)
}

fn calls(libraries: &StandIns) -> Vec<String> {
    let log = libraries.log();
    let calls = log.iter().filter_map(|line| line.strip_prefix("0: "));
    calls.map(|call| call.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn errors_of_nccl_are_one_line_and_abort() {
    let libraries = StandIns::new();
    let case = "failures::case_alone";
    let calls = expect(
        &libraries,
        case,
        &[("STUB_NCCL", "init")],
        "refused: rank 0: NCCL, ncclCommInitRank: unhandled cuda error (Cuda failure 2 'out of memory').",
    );
    assert!(calls.is_empty(), "{calls:?}");
    let calls = expect(
        &libraries,
        case,
        &[("STUB_NCCL", "queue")],
        "refused: rank 0: NCCL, ncclAllReduce: invalid usage (Broadcast : invalid count).",
    );
    assert_eq!(calls, ["joins", "all_reduce", "abort"]);
    assert!(libraries.log().iter().any(|line| line == "end of group (0)"), "a group that fails is ended");
    let calls = expect(
        &libraries,
        case,
        &[("STUB_NCCL", "async")],
        "refused: rank 0: NCCL, a collective: remote process exited or there was a network error (NET/IB : Got completion \
         with error 12).",
    );
    assert_eq!(calls, ["joins", "all_reduce", "abort"]);
    let line = "refused: rank 0: NCCL made no progress for 1 s although all ranks are running";
    let calls = expect(&libraries, case, &[("STUB_NCCL", "stuck")], line);
    assert_eq!(calls, ["joins", "all_reduce", "abort"]);
}

#[test]
fn a_gpu_that_nccl_does_not_release_does_not_hang_the_process() {
    let libraries = StandIns::new();
    let started = Instant::now();
    let output = libraries.case("failures::case_alone", &[("STUB_NCCL", "abort-hangs")]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let message = "no progress for 1 s although all ranks are running; NCCL_DEBUG=INFO says how it connects them; NCCL does \
                   not release the GPU, so this process exits at once\n";
    assert!(String::from_utf8_lossy(&output.stderr).ends_with(message), "{}", said(&output));
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// Two ranks that are threads. One of them starts nothing, and with `LEAVES` set it ends.
#[test]
#[ignore = "runs in a process of its own"]
fn case_apart() {
    let mut transports = threads(2);
    let (other, this) = (transports.pop().unwrap(), transports.pop().unwrap());
    let timeouts = Timeouts { progress: Duration::from_millis(2500), ..TIMEOUTS };
    let leaves = std::env::var_os("LEAVES").is_some();
    std::thread::scope(|scope| {
        let (over, end) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            open_gpu();
            let nccl = Nccl::open(other, timeouts).unwrap();
            if !leaves {
                let _ = end.recv();
            }
            drop(nccl);
        });
        let stream = open_gpu();
        let mut nccl = Nccl::open(this, timeouts).unwrap();
        println!("{}.", sum(&mut nccl, stream));
        drop((nccl, over));
    });
}

#[test]
fn a_rank_that_starts_nothing_is_named() {
    let libraries = StandIns::new();
    let line = "refused: rank 0: rank 1 has not started what other ranks have waited 2 s for: it hangs.";
    let calls = expect(&libraries, "failures::case_apart", &[("STUB_NCCL", "stuck")], line);
    assert_eq!(calls, ["joins", "all_reduce", "abort"]);
    let line = "refused: rank 0: rank 1 has finished while other ranks continue: its output says why.";
    let settings = [("STUB_NCCL", "stuck"), ("LEAVES", "1")];
    expect(&libraries, "failures::case_apart", &settings, line);
    let log = libraries.log();
    assert!(log.contains(&"1: abort".to_owned()), "it does not wait for ranks that failed: {log:?}");
}

/// One rank, which finds the other through a file.
#[test]
#[ignore = "runs in a process of its own"]
fn case_rank() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let meeting = Meeting {
        rank: variable("RANK").parse().unwrap(),
        world_size: 2,
        size_from: "a test".to_owned(),
        run: "run".to_owned(),
        secret: Secret::NONE,
        at: Rendezvous::File(variable("MEET").into()),
    };
    let mesh = TcpMesh::connect(&meeting, mesh::Timeouts::default()).unwrap();
    let stream = open_gpu();
    match Nccl::open(mesh, TIMEOUTS) {
        Ok(mut nccl) => println!("{}.", sum(&mut nccl, stream)),
        Err(e) => println!("refused: {e:#}."),
    }
}

fn start(libraries: &StandIns, settings: [&[(&str, &str)]; 2]) -> [Child; 2] {
    let meet = libraries.path("meet");
    let _ = std::fs::remove_file(libraries.path("log"));
    [0, 1].map(|rank| {
        let mut child = libraries.case("failures::case_rank", settings[rank]);
        child.env("RANK", rank.to_string()).env("MEET", &meet).spawn().unwrap()
    })
}

#[test]
fn processes_end_together() {
    let libraries = StandIns::new();
    for rank in start(&libraries, [&[], &[]]) {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success() && said(&output).contains("done."), "{}", said(&output));
    }
    assert_eq!(calls(&libraries), ["joins", "all_reduce", "all_reduce", "finalize", "destroy"]);
}

#[test]
fn another_version_elsewhere_is_refused() {
    let libraries = StandIns::new();
    let [first, second] = start(&libraries, [&[], &[("STUB_NCCL_VERSION", "22304")]]);
    for (rank, line) in [
        (first, "refused: rank 1 has NCCL 2.23.4, rank 0 has 2.27.7: install one version on all machines."),
        (second, "refused: rank 0 has NCCL 2.27.7, rank 1 has 2.23.4: install one version on all machines."),
    ] {
        let output = rank.wait_with_output().unwrap();
        assert!(said(&output).contains(line), "{}", said(&output));
    }
}

#[test]
fn a_process_that_is_killed_takes_the_other_along() {
    let libraries = StandIns::new();
    // The place in which NCCL waits for a lost rank, and the calls that the other rank then makes.
    for (mode, sign, expected) in [
        ("init-hangs", "rank 1 hangs", &[][..]),
        ("stuck", "1: all_reduce", &["joins", "all_reduce", "abort"]),
        ("group-hangs", "1: all_reduce", &["joins", "all_reduce", "abort"]),
    ] {
        let settings = [("STUB_NCCL", mode)];
        let [first, mut second] = start(&libraries, [&settings, &settings]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !libraries.log().iter().any(|line| line.starts_with(sign))
            || mode != "init-hangs" && calls(&libraries).len() < 2
        {
            assert!(Instant::now() < deadline, "{mode}: {:?}", libraries.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(200));
        second.kill().unwrap();
        second.wait().unwrap();
        let killed = Instant::now();
        let output = first.wait_with_output().unwrap();
        let line = "refused: rank 0: rank 1 is gone: its output says why.";
        assert!(output.status.success() && said(&output).contains(line), "{mode}: {}", said(&output));
        assert!(killed.elapsed() < Duration::from_secs(15), "{mode}: it took {:?}", killed.elapsed());
        assert_eq!(calls(&libraries), expected, "{mode}");
    }
}

/// Runs the programs on a machine with one GPU, where the rank that opens a second one fails.
#[test]
fn each_process_opens_the_gpu_of_its_number_on_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nvidia/libcuda.c");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-shared", "-fPIC"])
        .arg(source)
        .arg("-o")
        .arg(dir.path().join("libcuda.so.1"))
        .arg("-lm");
    assert!(cc.status().unwrap().success());
    let rank = |rank: usize| {
        let mut child = Command::new(common::TRAIN_GPT2CU);
        child.args("-i none -j none -b 1 -t 64 -d 128".split(' ')).current_dir(dir.path());
        common::as_rank(&mut child, rank, 2);
        child.env("LD_LIBRARY_PATH", dir.path()).env_remove("CUDA_VISIBLE_DEVICES");
        child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let [first, second] = [0, 1].map(rank).map(|rank| rank.wait_with_output().unwrap());
    assert_eq!((first.status.code(), second.status.code()), (Some(2), Some(2)));
    let line = "train_gpt2cu: --device cuda: GPU 1: this machine shows 1, numbered from 0\n";
    assert_eq!(said(&second), line);
    assert_eq!(said(&first).lines().count(), 1, "{}", said(&first));
    assert!(!said(&first).contains("GPU 0:"), "{}", said(&first));
}
