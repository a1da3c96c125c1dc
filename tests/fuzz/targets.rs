//! Every reader of what comes from outside, as a function of bytes. Each panics if the reader falls
//! short: if it panics itself, if its error is no line or does not name the file, or if it
//! takes a damaged checkpoint for whole.

#[path = "adapter.rs"]
mod adapter;
#[path = "corpora.rs"]
mod corpora;
#[path = "gguf.rs"]
mod gguf;
#[path = "hub.rs"] // also where cargo-fuzz includes this file by its path
mod hub;
#[path = "serve.rs"]
mod serve;
#[path = "sft.rs"]
mod sft;
#[path = "trackers.rs"]
mod trackers;

use corpora::*;
use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use warpsmith::checkpoint::{self, Checkpoint, DebugState, ModelFile, Source, State, TensorKind};
use warpsmith::cli::Program;
use warpsmith::cli::flags::{trainer, warpsmith as tools};
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::loader::{DataLoader, LoaderOptions, LoaderState, Packing, Sample};
use warpsmith::data::shard::ShardWriter;
use warpsmith::data::tokenizer::{Tokenizer, TokenizerId};
use warpsmith::eval::tasks::{Questions, Task};
use warpsmith::parallel::environment::{Flags, Process};
use warpsmith::parallel::rendezvous::{self, InitMethod};
use warpsmith::params::ParamLayout;
use warpsmith::report::plot::plot_run;
use warpsmith::roofline::record::Records;
use warpsmith::tensor::Dtype;

/// A reader.
pub struct Target {
    pub name: &'static str,
    /// Valid input, which is then damaged.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads the input. Returns whether it was accepted.
    pub run: fn(&[u8]) -> bool,
    /// Microseconds per case, about: slow readers get fewer cases.
    pub cost: usize,
}

