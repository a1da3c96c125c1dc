//! NVTX: a tool sees steps, passes, layers and operations, and nothing else changes.
#![cfg(target_os = "linux")]

use super::common::{Corpus, TRAIN_GPT2, TRAIN_GPT2CU, losses, refuse, stdout, succeed};
use super::{CONFIG, MICRO_STEPS, corpus, train};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the tool into a new directory.
fn tool() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/profile/nvtx.c");
    let library = dir.path().join("libtool.so");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]);
    succeed(cc.arg(source).arg("-o").arg(&library));
    (dir, library)
}

/// The paths of all ranges, in the order in which they begin: `step 1/micro-step 1/forward`.
/// Asserts that they nest, and that all end.
fn ranges(log: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(log).unwrap();
    let (mut open, mut found) = (Vec::new(), Vec::new());
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("push", name)) => {
                assert!(!name.is_empty(), "{text}");
                open.push(name);
                found.push(open.join("/"));
            }
            Some(("thread", thread)) => {
                let (id, name) = thread.split_once(' ').unwrap();
                assert!(id.parse::<u32>().unwrap() > 0 && name == "training, rank 0", "{line}");
            }
            _ => {
                assert_eq!(line, "pop");
                assert!(open.pop().is_some(), "a pop without a push");
            }
        }
    }
    assert!(open.is_empty(), "still open: {open:?}");
    found
}

/// The run of `command` with the tool, into the directory `name`; its ranges and console.
fn listen(corpus: &Corpus, command: &mut Command, name: &str, library: &Path) -> (Vec<String>, String) {
    let log = corpus.path(&format!("{name}.log"));
    command.args(["-o", name]).env("NVTX_INJECTION64_PATH", library).env("NVTX_LOG", &log);
    let console = stdout(&succeed(command));
    (ranges(&log), console)
}

/// The number of ranges whose path ends so.
fn count(ranges: &[String], path: &str) -> usize {
    ranges.iter().filter(|range| **range == path || range.ends_with(&format!("/{path}"))).count()
}

#[test]
fn a_tool_sees_every_operation_of_a_run_on_the_cpu() {
    let (_dir, library) = tool();
    let corpus = corpus();
    let (flags, steps, layers) = ("-d 64 -v 2 -m 1 -n 2", 4, CONFIG.L);
    let (ranges, console) = listen(&corpus, &mut train(&corpus, TRAIN_GPT2, flags), "heard", &library);
    succeed(train(&corpus, TRAIN_GPT2, flags).args(["-o", "plain"]));
    assert_eq!(losses(&corpus.path("heard")), losses(&corpus.path("plain")));
    assert!(console.contains(&format!("| {}", library.display())), "{console}");

    let top: Vec<_> = ranges.iter().filter(|range| !range.contains('/')).map(|range| &**range).collect();
    let steps_and_more: Vec<_> =
        top.into_iter().filter(|range| !range.starts_with("upload ") && !range.starts_with("fill")).collect();
    let expected = ["step 1", "step 2", "validation", "checkpoint", "step 3", "step 4"];
    assert!(steps_and_more.windows(6).any(|window| window == expected), "{steps_and_more:?}");
    for number in 1..=MICRO_STEPS {
        let micro_step = format!("micro-step {number}");
        for pass in ["load batch", "forward", "backward"] {
            assert_eq!(count(&ranges, &format!("{micro_step}/{pass}")), steps, "{pass} of {micro_step}");
        }
    }
    let passes = steps * MICRO_STEPS;
    for (path, expected) in [
        ("loss and norm", steps),
        ("optimizer", steps),
        ("forward/layer 1", passes),
        ("forward/layer 1/attention_forward", passes),
        ("forward/layer 0/matmul_forward qkvw", passes),
        ("backward/layer 0/attention_backward", passes),
        ("backward/matmul_backward wte", passes),
        ("forward/encoder_forward", passes),
    ] {
        assert_eq!(count(&ranges, path), expected, "{path}");
    }
    for layer in 0..layers {
        let adamw = format!("optimizer/layer {layer}/adamw ");
        assert!(ranges.iter().filter(|range| range.contains(&adamw)).count() >= steps, "{adamw}");
    }
    assert_eq!(count(&ranges, &format!("layer {layers}")), 0);
}

/// On a device with graphs the tool sees micro-steps, and what is in them where they are queued
/// one by one.
#[test]
fn graphs_are_single_ranges_except_in_profiled_steps() {
    let (_dir, library) = tool();
    let corpus = corpus();
    let run = |name: &str, flags: &str| {
        let flags = format!("--device emulated -d 32 {flags}");
        listen(&corpus, &mut train(&corpus, TRAIN_GPT2CU, &flags), name, &library).0
    };
    let graphs = run("graphs", "-x 3 --profile 3");
    for (step, operations) in [(1, 0), (2, 0), (3, 1)] {
        let path = format!("step {step}/micro-step 1");
        assert_eq!(count(&graphs, &path), 1, "{path}");
        let attention = format!("{path}/forward/layer 1/attention_forward");
        assert_eq!(count(&graphs, &attention), operations, "{attention}");
        assert_eq!(count(&graphs, &format!("step {step}/optimizer")), 1);
    }
    let one_by_one = run("one-by-one", "-x 2 --cuda-graphs 0");
    for step in [1, 2] {
        let attention = format!("step {step}/micro-step 1/forward/layer 1/attention_forward");
        assert_eq!(count(&one_by_one, &attention), 1, "{attention}");
    }
}

#[test]
fn a_tool_that_cannot_be_used_is_one_line() {
    let (dir, library) = tool();
    let corpus = corpus();
    let train = |path: &Path| {
        let mut command = train(&corpus, TRAIN_GPT2, "-x 1");
        command.env("NVTX_INJECTION64_PATH", path).env("NVTX_LOG", dir.path().join("log"));
        command
    };
    refuse(
        &mut train(Path::new("/nowhere/tool.so")),
        &["NVTX_INJECTION64_PATH=/nowhere/tool.so", "unset it"],
    );
    let refused = ["NVTX_INJECTION64_PATH=", "it refused to start", "unset it"];
    refuse(train(&library).env("NVTX_FAULT", "refuse"), &refused);
    let empty = dir.path().join("empty.so");
    let source = dir.path().join("empty.c");
    std::fs::write(&source, "int nothing;\n").unwrap();
    succeed(Command::new("cc").args(["-shared", "-fPIC"]).arg(source).arg("-o").arg(&empty));
    refuse(&mut train(&empty), &["empty.so", "it has no InitializeInjectionNvtx2"]);
    // NVTX's own way to load nothing.
    for nothing in ["", "./."] {
        succeed(&mut train(Path::new(nothing)));
    }
}
