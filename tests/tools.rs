//! The commands of `warpsmith`, run as a user runs them.

mod common;

use common::{
    Corpus, TRAIN_GPT2, TRAIN_GPT2CU, WARPSMITH, refuse, stderr, stdout, succeed, trained, warpsmith,
};
use std::fs;
use std::process::Command;
use warpsmith::device::cuda::fatbins::FATBINS;

/// A report of a bug needs no more than this.
#[test]
fn versions_name_the_program_the_build_and_the_machine() {
    let commit = env!("WARPSMITH_COMMIT");
    let ask = |program: &str, flag: &str| stdout(&succeed(Command::new(program).arg(flag)));
    for program in [TRAIN_GPT2, TRAIN_GPT2CU, WARPSMITH] {
        let name = program.rsplit('/').next().unwrap();
        let line = ask(program, "-V");
        assert!(line.starts_with(&format!("{name} {} (", env!("CARGO_PKG_VERSION"))), "{line}");
        assert!(line.ends_with(")\n") && line.lines().count() == 1, "{line}");
        let table = ask(program, "--version");
        let row = |name: &str| {
            let found = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            found.unwrap_or_else(|| panic!("{name} in\n{table}")).trim().to_owned()
        };
        assert!(table.starts_with(&format!("{name} {}\n", env!("CARGO_PKG_VERSION"))), "{table}");
        assert_eq!(row("commit"), commit);
        assert!(
            row("built").contains(std::env::consts::ARCH) && row("built").contains("rustc 1."),
            "{table}"
        );
        assert_eq!(row("features"), if cfg!(feature = "mpi") { "mpi" } else { "none" });
        assert_eq!(row("GPU kernels").contains("nvcc"), !FATBINS.is_empty(), "{table}");
        assert!(row("CPU").contains("matmuls: f32"), "{table}");
        for name in ["emulated device", "system", "NVIDIA driver", "GPUs", "cuBLASLt", "NCCL"] {
            assert!(!row(name).is_empty(), "{table}");
        }
        assert_eq!(cfg!(feature = "mpi"), table.contains("\nMPI "), "{table}");
    }
}

#[test]
fn stories_become_shards_that_train() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    let report = stdout(&succeed(&mut warpsmith(dir, "stories -o s --count 300 --seed 7")));
    assert!(report.starts_with("300 documents"), "{report}");
    let again = stdout(&succeed(&mut warpsmith(dir, "stories -o t --count 300 --seed 7")));
    assert_eq!(report.replace("s/stories", "t/stories"), again);
    for name in ["stories.txt", "stories_val_000000.bin", "stories_train_000001.bin"] {
        assert!(
            fs::read(dir.join("s").join(name)).unwrap() == fs::read(dir.join("t").join(name)).unwrap(),
            "{name}"
        );
    }
    refuse(&mut warpsmith(dir, "stories -o s --count 300"), &["stories.txt", "--force"]);
    // Folders of a text are made, too.
    succeed(&mut warpsmith(dir, "stories -o new/text/a.txt --count 300 --seed 7"));
    assert!(fs::read(dir.join("new/text/a.txt")).unwrap() == fs::read(dir.join("s/stories.txt")).unwrap());
    succeed(corpus.train().args("-i s/*_train_*.bin -j s/*_val_*.bin -x 3 -v 1 -m 2".split(' ')));
}

#[cfg(target_os = "linux")]
#[test]
fn threads_that_cannot_be_started_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    // Stacks that do not fit the address space.
    let script = format!("ulimit -v 300000; exec {WARPSMITH} stories -o s --tokens 100");
    let mut command = Command::new("bash");
    command.current_dir(dir.path()).args(["-c", &script]).env("RUST_MIN_STACK", "400000000");
    refuse(&mut command, &["cannot start the CPU threads"]);
}

#[test]
fn prompts_may_hold_the_end_of_text() {
    let corpus = Corpus::new();
    trained(&corpus);
    let sample = |prompt: &str| {
        let line = "sample --model log --max-tokens 8 --temperature 0 --prompt";
        stdout(&succeed(warpsmith(corpus.dir.path(), line).arg(prompt)))
    };
    // Both start from the one token <|endoftext|>.
    assert_eq!(sample("<|endoftext|>"), format!("<|endoftext|>{}", sample("")));
}

