//! Collectives of GPUs without a GPU. The search for NCCL and the communicator run against
//! stand-ins for NVIDIA's libraries, which log the order and arguments of their calls, and fail in
//! every way that the real ones can. The real `libnccl.so.2` is tested if it is at
//! `WARPSMITH_TEST_NCCL` or in `build/nccl`: as far as it works without a GPU; `--ignored
//! one_rank` tests the rest on a machine with one.
//!
//! The loader finds the libraries, so each case runs in a process of its own.
#![cfg(target_os = "linux")]

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod real;

use cudarc::driver::{CudaContext, result as cu};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use warpsmith::ops::{Buffer, Place};
use warpsmith::parallel::nccl::functions::Functions;
use warpsmith::parallel::nccl::{Nccl, Timeouts};
use warpsmith::parallel::transport::testing::Threads;
use warpsmith::parallel::{Collective, Communicator, Operation, Work};
use warpsmith::tensor::Dtype;

/// The stand-ins, and their log file.
struct StandIns {
    dir: tempfile::TempDir,
}

impl StandIns {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl");
        for (source, library) in [("libcuda.c", "libcuda.so.1"), ("libnccl.c", "libnccl.so.2")] {
            let mut cc = Command::new("cc");
            cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]);
            cc.arg(format!("-Wl,-soname,{library}")).arg(sources.join(source));
            if source == "libnccl.c" {
                cc.arg(dir.path().join("libcuda.so.1"));
            }
            let output = cc.arg("-o").arg(dir.path().join(library)).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        StandIns { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Checks that every recorded event is destroyed once, and not used afterwards. Returns their
    /// number.
    fn check_events(&self) -> usize {
        let log = self.log();
        let count = |line: &str| log.iter().filter(|found| *found == line).count();
        assert!(!log.iter().any(|line| line.contains("after its end")), "{}", log.join("\n"));
        let mut recorded: Vec<&str> =
            log.iter().filter_map(|line| line.split_once(" in stream ")?.0.strip_prefix("event ")).collect();
        recorded.sort_unstable();
        recorded.dedup();
        for event in &recorded {
            assert_eq!(count(&format!("destroy event {event}")), 1, "event {event}:\n{}", log.join("\n"));
        }
        recorded.len()
    }

    /// Prepares a case to run in a process that finds the stand-ins.
    fn case(&self, case: &str, settings: &[(&str, &str)]) -> Command {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", case, "--ignored", "--nocapture", "--test-threads=1"]);
        child
            .env_remove("WARPSMITH_NCCL_LIB")
            .env_remove("VIRTUAL_ENV")
            .env_remove("CONDA_PREFIX")
            .env("HOME", self.path("home"));
        child.env("LD_LIBRARY_PATH", self.dir.path()).env("STUB_LOG", self.path("log"));
        child.envs(settings.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        child
    }

    /// Runs a case, which must succeed. Returns its output.
    fn run(&self, case: &str, settings: &[(&str, &str)]) -> String {
        let output = self.case(case, settings).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Short enough for tests of timeouts, and long enough for a busy machine.
const TIMEOUTS: Timeouts = Timeouts {
    heartbeat: Duration::from_millis(50),
    finished: Duration::from_secs(1),
    progress: Duration::from_secs(60),
    release: Duration::from_secs(2),
};

fn threads(world_size: usize) -> Vec<Threads> {
    Threads::of(world_size, Duration::from_secs(60))
}

/// Does what a device does to its thread: makes a context current, and creates a stream.
fn open_gpu() -> usize {
    // A device keeps its context until the process ends.
    std::mem::forget(CudaContext::new(0).unwrap());
    cu::stream::create(cu::stream::StreamKind::NonBlocking).unwrap() as usize
}

fn operation(collective: Collective, address: u64, len: usize, dtype: Dtype, stream: usize) -> Operation {
    Operation { collective, buffer: Buffer { address, len, dtype, place: Place::Gpu { stream } } }
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_load() {
    match Functions::load().map(|functions| (functions.path().to_owned(), functions.version())) {
        Ok((path, version)) => println!("loaded: {path} {version}."),
        Err(e) => println!("refused: {e:#}."),
    }
    println!("in an overview: {}.", Functions::describe());
}

#[test]
fn the_library_is_found_in_all_places() {
    let libraries = StandIns::new();
    let expect = |settings: &[(&str, &str)], line: &str| {
        let said = libraries.run("case_load", settings);
        assert!(said.contains(line), "expected {line}, found\n{said}");
    };
    let there = std::fs::canonicalize(libraries.path("libnccl.so.2")).unwrap();
    expect(&[], &format!("loaded: {} 22707.", there.display()));
    expect(&[], &format!("in an overview: 2.27.7 from {}.", there.display()));
    for (version, shown) in [("2804", "2.8.4"), ("21003", "2.10.3"), ("30100", "3.1.0")] {
        let line = format!(
            "refused: {} is NCCL {shown}: expected NCCL 2.13.0 or newer, below 3.0.0; install it (pip install nvidia-nccl-cu13), or \
             name another in WARPSMITH_NCCL_LIB.",
            there.display()
        );
        expect(&[("STUB_NCCL_VERSION", version)], &line);
    }
    let named = libraries.path("other.so");
    std::fs::rename(libraries.path("libnccl.so.2"), &named).unwrap();
    let named = named.to_str().unwrap();
    expect(&[("WARPSMITH_NCCL_LIB", named)], &format!("loaded: {named} 22707."));
    expect(&[("WARPSMITH_NCCL_LIB", "/nowhere/nccl")], "refused: WARPSMITH_NCCL_LIB=/nowhere/nccl: ");
    let wrong = libraries.path("libcuda.so.1");
    let line = format!("refused: {} has no ncclGetVersion: expected NCCL 2.13.0 or newer", wrong.display());
    expect(&[("WARPSMITH_NCCL_LIB", wrong.to_str().unwrap())], &line);

    let said = libraries.run("case_load", &[]);
    if said.contains("loaded: ") {
        // A machine with NCCL has its own found, and cannot show what happens without.
        assert!(!said.contains(libraries.path("").to_str().unwrap()), "{said}");
        return;
    }
    for part in [
        "in an overview: not found.",
        "refused: NCCL was not found: ",
        "libnccl.so.2",
        "/usr/local",
        "nvidia-nccl",
        "in WARPSMITH_NCCL_LIB.",
    ] {
        assert!(said.contains(part), "expected {part}, found\n{said}");
    }
    let packages = libraries.path("python/lib/python3.12/site-packages/nvidia/nccl/lib");
    std::fs::create_dir_all(&packages).unwrap();
    std::fs::rename(named, packages.join("libnccl.so.2")).unwrap();
    let python = libraries.path("python");
    let line = format!("loaded: {} 22707.", packages.join("libnccl.so.2").display());
    expect(&[("VIRTUAL_ENV", python.to_str().unwrap())], &line);
    // By a Python on PATH.
    std::fs::create_dir(python.join("bin")).unwrap();
    std::fs::write(python.join("bin/python3"), "").unwrap();
    expect(&[("PATH", python.join("bin").to_str().unwrap())], &line);
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_alone() {
    let transport = threads(2).swap_remove(0);
    let no_gpu = Nccl::open(transport, TIMEOUTS).err().expect("no context yet").to_string();
    assert_eq!(no_gpu, "NCCL connects GPUs, and no CUDA context is current on this thread");
    let stream = open_gpu();
    let mut nccl = Nccl::open(threads(1).pop().unwrap(), TIMEOUTS).unwrap();
    assert_eq!(nccl.describe(), "1 process over NCCL 2.27.7");
    let (name, found) = nccl.library().expect("it was loaded");
    assert!(name == "NCCL" && found.starts_with("2.27.7 from /"), "{name} {found}");
    assert!(found.ends_with("/libnccl.so.2"), "{found}");
    assert_eq!((nccl.rank(), nccl.world_size()), (0, 1));
    let one = operation(Collective::AllReduce, 0x1000, 100, Dtype::F32, stream);
    let two = operation(Collective::Broadcast { root: 0 }, 0x2000, 7, Dtype::Bf16, stream);
    assert_eq!(nccl.start(vec![one, two]).unwrap(), Work(1));
    nccl.finish().unwrap();
    assert_eq!(nccl.start(Vec::new()).unwrap(), Work(2));
    nccl.wait(Work(2)).unwrap();
    assert_eq!(nccl.start(vec![one]).unwrap(), Work(3));
    nccl.wait(Work(2)).unwrap();
    nccl.wait(Work(3)).unwrap();
    nccl.wait(Work(1)).unwrap();
    nccl.finish().unwrap();
    let mut host = one;
    host.buffer.place = Place::Host;
    let error = nccl.start(vec![host]).unwrap_err().to_string();
    assert_eq!(error, "NCCL needs buffers on GPUs, and a buffer is on the host");
    let error = nccl.start(vec![one, host]).unwrap_err().to_string();
    assert_eq!(error, "buffers on several GPUs in one process");
}

#[test]
fn nccl_waits_for_the_device_and_the_host_for_nccl() {
    let libraries = StandIns::new();
    libraries.run("case_alone", &[]);
    let expected = "\
id
0: joins 1
event 1 in stream 1
stream 2 waits for event 1
destroy event 1
group (0)
0: all_reduce 1000 -> 1000, 100 of type 7, 0, in stream 2
0: broadcast 2000 -> 2000, 7 of type 9, 0, in stream 2
end of group (0)
event 2 in stream 2
event 2 has passed
destroy event 2
event 3 in stream 1
stream 2 waits for event 3
destroy event 3
group (0)
0: all_reduce 1000 -> 1000, 100 of type 7, 0, in stream 2
end of group (0)
event 4 in stream 2
event 4 has passed
destroy event 4
0: finalize
0: destroy
destroy stream 2";
    assert_eq!(libraries.log().join("\n"), expected);
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_three_ranks() {
    let rank = |transport: Threads| {
        let stream = open_gpu();
        let mut nccl = Nccl::open(transport, TIMEOUTS).unwrap();
        let op = |collective, address, len, dtype| operation(collective, address, len, dtype, stream);
        let even = vec![
            op(Collective::AllReduce, 0x10000, 12, Dtype::F32),
            op(Collective::ReduceScatter, 0x20000, 12, Dtype::Bf16),
            op(Collective::AllGather, 0x30000, 12, Dtype::F16),
        ];
        let uneven = vec![
            op(Collective::ReduceScatter, 0x40000, 11, Dtype::F32),
            op(Collective::AllGather, 0x50000, 11, Dtype::Bf16),
            op(Collective::Broadcast { root: 1 }, 0x60000, 11, Dtype::I32),
            op(Collective::ReduceScatter, 0x70000, 2, Dtype::F32),
            op(Collective::AllReduce, 0x80000, 0, Dtype::F32),
        ];
        nccl.start(even).unwrap();
        nccl.start(uneven).unwrap();
        nccl.finish().unwrap();
        // The ranks arrive at their end at different times, and end together.
        std::thread::sleep(Duration::from_millis(100) * nccl.rank() as u32);
    };
    std::thread::scope(|scope| {
        for transport in threads(3) {
            scope.spawn(move || rank(transport));
        }
    });
}

#[test]
fn each_rank_calls_nccl_for_its_partition() {
    let libraries = StandIns::new();
    libraries.run("case_three_ranks", &[]);
    let log = libraries.log();
    for rank in 0..3 {
        let calls: Vec<&str> =
            log.iter().filter_map(|line| line.strip_prefix(&format!("{rank}: "))).collect();
        let calls: Vec<&str> = calls.iter().map(|call| call.split(", in stream").next().unwrap()).collect();
        let own = 8 * rank; // four elements of two bytes
        let expected = format!(
            "\
joins 3
all_reduce 10000 -> 10000, 12 of type 7, 0
reduce_scatter 20000 -> {:x}, 4 of type 9, 0
all_gather {:x} -> 30000, 4 of type 6, 0
reduce 40000 -> 40000, 4 of type 7, 0
reduce 40010 -> 40010, 4 of type 7, 1
reduce 40020 -> 40020, 3 of type 7, 2
broadcast 50000 -> 50000, 4 of type 9, 0
broadcast 50008 -> 50008, 4 of type 9, 1
broadcast 50010 -> 50010, 3 of type 9, 2
broadcast 60000 -> 60000, 11 of type 2, 1
reduce 70000 -> 70000, 1 of type 7, 0
reduce 70004 -> 70004, 1 of type 7, 1
finalize
destroy",
            0x20000 + own,
            0x30000 + own
        );
        assert_eq!(calls.join("\n"), expected, "rank {rank}");
    }
    assert_eq!(libraries.check_events(), 2 * 2 * 3);
    let groups = log.iter().filter(|line| line.contains("group")).collect::<Vec<_>>();
    assert!(groups.iter().all(|line| line.ends_with("(0)")), "groups in groups: {groups:?}");
    assert_eq!(groups.len(), 2 * 2 * 3);
    let position = |what: &str| log.iter().position(|line| line.ends_with(what)).unwrap();
    let last_done = log.iter().rposition(|line| line.ends_with("has passed")).unwrap();
    assert!(position("finalize") > last_done, "ranks end together:\n{}", log.join("\n"));
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_times() {
    let stream = open_gpu();
    let mut nccl = Nccl::open(threads(1).pop().unwrap(), TIMEOUTS).unwrap();
    let operation = |len| operation(Collective::AllReduce, 0x1000, len, Dtype::F32, stream);
    nccl.start(vec![operation(100)]).unwrap();
    nccl.note_times().unwrap();
    for len in [8, 16] {
        nccl.start(vec![operation(len)]).unwrap();
    }
    let times = nccl.take_times().unwrap();
    assert_eq!(
        times.iter().map(|time| (time.work, time.operations[0].buffer.len)).collect::<Vec<_>>(),
        [(Work(2), 8), (Work(3), 16)]
    );
    assert!(times.iter().all(|time| time.start < time.end) && times[0].end < times[1].start, "{times:?}");
    nccl.start(vec![operation(100)]).unwrap();
    assert!(nccl.take_times().unwrap().is_empty());
}

#[test]
fn work_is_timed_by_events_of_its_stream() {
    let libraries = StandIns::new();
    libraries.run("case_times", &[]);
    // Two around each of the timed ones, the timer before them, and one before each of four.
    assert_eq!(libraries.check_events(), 2 * 2 + 1 + 2 + 4);
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_works() {
    let stream = open_gpu();
    let timeouts = Timeouts { progress: Duration::from_millis(1200), ..TIMEOUTS };
    let mut nccl = Nccl::open(threads(1).pop().unwrap(), timeouts).unwrap();
    let one = operation(Collective::AllReduce, 0x1000, 100, Dtype::F32, stream);
    let works = [(); 3].map(|()| nccl.start(vec![one]).unwrap());
    nccl.wait(works[0]).unwrap();
    println!("the first is done.");
    let why = nccl.wait(works[1]).unwrap_err().to_string();
    println!("refused: {why}.");
    for again in [nccl.wait(works[0]), nccl.wait(works[2]), nccl.finish(), nccl.start(vec![one]).map(drop)] {
        assert_eq!(again.unwrap_err().to_string(), why, "a failure is permanent");
    }
}

#[test]
fn waiting_for_early_work_does_not_wait_for_later_work() {
    let libraries = StandIns::new();
    let said = libraries.run("case_works", &[("STUB_NCCL", "second-stuck")]);
    let line = "refused: rank 0: NCCL made no progress for 1 s although all ranks are running";
    assert!(said.contains("the first is done.") && said.contains(line), "{said}");
    let log = libraries.log();
    let passed = log.iter().filter(|line| line.ends_with("has passed")).count();
    let calls: Vec<&str> =
        log.iter().filter_map(|line| line.strip_prefix("0: ")?.split(' ').next()).collect();
    assert_eq!(calls, ["joins", "all_reduce", "all_reduce", "all_reduce", "abort"]);
    assert_eq!((passed, libraries.check_events()), (1, 6), "{}", log.join("\n"));
}