pub const TARGETS: &[Target] = &[
    Target { name: "token_shard", seeds: || vec![seed_shard()], run: token_shard, cost: 60 },
    Target { name: "shard_mask", seeds: sft::masks, run: sft::shard_mask, cost: 120 },
    Target { name: "sft_json", seeds: sft::examples, run: sft::json, cost: 200 },
    Target { name: "sft_template", seeds: sft::templates, run: sft::template, cost: 20 },
    Target {
        name: "model_bin",
        seeds: || [Dtype::F32, Dtype::Bf16].map(seed_model).into(),
        run: model_bin,
        cost: 20,
    },
    Target { name: "debug_state", seeds: || vec![seed_debug_state()], run: debug_state, cost: 20 },
    Target { name: "safetensors", seeds: || vec![export("model.safetensors")], run: safetensors, cost: 60 },
    Target { name: "gguf", seeds: gguf::models, run: gguf::read, cost: 2000 },
    Target { name: "config_json", seeds: || vec![export("config.json")], run: config_json, cost: 60 },
    Target { name: "adapter_config", seeds: adapter::configs, run: adapter::config, cost: 100 },
    Target { name: "adapter_weights", seeds: adapter::all_weights, run: adapter::weights, cost: 100 },
    Target { name: "index_json", seeds: || vec![INDEX.into()], run: index_json, cost: 60 },
    Target {
        name: "checkpoint_model",
        seeds: || vec![in_checkpoint(MODEL)],
        run: |b| checkpoint_file(MODEL, b),
        cost: 120,
    },
    Target {
        name: "checkpoint_state",
        seeds: || vec![in_checkpoint(STATE)],
        run: |b| checkpoint_file(STATE, b),
        cost: 120,
    },
    Target {
        name: "checkpoint_run",
        seeds: || vec![in_checkpoint(RUN)],
        run: |b| checkpoint_file(RUN, b),
        cost: 120,
    },
    Target {
        name: "checkpoint_done",
        seeds: || vec![in_checkpoint(DONE)],
        run: |b| checkpoint_file(DONE, b),
        cost: 120,
    },
    Target { name: "log_lines", seeds: trackers::lines, run: trackers::log_lines, cost: 300 },
    Target { name: "event_file", seeds: trackers::event_files, run: trackers::event_file, cost: 60 },
    Target { name: "run_settings", seeds: trackers::run_settings, run: trackers::settings, cost: 60 },
    Target { name: "completion_request", seeds: serve::completions, run: serve::completion, cost: 60 },
    Target { name: "chat_request", seeds: serve::chats, run: serve::chat, cost: 60 },
    Target { name: "hellaswag_bin", seeds: || vec![seed_hellaswag_bin()], run: hellaswag, cost: 20 },
    Target {
        name: "task_jsonl",
        seeds: || TASKS.map(|task| task.as_bytes().to_vec()).into(),
        run: task_jsonl,
        cost: 60,
    },
    Target { name: "hellaswag_jsonl", seeds: || vec![HELLASWAG.into()], run: hellaswag, cost: 60 },
    Target {
        name: "tokenizer_json",
        seeds: || vec![TOKENIZER.into()],
        run: |b| tokenizer("tokenizer.json", b),
        cost: 200,
    },
    Target {
        name: "tokenizer_bin",
        seeds: || vec![seed_tokenizer_bin()],
        run: |b| tokenizer("tokenizer.bin", b),
        cost: 100,
    },
    Target { name: "text", seeds: || vec![TEXT.into()], run: |b| corpus("a.txt", b), cost: 600 },
    Target {
        name: "json_lines",
        seeds: || vec![JSON_LINES.into()],
        run: |b| corpus("a.jsonl", b),
        cost: 600,
    },
    Target { name: "json_array", seeds: || vec![JSON_ARRAY.into()], run: |b| corpus("a.json", b), cost: 600 },
    Target { name: "gzip", seeds: || vec![gzip(TEXT)], run: |b| corpus("a.txt.gz", b), cost: 600 },
    Target { name: "zstd", seeds: || vec![zstd(TEXT)], run: |b| corpus("a.txt.zst", b), cost: 600 },
    Target { name: "parquet", seeds: parquets, run: |b| corpus("a.parquet", b), cost: 600 },
    Target { name: "npy", seeds: || vec![seed_npy()], run: npy, cost: 100 },
    Target { name: "npy_shard", seeds: || vec![seed_npy()], run: token_shard, cost: 60 },
    Target {
        name: "evaluation_set",
        seeds: || vec![EVALUATION.into(), TEXT.into()],
        run: evaluation_set,
        cost: 300,
    },
    Target { name: "metrics", seeds: || vec![METRICS.into()], run: metrics, cost: 60_000 },
    Target { name: "kernel_records", seeds: || vec![RECORDS.into()], run: kernel_records, cost: 5 },
    Target { name: "trainer_flags", seeds: || vec![TRAINER_FLAGS.into()], run: trainer_flags, cost: 300 },
    Target { name: "tool_flags", seeds: || TOOL_FLAGS.map(Vec::from).into(), run: tool_flags, cost: 150 },
    Target { name: "hub_names", seeds: || hub::NAMES.map(Vec::from).into(), run: hub::names, cost: 20 },
    Target { name: "hub_answer", seeds: || vec![hub::answer_seed()], run: hub::answer, cost: 10 },
    Target { name: "hub_cache", seeds: || vec!["a.txt\nsub/b.txt".into()], run: hub::cache, cost: 60 },
    Target { name: "environment", seeds: || ENVIRONMENTS.map(Vec::from).into(), run: environment, cost: 5 },
];

// --- what all of them use