#[test]
fn samples_are_the_same_with_and_without_the_cache() {
    let corpus = Corpus::new();
    trained(&corpus);
    let sample = |flags: &str| {
        let line = format!("sample --model log --max-tokens 40 --prompt Once --count 2 {flags}");
        stdout(&succeed(&mut warpsmith(corpus.dir.path(), line.trim_end())))
    };
    let text = sample("--seed 3");
    assert!(text.contains("sample 1 of 2") && text.contains("Once"), "{text}");
    assert_eq!(text, sample("--seed 3 --no-kv-cache"));
    assert_eq!(text, sample("--seed 3 --threads 1"));
    assert_ne!(text, sample("--seed 4"));
    assert_eq!(sample("--temperature 0 --seed 1"), sample("--top-k 1 --seed 2"));
    refuse(&mut warpsmith(corpus.dir.path(), "sample --model nowhere"), &["nowhere"]);

    let mut logged = warpsmith(corpus.dir.path(), "sample --model log --max-tokens 1 --threads 2");
    let said = common::stderr(&succeed(logged.env("WARPSMITH_LOG", "info")));
    assert!(said.contains("info: opened the CPU, 2 threads, f32"), "{said}");
}

/// An export beside checkpoints does not hide newer ones, and each tool says which file it took.
#[test]
fn the_newest_checkpoint_is_taken_and_named() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    let flags = "-l 1e-2 -n 2 -v 2 -m 1 -o log";
    succeed(corpus.train().args(flags.split(' ')).args("-x 2".split(' ')));
    succeed(&mut warpsmith(dir, "convert log log/model.safetensors"));
    succeed(corpus.train().args(flags.split(' ')).args("-x 4 -y 1".split(' ')));
    let line = "model: log/model_00000004.bin (step 4)\n";
    let output = succeed(&mut warpsmith(dir, "eval --model log --val x_val_*.bin -b 2 -m 1"));
    assert!(common::stderr(&output).starts_with(line), "{}", common::stderr(&output));
    assert!(stdout(&output).starts_with("val loss "), "{}", stdout(&output));
    let output = succeed(&mut warpsmith(dir, "sample --model log --max-tokens 2"));
    assert_eq!(common::stderr(&output), line);
    let text = stdout(&succeed(&mut warpsmith(dir, "convert log a.bin")));
    assert_eq!(text, "a.bin: 811712 parameters from log/model_00000004.bin (step 4)\n");
    assert!(fs::read(dir.join("a.bin")).unwrap() == fs::read(dir.join("log/model_00000004.bin")).unwrap());
    let text = stdout(&succeed(&mut warpsmith(dir, "convert log/model.safetensors b.bin")));
    assert!(text.ends_with(" from log/model.safetensors\n"), "{text}");

    let train = "-i x_train_*.bin -j x_val_*.bin -b 2 -t 16 -v 0 -s 0 -x 1 -e log";
    let text = stdout(&succeed(Command::new(common::TRAIN_GPT2).current_dir(dir).args(train.split(' '))));
    assert!(text.contains("log/model_00000004.bin (step 4)"), "{text}");
}

#[test]
fn a_path_to_a_part_of_a_model_leads_to_its_folder() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    trained(&corpus);
    succeed(&mut warpsmith(dir, "convert log hf/model.safetensors"));
    fs::copy(dir.join("hf/model.safetensors"), dir.join("hf/model-00001-of-00002.safetensors")).unwrap();
    fs::write(dir.join("hf/model.safetensors.index.json"), "{}").unwrap();
    for name in ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"] {
        let path = format!("hf/{name}");
        refuse(&mut warpsmith(dir, &format!("eval --model {path} --val x")), &[&path, "give the folder, hf"]);
    }
    fs::create_dir(dir.join("pt")).unwrap();
    fs::write(dir.join("pt/pytorch_model.bin"), "").unwrap();
    refuse(&mut warpsmith(dir, "sample --model pt"), &["pt", "found pytorch_model.bin", "safetensors"]);
}

