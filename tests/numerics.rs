//! Numbers that are not finite: the first tensor is named, on every device, nothing else is blamed,
//! and a run may go back to its checkpoint.

mod common;

use common::{Corpus, TRAIN_GPT2, TRAIN_GPT2CU, as_rank, losses, refuse, stderr, stdout, succeed};
use std::process::{Command, Output, Stdio};
use warpsmith::checkpoint;
use warpsmith::data::shard::ShardWriter;
use warpsmith::data::tokenizer::TokenizerId;
use warpsmith::params::{Param, ParamLayout};
use warpsmith::tensor::Dtype;

/// Writes a small model, of which `spoil` changes parameters by name and layer.
fn model(corpus: &Corpus, name: &str, spoil: &[(Param, usize, f32)]) {
    let path = corpus.path(name);
    common::write_small_model(&path);
    let mut file = checkpoint::load_model(&path).unwrap();
    let layout = ParamLayout::new(&file.config);
    for &(param, layer, value) in spoil {
        let range = layout.range(param);
        let len = range.len() / if param.spec().per_layer { file.config.L } else { 1 };
        file.params[range.start + layer * len] = value;
    }
    checkpoint::save_model(&path, &file, Dtype::F32).unwrap();
}

fn train(corpus: &Corpus, program: &str, flags: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(corpus.dir.path()).args("-i x_train_*.bin -j x_val_*.bin -v 0 -s 0".split(' '));
    command.args("-b 1 -t 16 -d 64 --threads 1".split(' ')).args(flags.split(' '));
    command
}