/// A directory of this thread's own, in memory if possible.
fn directory() -> PathBuf {
    thread_local! {
        static DIRECTORY: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
    }
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    DIRECTORY.with(|cell| cell.get_or_init(|| tempfile::tempdir_in(parent).unwrap()).path().to_owned())
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Returns whether the reader took the input. An error has to be short and to contain `name`, or to
/// be about all of the input; the programs print it on one line whatever it quotes.
fn judge<T>(result: anyhow::Result<T>, name: &str) -> bool {
    let Err(error) = result else { return true };
    let line = format!("{error:#}");
    assert!(line.len() < 2000, "not a line: {line:?}");
    assert!(line.contains(name) || line.contains("the input"), "expected {name} to be named: {line}");
    false
}

const CONFIG: ModelConfig =
    ModelConfig { maxT: 8, V: 61, Vp: 128, L: 1, NH: 1, C: 8, qkv_bias: true, lora: None };

fn model() -> ModelFile {
    let params = (0..ParamLayout::new(&CONFIG).len()).map(|i| (i % 97) as f32 * 0.01 - 0.5).collect();
    ModelFile { config: CONFIG, dropout: DropoutRates::NONE, params }
}

// --- models and data

fn seed_model(dtype: Dtype) -> Vec<u8> {
    let path = directory().join("seed.bin");
    let _ = fs::remove_file(&path);
    checkpoint::save_model(&path, &model(), dtype).unwrap();
    fs::read(path).unwrap()
}

fn seed_shard() -> Vec<u8> {
    let path = directory().join("seed_shard.bin");
    let mut writer = ShardWriter::create(&path, TokenizerId::GPT2).unwrap();
    writer.write(&(0..100).map(|i| i % 61).collect::<Vec<u32>>()).unwrap();
    writer.seal().unwrap().publish().unwrap();
    fs::read(path).unwrap()
}

fn token_shard(bytes: &[u8]) -> bool {
    let path = directory().join("shard.bin");
    write(&path, bytes);
    judge(read_shards(&path), "shard.bin")
}

/// Reads some batches.
fn read_shards(path: &Path) -> anyhow::Result<()> {
    let options = LoaderOptions {
        pattern: path.to_str().unwrap(),
        flag: "-i",
        B: 1,
        T: 8,
        rank: 0,
        num_processes: 1,
        sample: Sample::Sequence,
        shuffle: true,
        packing: Packing::default(),
        V: CONFIG.V,
    };
    let mut loader = DataLoader::open(options)?;
    (0..15).try_for_each(|_| loader.next_batch().map(drop))
}

fn model_bin(bytes: &[u8]) -> bool {
    let path = directory().join("model.bin");
    write(&path, bytes);
    judge(checkpoint::load_model(&path), "model.bin")
}

fn seed_debug_state() -> Vec<u8> {
    let (path, config) = (directory().join("seed_state.bin"), model().config);
    let _ = fs::remove_file(&path);
    let (B, T) = (2, 3);
    let tokens: Vec<i32> = (0..6).collect();
    let (logits, grads) = (vec![0.5; 6 * config.V], vec![0.25; ParamLayout::new(&config).len()]);
    let state = DebugState { B, T, inputs: tokens.clone(), targets: tokens, logits, loss: 1.0, grads };
    state.write(&path).unwrap();
    fs::read(path).unwrap()
}

fn debug_state(bytes: &[u8]) -> bool {
    let path = directory().join("state.bin");
    write(&path, bytes);
    judge(DebugState::read(&path, &model().config), "state.bin")
}

/// A file of an export to Hugging Face's format.
fn export(name: &str) -> Vec<u8> {
    let directory = directory().join("seed_export");
    let _ = fs::remove_dir_all(&directory);
    checkpoint::save_model(&directory, &model(), Dtype::F32).unwrap();
    fs::read(directory.join(name)).unwrap()
}

/// Reads an export in which one file has other bytes.
fn export_with(name: &str, bytes: &[u8]) -> bool {
    let directory = directory().join("export");
    for name in ["config.json", "model.safetensors"] {
        if !directory.join(name).exists() || name == "model.safetensors" {
            write(&directory.join(name), &export_file(name));
        }
    }
    write(&directory.join(name), bytes);
    let accepted = judge(checkpoint::load_model(&directory), "export");
    write(&directory.join("config.json"), &export_file("config.json"));
    accepted
}

/// A file of the export, made once.
fn export_file(name: &str) -> Vec<u8> {
    thread_local! {
        static FILES: OnceCell<[Vec<u8>; 2]> = const { OnceCell::new() };
    }
    let index = usize::from(name == "model.safetensors");
    FILES.with(|files| files.get_or_init(|| ["config.json", "model.safetensors"].map(export))[index].clone())
}

fn safetensors(bytes: &[u8]) -> bool {
    export_with("model.safetensors", bytes)
}

fn config_json(bytes: &[u8]) -> bool {
    export_with("config.json", bytes)
}

const INDEX: &str = r#"{"metadata": {"total_size": 9}, "weight_map": {"wte.weight": "part.safetensors",
 "wpe.weight": "part.safetensors", "h.0.ln_1.weight": "part.safetensors"}}"#;