#[test]
fn dropout_goes_with_the_model() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    let train = |flags: &str| stdout(&succeed(corpus.train().args(flags.split(' '))));
    let tune = |flags: &str| {
        let mut command = Command::new(common::TRAIN_GPT2);
        let data = "-i x_train_*.bin -j x_val_*.bin -b 2 -t 16 -v 0 -s 0 -x 1";
        stdout(&succeed(command.current_dir(dir).args(data.split(' ')).args(flags.split(' '))))
    };
    let row = |text: &str| text.lines().find(|line| line.starts_with("| dropout rates")).map(str::to_owned);
    let has = |text: &str, rates: &str| assert!(row(text).unwrap().contains(rates), "{text}");
    has(&train("-x 2 --dropout 0.1 --attn-dropout 0.2 -o log"), "embd 0.1, attn 0.2, resid 0.1 ");
    succeed(&mut warpsmith(dir, "convert log hf/model.safetensors"));
    let config = fs::read_to_string(dir.join("hf/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let rates = ["embd_pdrop", "attn_pdrop", "resid_pdrop"].map(|key| config[key].to_string());
    assert_eq!(rates, ["0.1", "0.2", "0.1"]);
    let of_model = "embd 0.1, attn 0.2, resid 0.1 (of the model; --dropout 0 turns it off)";
    has(&tune("-e hf"), of_model);
    has(&tune("-e log"), of_model);
    has(&tune("-e hf --resid-dropout 0.5"), "embd 0.1, attn 0.2, resid 0.5 ");
    assert_eq!(row(&tune("-e hf --dropout 0")), None);

    // Without the keys, the rates are those of transformers.
    let mut without = config.clone();
    without.as_object_mut().unwrap().retain(|key, _| !key.ends_with("pdrop"));
    fs::write(dir.join("hf/config.json"), without.to_string()).unwrap();
    has(&tune("-e hf"), "embd 0.1, attn 0.1, resid 0.1 (of the model");
    fs::write(dir.join("hf/config.json"), config.to_string().replace("0.2", "1.0")).unwrap();
    let words = ["hf/config.json", "expected attn_pdrop of at least 0 and below 1, found 1"];
    refuse(&mut warpsmith(dir, "sample --model hf"), &words);
}

#[test]
fn eval_agrees_with_training_and_counts_hellaswag() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    trained(&corpus);
    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hellaswag_small.jsonl");
    let mut command =
        warpsmith(dir, "eval --model log --val x_val_*.bin -b 2 -t 16 -m 4 -o r.json --hellaswag");
    let text = stdout(&succeed(command.arg(questions)));
    assert!(text.contains("/24 = "), "{text}");
    let lines = fs::read_to_string(dir.join("r.json")).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 25, "24 questions and a summary");
    let result = &lines[24];
    let log = fs::read_to_string(dir.join("log/metrics.jsonl")).unwrap();
    let last = log
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .find(|l| l["step"] == 20 && l["val_loss"].is_number())
        .unwrap();
    let (eval, train) = (result["val_loss"].as_f64().unwrap(), last["val_loss"].as_f64().unwrap());
    assert!((eval - train).abs() <= 1e-6 * train, "eval {eval}, during training {train}");

    succeed(warpsmith(dir, "convert").args([questions, "questions.bin"]));
    let again = stdout(&succeed(&mut warpsmith(dir, "eval --model log --hellaswag questions.bin")));
    assert!(text.ends_with(&again), "from .jsonl: {text}from .bin: {again}");
}

#[test]
fn files_are_written_though_standard_output_is_closed_or_full() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    trained(&corpus);
    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hellaswag_small.jsonl");
    let eval =
        format!("eval --model log --val x_val_*.bin -b 2 -t 16 -m 4 --hellaswag {questions} -o r.json");
    let scaling = "scaling -e d12 -b 64 --gpus 8 --trace trace.json".to_owned();
    for (line, file, holds) in [(eval, "r.json", "hellaswag_acc"), (scaling, "trace.json", "traceEvents")] {
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let output = succeed(warpsmith(dir, &line).stdout(closed));
        assert!(!stderr(&output).contains("standard output"), "{}", stderr(&output));
        assert!(fs::read_to_string(dir.join(file)).unwrap().contains(holds), "{file}");
        fs::remove_file(dir.join(file)).unwrap();
        if let Ok(full) = fs::File::options().write(true).open("/dev/full") {
            let output = warpsmith(dir, &line).stdout(full).output().unwrap();
            assert_eq!(output.status.code(), Some(2));
            let last = "\nwarpsmith: standard output: No space left on device (os error 28)\n";
            assert!(format!("\n{}", stderr(&output)).ends_with(last), "{}", stderr(&output));
            assert!(fs::read_to_string(dir.join(file)).unwrap().contains(holds), "{file}");
        }
    }
}

