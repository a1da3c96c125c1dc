//! `--optimizer`, `--optimizer-state` and `--lr-scale` as a user runs them: what they do, that runs
//! resume exactly, on any number of ranks, and what is refused.

mod common;

use common::{Corpus, TRAIN_GPT2, as_rank, forget_after, losses, refuse, stderr, stdout, succeed};
use std::path::Path;
use std::process::{Command, Stdio};
use warpsmith::checkpoint;
use warpsmith::params::{Param, ParamLayout};

const MUON: &str = "-l 1e-3 -c 0.1 --optimizer muon";

/// Runs with these flags, and returns the console.
#[track_caller]
fn train(corpus: &Corpus, flags: &str) -> String {
    stdout(&succeed(corpus.train().args(flags.split_whitespace())))
}

fn model(dir: &Path, step: u32) -> Vec<u8> {
    std::fs::read(dir.join(format!("model_{step:08}.bin"))).unwrap()
}

fn state_bytes(dir: &Path, step: u32) -> Vec<u8> {
    std::fs::read(dir.join(format!("state_{step:08}_00000.bin"))).unwrap()
}

/// The version in a state file's header: llm.c reads 1.
fn version(state: &[u8]) -> i32 {
    i32::from_le_bytes(state[4..8].try_into().unwrap())
}

#[test]
fn runs_of_every_optimizer_resume_bit_for_bit() {
    let corpus = Corpus::new();
    let cases = ["--optimizer adamw --optimizer-state bf16", MUON, "--optimizer muon --optimizer-state bf16"];
    for (number, flags) in cases.into_iter().enumerate() {
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{name}{number}"));
        let flags = format!("-l 1e-3 -u 3 -q 0.1 -n 4 -x 10 {flags}");
        train(&corpus, &format!("{flags} -o {whole}"));
        train(&corpus, &format!("{flags} -o {parts}"));
        forget_after(&corpus.path(&parts), 4);
        let text = train(&corpus, &format!("{flags} -o {parts} -y 1"));
        assert!(text.contains("checkpoint of step 4") && !text.contains("WARNING"), "{text}");
        let [whole, parts] = [whole, parts].map(|name| corpus.path(&name));
        assert_eq!(losses(&whole), losses(&parts), "{flags}");
        assert!(model(&whole, 10) == model(&parts, 10), "{flags}");
        assert!(state_bytes(&whole, 10) == state_bytes(&parts, 10), "{flags}");
    }
}

/// Parameters of the model that `Corpus::train` trains.
fn params(corpus: &Corpus) -> (usize, usize) {
    let config = checkpoint::load_model(&corpus.path("adamw/model_00000002.bin")).unwrap().config;
    let layout = ParamLayout::new(&config);
    let matrices = [Param::Qkvw, Param::Attprojw, Param::Fcw, Param::Fcprojw];
    (layout.len(), matrices.into_iter().map(|param| layout.range(param).len()).sum())
}

#[test]
fn files_hold_what_an_optimizer_has() {
    let corpus = Corpus::new();
    for (name, flags) in [
        ("adamw", "--optimizer adamw"),
        ("muon", "--optimizer muon"),
        ("narrow", "--optimizer adamw --optimizer-state bf16"),
        ("both", "--optimizer muon --optimizer-state bf16"),
    ] {
        train(&corpus, &format!("-x 2 -o {name} {flags}"));
    }
    let state = |name: &str| state_bytes(&corpus.path(name), 2);
    let (all, matrices) = params(&corpus);
    let llmc = state("adamw").len();
    assert_eq!(["adamw", "muon", "narrow", "both"].map(|name| version(&state(name))), [1, 2, 2, 2]);
    assert_eq!(llmc - state("muon").len(), 4 * matrices, "no v of the blocks' matrices");
    assert_eq!(llmc - state("narrow").len(), 2 * 2 * all);
    assert_eq!(llmc - state("both").len(), 2 * 2 * all + 2 * matrices);
}

#[test]
fn muon_learns_faster_here_than_adamw() {
    let corpus = Corpus::new();
    let last = |name: &str, flags: &str| {
        train(&corpus, &format!("-l 3e-3 -x 30 -v 0 -s 0 -o {name} {flags}"));
        losses(&corpus.path(name))[29].1.parse::<f64>().unwrap()
    };
    let (adamw, muon) = (last("adamw", ""), last("muon", "--optimizer muon"));
    assert!(muon < adamw, "muon {muon}, adamw {adamw}");
}