/// The index of an export in several parts, of which one is there.
fn index_json(bytes: &[u8]) -> bool {
    let directory = directory().join("parts");
    write(&directory.join("config.json"), &export_file("config.json"));
    write(&directory.join("part.safetensors"), &export_file("model.safetensors"));
    write(&directory.join("model.safetensors.index.json"), bytes);
    judge(checkpoint::load_model(&directory), "parts")
}

// --- checkpoints

const MODEL: &str = "model_00000004.bin";
const STATE: &str = "state_00000004_00000.bin";
const RUN: &str = "run_00000004.json";
const DONE: &str = "DONE_00000004";

/// Writes a checkpoint, and returns one of its files.
fn in_checkpoint(name: &str) -> Vec<u8> {
    let directory = directory().join("seed_checkpoint");
    let _ = fs::remove_dir_all(&directory);
    let state = State {
        step: 4,
        num_processes: 1,
        rank: 0,
        use_master_weights: false,
        muon: false,
        adapters: false,
        dtype: Dtype::F32,
        rng_state: 1,
        rng_state_last_update: 2,
        loader: LoaderState { current_shard_idx: 0, current_sample_idx: 3, shuffle: None },
    };
    let source: &mut Source = &mut |kind, start, out| {
        let scale = if kind == TensorKind::Params { 1.0 } else { 0.1 };
        out.iter_mut().enumerate().for_each(|(i, x)| *x = (start + i) as f32 * scale);
        Ok(())
    };
    let trainer = serde_json::json!({"best_val_loss": 3.25, "loss_outliers": [1.5, 2.5]});
    fs::create_dir_all(&directory).unwrap();
    let base_model = String::new();
    let checkpoint = Checkpoint { config: CONFIG, dtype: Dtype::F32, state: Some(state), base_model };
    checkpoint.save(&directory, &trainer, source).unwrap();
    fs::read(directory.join(name)).unwrap()
}

/// Opens a checkpoint one of whose files has other bytes. It may be taken for whole only if they
/// are those that were written.
fn checkpoint_file(name: &str, bytes: &[u8]) -> bool {
    thread_local! {
        static FILES: OnceCell<Vec<(&'static str, Vec<u8>)>> = const { OnceCell::new() };
    }
    let files = FILES.with(|files| {
        files.get_or_init(|| [MODEL, STATE, RUN, DONE].map(|name| (name, in_checkpoint(name))).into()).clone()
    });
    let directory = directory().join("checkpoint");
    let mut unchanged = false;
    for (file, original) in &files {
        unchanged |= file == &name && original == bytes;
        write(&directory.join(file), if file == &name { bytes } else { original });
    }
    let latest = checkpoint::latest::<serde_json::Value>(&directory).unwrap();
    let accepted = latest.step.is_some();
    assert_eq!(accepted, unchanged, "{name} is taken for whole: {:?}", latest.warnings);
    for warning in latest.warnings {
        assert!(warning.len() < 2000, "not a line: {warning:?}");
    }
    accepted
}

// --- tokenizers

/// Words between spaces, as the tokenizers library saves them.
const TOKENIZER: &str = r####"{"version": "1.0", "truncation": null, "padding": null, "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
    "added_tokens": [{"id": 1, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "[SEP]": 1, "the": 2, "cat": 3, "##s": 4}}}"####;