fn ranks(corpus: &Corpus, world_size: usize, flags: &str) -> Vec<Output> {
    let rank = |rank: usize| {
        let mut command = train(corpus, TRAIN_GPT2, flags);
        as_rank(&mut command, rank, world_size).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ranks: Vec<_> = (0..world_size).map(rank).collect();
    ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect()
}

/// Without the flag the step that diverged is repeated under the check.
#[test]
fn the_first_tensor_is_named_on_every_device() {
    let corpus = Corpus::new();
    // The product overflows in the forward pass; the weight itself is not finite.
    model(&corpus, "large.bin", &[(Param::Ln2w, 1, 3e38)]);
    model(&corpus, "nan.bin", &[(Param::Fcw, 1, f32::NAN)]);
    let forward = "in the forward pass of micro-step 1";
    for check in ["", " --check-numerics 1"] {
        for (program, device) in [
            (TRAIN_GPT2, ""),
            (TRAIN_GPT2, " -r 2"),
            (TRAIN_GPT2CU, " --device emulated --dtype f32"),
            (TRAIN_GPT2CU, " --device emulated --dtype bf16"),
        ] {
            let mut nan = train(&corpus, program, &format!("-e nan.bin -x 3{device}{check}"));
            let named = format!(
                "step 1: loss is NaN and gradient norm is NaN; first not finite: fch_gelu of layer 1, written by matmul_forward {forward} (NaN at "
            );
            refuse(&mut nan, &[&named, "which read fcw of layer 1 that was not finite before"]);
            let mut large = train(&corpus, program, &format!("-e large.bin -x 3{device}{check}"));
            refuse(&mut large, &["first not finite: ", "of layer 1, written by matmul_", forward]);
        }
    }
}

/// In layer 1 an activation is 0 and its weights are huge, which only the backward pass multiplies
/// by something else.
#[test]
fn a_gradient_is_named_with_its_pass() {
    let corpus = Corpus::new();
    let path = corpus.path("steep.bin");
    common::write_small_model(&path);
    let mut file = checkpoint::load_model(&path).unwrap();
    let (layout, C) = (ParamLayout::new(&file.config), file.config.C);
    let at = |param: Param| layout.range(param).start;
    file.params[at(Param::Fcb) + 4 * C] = -1e4;
    (0..C).for_each(|c| file.params[at(Param::Fcprojw) + 4 * C * (C + c)] = 3e38);
    file.params[layout.range(Param::Lnfw)].fill(1000.0);
    checkpoint::save_model(&path, &file, Dtype::F32).unwrap();
    for (program, device) in [(TRAIN_GPT2, "-r 1"), (TRAIN_GPT2CU, "--device emulated --dtype f32")] {
        refuse(
            &mut train(&corpus, program, &format!("-e steep.bin -x 3 {device}")),
            &["of layer 1, written by matmul_backward in the backward pass of micro-step 1 ("],
        );
    }
}

#[test]
fn the_check_blames_nothing_in_a_sound_run_and_changes_no_bit() {
    let corpus = Corpus::new();
    model(&corpus, "sound.bin", &[]);
    for (program, device) in [
        (TRAIN_GPT2, "-r 0"),
        (TRAIN_GPT2, "-r 2"),
        (TRAIN_GPT2CU, "--device emulated --deterministic 1 --dtype bf16"),
        (TRAIN_GPT2CU, "--device emulated --deterministic 1 --dtype fp16"),
    ] {
        let run = |check: u8| {
            let flags = format!("-e sound.bin -x 3 {device} --check-numerics {check} -o");
            let dir = format!("out{}-{check}", device.replace(' ', ""));
            succeed(train(&corpus, program, &flags).arg(&dir));
            losses(&corpus.path(&dir))
        };
        assert_eq!(run(0), run(1), "{device}");
    }
    for stage in 0..4 {
        let run = |check: u8| {
            let flags =
                format!("-e sound.bin -x 3 -z {stage} --check-numerics {check} -o ranks-{stage}-{check}");
            ranks(&corpus, 2, &flags)
                .iter()
                .for_each(|output| assert!(output.status.success(), "-z {stage}: {}", stderr(output)));
            losses(&corpus.path(&format!("ranks-{stage}-{check}")))
        };
        assert_eq!(run(0), run(1), "-z {stage}");
    }
}

#[test]
fn several_ranks_look_together() {
    let corpus = Corpus::new();
    model(&corpus, "nan.bin", &[(Param::Fcw, 1, f32::NAN)]);
    for flags in ["-z 0", "-z 3", "-z 1 --check-numerics 1"] {
        for (rank, output) in ranks(&corpus, 2, &format!("-e nan.bin -x 3 {flags}")).iter().enumerate() {
            let said = stderr(output);
            assert_eq!(output.status.code(), Some(2), "{flags}: {said}");
            let named = format!("matmul_forward in the forward pass of micro-step 1 on rank {rank} (NaN");
            // A rank may also learn from the other that the run has ended.
            assert!(said.contains(&named) || said.contains("is gone"), "{flags}: {said}");
            assert!(
                rank > 0 || said.contains(&named) && said.contains("fch_gelu of layer 1"),
                "{flags}: {said}"
            );
        }
    }
}

/// The last token of the vocabulary is harmless to predict and fatal to read.
const FATAL: u32 = 502;

/// Writes a model that diverges where it reads [`FATAL`].
fn fragile_model(corpus: &Corpus, name: &str) {
    let path = corpus.path(name);
    common::write_small_model(&path);
    let mut file = checkpoint::load_model(&path).unwrap();
    let (layout, C) = (ParamLayout::new(&file.config), file.config.C);
    // The final layernorm always gives 10 in its first channel.
    file.params[layout.range(Param::Lnfw).start] = 0.0;
    file.params[layout.range(Param::Lnfb).start] = 10.0;
    let row = FATAL as usize * C;
    file.params[row..row + C].fill(0.0);
    file.params[row] = -1e30;
    checkpoint::save_model(&path, &file, Dtype::F32).unwrap();
}

fn write_text(corpus: &Corpus, name: &str, tokens: &[u32]) {
    let mut writer = ShardWriter::create(&corpus.path(name), TokenizerId::GPT2).unwrap();
    writer.write(tokens).unwrap();
    writer.seal().unwrap().publish().unwrap();
}

/// Steps of 64 tokens: the one at index 13 is fatal, and the checkpoint before it is that of step
/// 10. So the run is the one over the text without steps 10 to 13.
#[test]
fn a_rollback_leaves_the_bad_text_out() {
    let corpus = Corpus::new();
    fragile_model(&corpus, "fragile.bin");
    let mut text: Vec<u32> = (0..64 * 60 + 1).map(|i: usize| (i * i % 101) as u32).collect();
    // The last target before the gap is the same in both texts.
    text[64 * 10] = text[64 * 14];
    let without: Vec<u32> = [&text[..64 * 10], &text[64 * 14..]].concat();
    text[64 * 13 + 20] = FATAL;
    write_text(&corpus, "y_bad.bin", &text);
    write_text(&corpus, "y_without.bin", &without);
    let flags = "-e fragile.bin --shuffle off -x 30 -l 1e-4 -n 5";
    let run = |world_size: usize, more: &str| ranks(&corpus, world_size, &format!("{flags} {more}"));
    for (world_size, stage) in [(1, 0), (2, 0), (2, 1), (2, 3)] {
        let dir = format!("back-{world_size}-{stage}");
        let outputs = run(world_size, &format!("-z {stage} -i y_bad.bin --rollbacks 2 -o {dir}"));
        let said = format!("{}{}", stdout(&outputs[0]), stderr(&outputs[0]));
        assert!(outputs.iter().all(|output| output.status.success()), "{dir}: {said}");
        let warnings: Vec<&str> = said.lines().filter(|line| line.contains("rollback 1 of 2")).collect();
        assert_eq!(warnings.len(), 1, "{said}");
        let told = "back to the checkpoint of step 10, and on with the text after step 14 (rollback 1 of 2)";
        assert!(warnings[0].contains("WARNING: step 14: loss is ") && warnings[0].contains(told), "{said}");
        let want = format!("want-{world_size}-{stage}");
        let outputs = run(world_size, &format!("-z {stage} -i y_without.bin -o {want}"));
        assert!(outputs.iter().all(|output| output.status.success()));
        assert_eq!(losses(&corpus.path(&dir)), losses(&corpus.path(&want)), "{dir}");
        let model = |dir: &str| std::fs::read(corpus.path(dir).join("model_00000030.bin")).unwrap();
        assert!(model(&dir) == model(&want), "{dir}: the final weights differ");
    }
    // Without a rollback left, the run ends as always, and keeps the checkpoint.
    refuse(
        &mut train(&corpus, TRAIN_GPT2, &format!("{flags} -i y_bad.bin -o none")),
        &["step 14: loss is ", "first not finite: ", "the newest checkpoint is that of step "],
    );
    assert!(corpus.path("none/DONE_00000010").exists() && !corpus.path("none/DONE_00000013").exists());
    refuse(&mut train(&corpus, TRAIN_GPT2, "--rollbacks 1 -e fragile.bin -o x"), &["--rollbacks 1", "-n"]);
}

#[test]
fn a_loss_that_is_not_finite_is_said() {
    let corpus = Corpus::new();
    model(&corpus, "nan.bin", &[(Param::Fcw, 1, f32::NAN)]);
    let mut eval = Command::new(common::WARPSMITH);
    eval.current_dir(corpus.dir.path())
        .args("eval --model nan.bin --val x_val_*.bin -m 2 -t 16 -o r".split(' '));
    let output = eval.output().unwrap();
    let said = stderr(&output);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(2), ""), "{said}");
    assert!(said.ends_with("the model's loss is NaN, not finite; it has diverged or is damaged\n"), "{said}");
    assert!(!corpus.path("r").exists());
    let output = train(&corpus, TRAIN_GPT2, "-e nan.bin -x 3 -v 1 -m 2 -n 1 -o out").output().unwrap();
    let text = stdout(&output);
    assert!(text.contains("WARNING: the validation loss is NaN: the model has diverged"), "{text}");
    assert!(!corpus.path("out/model_best.bin").exists());
}
