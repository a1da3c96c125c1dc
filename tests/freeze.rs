//! `--freeze` as a user runs it: what stays, what is shown, and that resuming is exact.

mod common;

use common::{Corpus, forget_after, losses, refuse, refuse_in_the_end, stdout, succeed, write_small_model};
use std::path::Path;
use warpsmith::checkpoint::load_model;
use warpsmith::params::{Param, ParamLayout};

const FREEZE: &str = "--freeze wte,wpe,h.0 -l 1e-2 -c 0.1 -n 3 -y 1";

fn same_files(corpus: &Corpus, step: usize) {
    corpus.assert_same_files([format!("model_{step:08}.bin"), format!("state_{step:08}_00000.bin")]);
}

#[test]
fn frozen_parameters_keep_their_bits_and_a_table_says_which() {
    let corpus = Corpus::new();
    succeed(&mut corpus.train_with("-x 0 -o start"));
    let text = stdout(&succeed(&mut corpus.train_with(&format!("{FREEZE} -x 6 -o out"))));
    let row = |name: &str, value: &str| {
        let expected = format!("| {name:<21} | {value:<50} |");
        assert!(text.lines().any(|line| line == expected), "{expected}\n{text}");
    };
    row("freeze", "wte,wpe,h.0");
    row("wte", "frozen");
    row("qkvw", "trained in h.1: 768 parameters");
    row("lnfb", "trained: 16 parameters");
    // Twelve matrices' and thirteen vectors' worth of 16 in one layer, and the last layernorm.
    let layer = 12 * 16 * 16 + 13 * 16;
    let all = 50304 * 16 + 16 * 16 + 2 * layer + 2 * 16;
    row("trained", &format!("{} parameters, 0.41 %", layer + 32));
    row("frozen", &format!("{} parameters, 99.59 %", all - layer - 32));
    row("decayed", "3072 parameters in 4 tensors");
    let read = |path: &str| load_model(&corpus.path(path)).unwrap();
    let (start, end) = (read("start/model_00000000.bin"), read("out/model_00000006.bin"));
    let layout = ParamLayout::new(&start.config);
    let changed = |from: usize, to: usize| start.params[from..to] != end.params[from..to];
    let at = |param: Param| layout.range(param);
    assert!(!changed(0, at(Param::Wpe).end), "wte and wpe");
    let fcw = at(Param::Fcw);
    let half = fcw.start + fcw.len() / 2;
    assert!(
        !changed(fcw.start, half) && changed(half, fcw.end) && changed(at(Param::Lnfw).start, layout.len())
    );
}

#[test]
fn a_frozen_run_resumes_to_the_same_bits() {
    let corpus = Corpus::new();
    for dir in ["whole", "parts"] {
        succeed(&mut corpus.train_with(&format!("{FREEZE} -x 6 -o {dir}")));
    }
    forget_after(&corpus.path("parts"), 3);
    let text = stdout(&succeed(&mut corpus.train_with(&format!("{FREEZE} -x 6 -o parts"))));
    assert!(!text.contains("WARNING"), "{text}");
    assert_eq!(losses(&corpus.path("parts")), losses(&corpus.path("whole")));
    same_files(&corpus, 6);
}

#[test]
fn kernels_resume_a_frozen_run_to_the_same_bits() {
    let corpus = Corpus::new();
    write_small_model(&corpus.path("small.bin"));
    for dir in ["whole", "parts"] {
        succeed(&mut corpus.train_cu_with(&format!("{FREEZE} -x 4 -o {dir}")));
    }
    forget_after(&corpus.path("parts"), 3);
    succeed(&mut corpus.train_cu_with(&format!("{FREEZE} -x 4 -o parts")));
    assert_eq!(losses(&corpus.path("parts")), losses(&corpus.path("whole")));
    same_files(&corpus, 4);
}

/// Gradual unfreezing: checkpoints are complete, so another set can go on from any.
#[test]
fn another_set_goes_on_with_a_warning() {
    let corpus = Corpus::new();
    write_small_model(&corpus.path("small.bin"));
    let is_finite =
        |dir: &Path| losses(dir).iter().all(|(_, loss, _)| loss.parse::<f64>().unwrap().is_finite());
    let warning = "--freeze: nothing is frozen, and in the run so far wte,wpe,h.0; AdamW's moments";
    succeed(&mut corpus.train_with(&format!("{FREEZE} -x 6 -o out")));
    let text = stdout(&succeed(&mut corpus.train_with("-l 1e-2 -c 0.1 -n 3 -y 1 -x 12 -o out")));
    assert!(text.contains(warning), "{text}");
    assert!(is_finite(&corpus.path("out")) && losses(&corpus.path("out")).len() == 12);
    // bf16 parameters with master weights: those of what was frozen are the parameters.
    succeed(&mut corpus.train_cu_with(&format!("{FREEZE} -x 3 -o cu")));
    let text = stdout(&succeed(&mut corpus.train_cu_with("-l 1e-2 -c 0.1 -n 3 -y 1 -x 5 -o cu")));
    assert!(text.contains(warning) && is_finite(&corpus.path("cu")), "{text}");
    let wte = |step: usize| {
        let model = load_model(&corpus.path(&format!("cu/model_{step:08}.bin"))).unwrap();
        model.params[..503 * 128].to_vec()
    };
    let (before, after) = (wte(3), wte(5));
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.1;
    assert!(
        before != after && before.iter().zip(&after).all(near),
        "the embedding goes on from where it was"
    );
}

#[test]
fn bad_names_are_one_line() {
    let corpus = Corpus::new();
    refuse_in_the_end(
        &mut corpus.train_with("-x 1 --freeze wtf"),
        &["--freeze wtf: expected wte, wpe, ln1w", "found wtf"],
    );
    refuse_in_the_end(
        &mut corpus.train_with("-x 1 --freeze h.0-2"),
        &["--freeze h.0-2: h.0-2: ", "the model has layers 0 to 1"],
    );
    refuse_in_the_end(
        &mut corpus.train_with("-x 1 --freeze wte,wpe,h.0-1,ln_f"),
        &["nothing would be trained"],
    );
    refuse(&mut corpus.train_with("-x 1 --freeze wte --write-tensors 1"), &["--write-tensors 1", "--freeze"]);
}