/// llm.c's file with all bytes, two merges and an end-of-text token.
fn seed_tokenizer_bin() -> Vec<u8> {
    let header = [20240328, 2, 259, 258].map(u32::to_le_bytes).concat();
    let tokens = (0..=255u8).flat_map(|byte| [1, byte]).chain(*b"\x02th\x03the\x03eot");
    header.into_iter().chain([0; 1008]).chain(tokens).collect()
}

fn tokenizer(name: &str, bytes: &[u8]) -> bool {
    let path = directory().join(name);
    write(&path, bytes);
    judge(Tokenizer::open(&path).map(|tokenizer| tokenizer.encode("The cats, \u{e9}[SEP] the")), name)
}

// --- questions and text

fn seed_hellaswag_bin() -> Vec<u8> {
    let [lines, bin] = ["seed.jsonl", "seed_hellaswag.bin"].map(|name| directory().join(name));
    write(&lines, HELLASWAG.as_bytes());
    Questions::open(Task::HellaSwagLlmc, lines, &Tokenizer::gpt2()).unwrap().write_bin(&bin).unwrap();
    fs::read(bin).unwrap()
}

fn hellaswag(bytes: &[u8]) -> bool {
    let path = directory().join("questions");
    write(&path, bytes);
    judge(Questions::open(Task::HellaSwagLlmc, &path, &Tokenizer::gpt2()), "questions")
}

/// A task, named by the first line, and its questions.
fn task_jsonl(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let Ok(task) = String::from_utf8_lossy(&bytes[..end]).parse::<Task>() else { return false };
    let path = directory().join("questions");
    write(&path, &bytes[end..]);
    judge(Questions::open(task, &path, &Tokenizer::gpt2()), "questions")
}

const TASKS: [&str; 7] = [
    "hellaswag\n{\"activity_label\": \"Roof\", \"ctx_a\": \"A man [x] sits.\", \"ctx_b\": \"he\", \"label\": 1, \"endings\": [\"a\", \"b\"]}",
    "piqa\n{\"goal\": \"Open a jar\", \"sol1\": \"Twist.\", \"sol2\": \"Sing.\", \"label\": 1}",
    "copa\n{\"premise\": \"It broke.\", \"choice1\": \"It fell.\", \"choice2\": \"I left.\", \"question\": \"cause\", \"label\": 0}",
    "arc_easy\n{\"question\": \"Why?\", \"choices\": {\"text\": [\"x\", \"y\"], \"label\": [\"A\", \"B\"]}, \"answerKey\": \"B\"}",
    "winogrande\n{\"sentence\": \"Ann met Eve as _ was early.\", \"option1\": \"Ann\", \"option2\": \"Eve\", \"answer\": \"2\"}",
    "lambada\n{\"text\": \"He saw his dog\"}",
    "multiple_choice\n{\"context\": \"A cat\", \"choices\": [\"sat.\", \"flew.\"], \"gold\": 0}",
];

const HELLASWAG: &str = concat!(
    r#"{"ind": 4, "ctx": "A man sits on a roof. He", "label": 3, "endings": ["is glad.", "rips it.", "plays.", "starts."]}"#,
    "\n",
    r#"{"ind": 7, "ctx": "A caf\u00e9. She", "label": "0", "endings": ["walks.", "runs.", "sleeps.", "\ud83d\ude00 eats."]}"#,
    "\n",
);

// --- records

const METRICS: &str = r#"{"step":0,"val_loss":4.1180773,"val_perplexity":61.44}
{"step":0,"loss":4.1306148,"norm":0.17,"lr":0.01,"ms":1.1,"tok_per_s":14509.7}
{"step":1,"loss":4.1143627,"norm":0.14,"lr":0.02,"ms":1.7,"tok_per_s":9179.4}
{"step":2,"loss":4.0,"norm":0.14,"lr":0.02,"ms":1.7,"tok_per_s":9179.4}
"#;

