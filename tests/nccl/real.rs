//! NVIDIA's own library.

use super::*;
use common::Corpus;
use warpsmith::cli::Parsed;
use warpsmith::cli::flags::trainer::{Program, parse};
use warpsmith::device::open::DeviceOptions;
use warpsmith::parallel::environment::Process;
use warpsmith::replica::peers::Peers;
use warpsmith::train::Finish;

/// The real `libnccl.so.2`, where build.rs looked for it.
fn library() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/nccl/nvidia/nccl/lib/libnccl.so.2");
    std::env::var_os("WARPSMITH_TEST_NCCL").map_or(built, PathBuf::from)
}

/// Runs to the end with a GPU, or else to NCCL's error that there is none.
#[test]
#[ignore = "runs in a process of its own"]
fn case_real() {
    let functions = Functions::load().unwrap();
    assert!(functions.version() >= 21300);
    let id = functions.unique_id().unwrap();
    assert!(id != functions.unique_id().unwrap(), "ids are unique");
    match functions.comm_init_rank(1, id, 0) {
        // SAFETY: the communicator was created here, and is not used after it is destroyed.
        Ok(comm) => unsafe {
            functions.comm_async_error(comm).unwrap();
            functions.comm_destroy(comm).unwrap();
            println!("real: a GPU.");
        },
        Err(e) => println!("real: {e:#}."),
    }
}

#[test]
#[cfg_attr(
    not(has_nccl),
    ignore = "needs NCCL (pip install --target build/nccl nvidia-nccl-cu13, then touch build.rs)"
)]
fn the_real_library_answers() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "real::case_real", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = child.env("WARPSMITH_NCCL_LIB", library()).output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let answer = said.lines().find_map(|line| line.split_once("real: ")).map(|(_, answer)| answer);
    println!("{}", answer.unwrap_or_default());
    let no_gpu = "NCCL, ncclCommInitRank: ";
    assert!(answer.is_some_and(|answer| answer.starts_with("a GPU") || answer.starts_with(no_gpu)), "{said}");
}

/// Trains one rank with NCCL, which `train_gpt2cu` does not use for a single process.
#[test]
#[ignore = "runs in a process of its own"]
fn case_train() {
    let flags = "-i x_train_*.bin -j x_val_*.bin -b 2 -t 64 -d 256 -l 3e-4 -v 5 -m 3 -s 0 -x 20 -n 20 -e small.bin --deterministic 1";
    let out = std::env::var("OUT").unwrap();
    let argv = ["train_gpt2cu"].into_iter().chain(flags.split(' ')).chain(["-o", &out]);
    let Parsed::Run(args) = parse(Program::TrainGpt2cu, argv, &|_| None).unwrap() else {
        panic!("these flags print nothing")
    };
    let mut options = DeviceOptions::new(
        args.device.name,
        args.device.dtype.on(args.device.name, None),
        args.device.threads,
    );
    options.deterministic = args.gpu.deterministic;
    let dev = options.open().unwrap();
    let peers = match out.as_str() {
        "alone" => Peers::alone(),
        _ => {
            let nccl = Nccl::open(threads(1).pop().unwrap(), Timeouts::default()).unwrap();
            println!("{}", nccl.describe());
            Peers::new(Process::ALONE, Box::new(nccl))
        }
    };
    assert_eq!(warpsmith::train::run(&args, dev, peers, None).unwrap(), Finish::Completed);
}

#[test]
#[ignore = "needs a GPU (cargo test --test nccl -- --ignored one_rank)"]
fn one_rank_with_nccl_trains_bit_for_bit_as_without() {
    let corpus = Corpus::new();
    common::write_small_model(&corpus.path("small.bin"));
    for out in ["alone", "nccl"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "real::case_train", "--ignored", "--nocapture", "--test-threads=1"]);
        if library().is_file() {
            child.env("WARPSMITH_NCCL_LIB", library());
        }
        let output = child.current_dir(corpus.dir.path()).env("OUT", out).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(said(&output).contains("1 process over NCCL 2."), out == "nccl", "{}", said(&output));
    }
    let [alone, nccl] = ["alone", "nccl"].map(|out| common::losses(&corpus.path(out)));
    assert!(alone.len() == 20 && alone == nccl, "{alone:?}\n{nccl:?}");
    let weights = |out: &str| std::fs::read(corpus.path(out).join("model_00000020.bin")).unwrap();
    assert!(weights("alone") == weights("nccl"), "weights differ");
}