#[test]
fn hellaswag_runs_during_training() {
    let corpus = Corpus::new();
    let questions = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hellaswag_small.jsonl");
    let flags = "--context 128 -x 2 -v 1 -m 2 -h 1 -o log --hellaswag-data";
    let text = stdout(&succeed(corpus.train().args(flags.split(' ')).arg(questions)));
    assert!(text.contains("HellaSwag: "), "{text}");
    assert!(fs::read_to_string(corpus.path("log/main.log")).unwrap().contains(" eval:"));

    let short = flags.replace("--context 128", "--context 8 -t 8").replace(" -o log", "");
    let output = succeed(corpus.train().args(short.split(' ')).arg(questions));
    assert!(stdout(&output).contains("HellaSwag: "), "{}", stdout(&output));
    let warnings = common::stderr(&output);
    assert!(warnings.contains("hellaswag_small.jsonl: leaves out "), "{warnings}");
    assert!(warnings.contains("longer than the model's context of 8 tokens"), "{warnings}");
}

#[test]
fn a_run_can_be_plotted() {
    let corpus = Corpus::new();
    trained(&corpus);
    let dir = corpus.dir.path();
    let files = stdout(&succeed(&mut warpsmith(dir, "plot log")));
    assert!(files.contains("plot.svg") && files.contains("plot.png"), "{files}");
    assert!(fs::read(dir.join("log/plot.png")).unwrap().starts_with(b"\x89PNG"));
    refuse(&mut warpsmith(dir, "plot nowhere"), &["nowhere"]);
}