/// Starts ranks that find each other through a file, and waits for them.
#[track_caller]
fn together(corpus: &Corpus, world_size: usize, flags: &str) {
    let rank = |rank: usize| {
        let mut command = Command::new(TRAIN_GPT2);
        let common = "-i x_train_*.bin -j x_val_*.bin --threads 1 -b 1 -t 16 -d 64 -v 0 -s 0";
        command.current_dir(corpus.dir.path()).args(common.split(' ')).args(flags.split_whitespace());
        command.args("--layers 2 --heads 2 --channels 16".split(' '));
        as_rank(&mut command, rank, world_size).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ranks: Vec<_> = (0..world_size).map(rank).collect();
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
}

/// A checkpoint of two ranks goes on with four, and with one, at other stages.
#[test]
fn checkpoints_of_muon_do_not_depend_on_ranks() {
    let corpus = Corpus::new();
    let flags = format!("{MUON} --optimizer-state bf16 -n 3 -x 6 -y 1");
    together(&corpus, 1, &format!("{flags} -o alone"));
    let want = losses(&corpus.path("alone"));
    for (out, (before, z), (after, then_z)) in
        [("a", (2, 1), (4, 3)), ("b", (4, 2), (1, 0)), ("c", (2, 3), (2, 2)), ("d", (1, 0), (2, 1))]
    {
        together(&corpus, before, &format!("{flags} -z {z} -o {out}"));
        forget_after(&corpus.path(out), 3);
        together(&corpus, after, &format!("{flags} -z {then_z} -o {out}"));
        for (got, want) in losses(&corpus.path(out)).iter().zip(&want) {
            let [a, b] = [got, want].map(|line| line.1.parse::<f64>().unwrap());
            assert!((a / b - 1.0).abs() <= 1e-4, "{out}: {got:?}, expected {want:?}");
        }
    }
}

#[test]
fn another_optimizer_does_not_go_on() {
    let corpus = Corpus::new();
    train(&corpus, "-x 2 -o muon --optimizer muon");
    train(&corpus, "-x 2 -o adamw");
    refuse(
        corpus.train().args("-x 4 -o muon -y 1".split(' ')),
        &["--optimizer adamw: ", "has the state of muon; resume with --optimizer muon, or start another run"],
    );
    refuse(
        corpus.train().args("-x 4 -o adamw -y 1 --optimizer muon".split(' ')),
        &["--optimizer muon: ", "has the state of adamw; resume with --optimizer adamw"],
    );
    let text = train(&corpus, "-x 4 -o muon -y 1 --optimizer muon --optimizer-state bf16 --muon-lr 0.01");
    for words in [
        "--optimizer-state bf16: the checkpoint has m and v in f32; they become bf16",
        "--muon-lr 0.01: the run so far used 0.02",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn rates_of_their_own_are_those_of_the_tensors_that_are_named() {
    let corpus = Corpus::new();
    train(&corpus, "-x 3 -l 1e-2 -n 1 -o scaled --lr-scale wte=0,h.1.attn.c_proj.weight=0.5");
    train(&corpus, "-x 3 -l 1e-2 -n 1 -o plain");
    let load = |dir: &str, step: u32| {
        let path = corpus.path(dir).join(format!("model_{step:08}.bin"));
        checkpoint::load_model(&path).unwrap()
    };
    let layout = ParamLayout::new(&load("plain", 1).config);
    // From one state, the second step: how far each element moves.
    let tensor = |dir, step, param| load(dir, step).params[layout.range(param)].to_vec();
    assert_eq!(tensor("scaled", 1, Param::Wte), tensor("scaled", 3, Param::Wte));
    assert_ne!(tensor("plain", 1, Param::Wte), tensor("plain", 3, Param::Wte));
    assert_ne!(tensor("scaled", 1, Param::Fcw), tensor("scaled", 3, Param::Fcw));
}

#[test]
fn what_is_wrong_is_refused() {
    let corpus = Corpus::new();
    let refused = |flags: &str, words: &[&str]| refuse(corpus.train().args(flags.split(' ')), words);
    refused("--lr-scale wqe=2", &["--lr-scale", "expected wte, wpe, ln1w", "h.N-M", "found wqe"]);
    refused("--lr-scale wte=x", &["--lr-scale", "expected a factor of at least 0, found wte=x"]);
    refused("-x 1 --lr-scale h.9=2", &["--lr-scale: h.9: the model has layers 0 to "]);
    refused("--muon-lr 0.1", &["--muon-lr: expected --optimizer muon, found adamw"]);
    refused("--muon-momentum 0.9", &["--muon-momentum: expected --optimizer muon"]);
    refused("--optimizer muon -l 0", &["-l/--learning-rate: expected more than 0 with --optimizer muon"]);
    refused("--optimizer sgd", &["--optimizer", "expected adamw or muon, found sgd"]);
}