fn metrics(bytes: &[u8]) -> bool {
    let directory = directory().join("run");
    write(&directory.join("metrics.jsonl"), bytes);
    let accepted = judge(plot_run(&directory), "run");
    if let (true, Ok(svg)) = (accepted, fs::read_to_string(directory.join("plot.svg"))) {
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "a coordinate that is not finite");
    }
    accepted
}

const RECORDS: &str = r#"{"gpu": "NVIDIA H200", "kernels": [{"kernel": "qkv forward", "shape": "65536x2304x768", "us": 312.5}]}"#;

fn kernel_records(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    judge(Records::default().add(&text), "")
}

// --- flags and variables

const TRAINER_FLAGS: &str = "-e d12 -i a_*.bin -j b.bin -o out -b 4 -t 64 -d 512 -l 3e-4 -u 10 -q 0.1 -c 0.1 -x 20 -v 5 -m 2 -s 10 -g 5 -h 0 -n 5 -nk 2 -nm 10 -y 1 -z 1 -r 1 -sl 6 -sg 6 -k wsd -pn 2 -pr 1 -pi tcp -ps host:99";

fn trainer_flags(bytes: &[u8]) -> bool {
    let none = |_: &str| None;
    judge(trainer::parse(Program::TrainGpt2, arguments("train_gpt2", bytes), &none), "")
}

const TOOL_FLAGS: [&str; 10] = [
    "get tinystories a/b -o out --copy --revision v1 --repo-type dataset --include *.txt --jobs 2 --retries 1",
    "data a.txt b.jsonl -o out --name x --shard-size 1000 --val-tokens 10 --json-field body --force",
    "sample -e out -p Once -g 20 --temperature 0.7 --top-k 40 --top-p 0.9 --seed 7 --count 2",
    "chat -e out --adapter dir --template t.json --form pair --system Once -g 20 --top-k 40 --seed 7",
    "eval -e a.bin -j val_*.bin --hellaswag h.jsonl -b 4 -t 64 -m 3 -o r.jsonl --device cpu --dtype bf16",
    "launch -n 4 --restarts 2 -- ./train_gpt2 -y 1",
    "track out --tensorboard 1 --mlflow http://localhost:5000",
    "serve -e out --host 0.0.0.0 --port 0 --api-key k --slots 4 --queue 9 --template t.json",
    "watch out other --port 0 --export report.html",
    "scaling -e d48 -b 4 --gpu h100",
];

fn tool_flags(bytes: &[u8]) -> bool {
    judge(tools::parse(arguments("warpsmith", bytes)), "")
}

/// A command line: the program, then the words of the text.
fn arguments(program: &str, bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    [program].into_iter().chain(text.split(' ')).map(str::to_owned).collect()
}

const ENVIRONMENTS: [&str; 4] = [
    "RANK=1\nWORLD_SIZE=4\nLOCAL_RANK=1\nMASTER_ADDR=node7\nMASTER_PORT=29500\nTORCHELASTIC_RUN_ID=x",
    "OMPI_COMM_WORLD_RANK=5\nOMPI_COMM_WORLD_SIZE=8\nOMPI_COMM_WORLD_LOCAL_RANK=1\nOMPI_COMM_WORLD_LOCAL_SIZE=8",
    "SLURM_PROCID=5\nSLURM_STEP_NUM_TASKS=8\nSLURM_LOCALID=1\nSLURM_STEP_NODELIST=gpu[07-09,12],login1\nSLURM_JOB_ID=40001",
    "PMI_RANK=5\nPMI_SIZE=8\nMPI_LOCALRANKID=1\nMPI_LOCALNRANKS=8\nPMIX_NAMESPACE=a",
];

fn environment(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let variable = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let flags = Flags { gpus_per_node: 8, ..Flags::default() };
    let found = Process::find(flags, &variable);
    judge(found.and_then(|process| rendezvous::find(&process, &InitMethod::Auto, &variable)), "")
}