/// The clocks come from machine code if the program has any and there is a disassembler, else from
/// the committed table.
#[test]
fn a_kernel_has_clocks() {
    let dir = tempfile::tempdir().unwrap();
    let name = "matmul_hopper_forward_128x256";
    let text = stdout(&succeed(&mut warpsmith(dir.path(), &format!("roofline --kernel {name} --gpu h100"))));
    for expected in [name, "after loop", "tensor", "latency"] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert!(
        text.contains("from kernels/clocks.tsv, because ") || text.contains("nothing measured"),
        "{text}"
    );

    let unknown = "roofline --kernel matmul_hoper_forward_128x256";
    refuse(&mut warpsmith(dir.path(), unknown), &["--kernel", "matmul_hoper_forward_128x256", name]);
    refuse(
        &mut warpsmith(dir.path(), "roofline --kernel adamw --gpu a100"),
        &["--gpu", "h200 or h100", "a100"],
    );
    fs::create_dir_all(dir.path().join("r/h200")).unwrap();
    fs::write(dir.path().join("r/h200/clocks.json"), r#"{"LDX": {}}"#).unwrap();
    refuse(&mut warpsmith(dir.path(), "roofline --kernel adamw --records r"), &["clocks.json", "LDX"]);
}

#[test]
fn a_step_is_predicted_and_compared_with_records() {
    let dir = tempfile::tempdir().unwrap();
    let line = "roofline -e d12 -b 64 -d 524288 -r 0 --records r";
    let text = stdout(&succeed(&mut warpsmith(dir.path(), line)));
    for expected in ["524,288 tokens", "NVIDIA H200", "65536x2304x768", "tokens a second", "MFU"] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    assert!(!text.contains("measured"), "{text}");

    fs::create_dir_all(dir.path().join("r/h200")).unwrap();
    let record = dir.path().join("r/h200/2026-01-02-kernels.json");
    fs::write(&record, r#"{"kernels": [{"kernel": "adamw", "shape": "124475904", "us": 1234.5}]}"#).unwrap();
    let text = stdout(&succeed(&mut warpsmith(dir.path(), line)));
    assert!(text.contains("1234.5") && text.contains("measured kernels: 1.2 ms a step"), "{text}");

    assert!(!text.contains("binds"), "{text}");
    fs::create_dir_all(dir.path().join("r/emulated")).unwrap();
    let counts = dir.path().join("r/emulated/tiny-kernels.json");
    let fields = r#""sectors_read": 6, "sectors_written": 2, "bytes_read": 192, "bytes_written": 64, "shared_turns": 0"#;
    let entry = format!(r#"{{"kernel": "gelu recompute", "shape": "1x64", {fields}, "tensor_flops": 0"#);
    fs::write(&counts, format!(r#"{{"kernels": [{entry}, "model_bytes": 256}}]}}"#)).unwrap();
    let text = stdout(&succeed(&mut warpsmith(dir.path(), &line.replace("-r 0", "-r 1"))));
    assert!(text.contains("binds") && text.contains("HBM        1.00"), "{text}");
    fs::write(&counts, format!(r#"{{"kernels": [{entry}}}]}}"#)).unwrap();
    refuse(&mut warpsmith(dir.path(), line), &["tiny-kernels.json", "model_bytes"]);
    fs::remove_file(&counts).unwrap();

    fs::write(&record, "{}").unwrap();
    refuse(&mut warpsmith(dir.path(), line), &["2026-01-02-kernels.json", "expected a record of kernels"]);
    refuse(&mut warpsmith(dir.path(), "roofline -e d12 -t 2048"), &["-t/--sequence-length", "1024", "2048"]);
    refuse(&mut warpsmith(dir.path(), "roofline -e d12 -d 5000"), &["-d/--total-batch-size", "4096"]);
    refuse(&mut warpsmith(dir.path(), "roofline -e d13"), &["-e/--model", "d13", "d12"]);
}

/// The columns of the row for a stage and a number of GPUs.
fn row<'a>(text: &'a str, stage: &str, gpus: &str) -> Vec<&'a str> {
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.into_iter().find(|row| row.len() > 2 && row[..2] == [stage, gpus]).expect(text)
}

#[test]
fn a_step_of_many_gpus_is_predicted() {
    let dir = tempfile::tempdir().unwrap();
    let run = |line: &str| stdout(&succeed(&mut warpsmith(dir.path(), line)));
    let text = run("scaling -e d12 -b 64 -t 1024 -d 524288 -r 0 --gpu h200 --gpus 1,8,16 --zero 0,3");
    for expected in ["524,288 tokens", "NVLink 4, 370 of 450", "InfiniBand NDR", "nothing measured"] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    // Micro-steps; parameters, gradients and state, at 16 bytes per parameter; and 20.3 GiB of
    // activations: 32 C bytes per token and layer, 16,384 rows of logits, and the buffers that
    // exist once.
    assert_eq!(row(&text, "0", "1")[2], "8");
    assert_eq!(row(&text, "0", "8")[2], "1");
    assert_eq!(row(&text, "0", "8")[11..16], ["0.23", "0.23", "1.39", "0.00", "20.33"]);
    assert_eq!(row(&text, "3", "8")[11..14], ["0.03", "0.03", "0.17"]);
    assert_eq!(row(&text, "0", "8").last(), Some(&"yes"));
    assert!(
        row(&text, "3", "16").join(" ").contains("8 micro-batches are fewer than the GPUs: -b 32"),
        "{text}"
    );

    let text = run("scaling -e d48 -b 4 --gpu 4090 --gpus 8 --links ndr --gpus-per-node 4");
    assert!(text.contains("one micro-batch per GPU and step"), "{text}");
    assert!(text.contains("PCIe 4.0 x16") && text.contains("InfiniBand NDR"), "{text}");
    let fits = |stage| row(&text, stage, "8").last().copied();
    assert_eq!((fits("0"), fits("3")), (Some("no"), Some("yes")), "{text}");

    let refused = |line: &str, words: &[&str]| refuse(&mut warpsmith(dir.path(), line), words);
    refused("scaling -e d12 --links nvlink9", &["--links", "nvlink4", "nvlink9"]);
    refused("scaling -e d12 --gpu 4090 --links nvlink4", &["--links", "pcie4", "nvlink4"]);
    refused("scaling -e d12 --zero 4", &["--zero", "0, 1, 2 or 3", "4"]);
    refused("scaling -e d12 --gpus 0", &["--gpus", "at least 1", "0"]);
    refused("scaling -e d12 -b 64 -d 1000", &["-d/--total-batch-size", "65536"]);
    refused("scaling -e d12 -t 2048", &["-t/--sequence-length", "1024"]);
}
