//! Properties that hold for any input: what is written is read back, and flags mean the same in
//! every spelling and order.

use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;
use tempfile::TempDir;
use warpsmith::checkpoint::{self, Checkpoint, ModelFile, Saved, Source, State, TensorKind};
use warpsmith::cli::flags::trainer::{TrainArgs, parse};
use warpsmith::cli::{Parsed, Program};
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::loader::{DataLoader, LoaderOptions, Packing, Sample};
use warpsmith::data::prepare::{PrepareOptions, prepare};
use warpsmith::data::shard::{Shard, ShardWriter};
use warpsmith::data::tokenizer::{Tokenizer, TokenizerId};
use warpsmith::eval::tasks::{Choice, Example, Questions, Task};
use warpsmith::params::{Param, ParamLayout};
use warpsmith::tensor::Dtype;

/// The shape of a tiny model.
fn shapes() -> impl Strategy<Value = ModelConfig> {
    (1..20usize, 1..200usize, 1..4usize, 1..4usize, 1..5usize).prop_map(|(maxT, V, L, NH, size)| {
        ModelConfig {
            maxT,
            V,
            Vp: V.next_multiple_of(128),
            L,
            NH,
            C: NH * size * 4,
            qkv_bias: true,
            lora: None,
        }
    })
}

/// Some bits for any index, NaNs of all kinds among them.
fn bits(index: usize, seed: u32) -> u32 {
    (index as u32).wrapping_add(seed).wrapping_mul(0x9e37_79b9).rotate_left(13).wrapping_mul(0x85eb_ca6b)
}

fn write_shard(path: &Path, tokens: &[u32]) {
    let mut writer = ShardWriter::create(path, TokenizerId::GPT2).unwrap();
    writer.write(tokens).unwrap();
    writer.seal().unwrap().publish().unwrap();
}

fn tokens_of(path: &Path) -> Vec<u32> {
    let shard = Shard::open(path).unwrap();
    let mut tokens = vec![0; shard.len()];
    shard.read(0, &mut tokens).unwrap();
    tokens
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn tokens_come_back_from_shards(tokens in prop::collection::vec(0..65536u32, 1..2000)) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("a.bin");
        write_shard(&path, &tokens);
        prop_assert_eq!(tokens_of(&path), tokens);
    }

    #[test]
    fn models_come_back_from_every_format(config in shapes(), seed: u32) {
        let directory = TempDir::new().unwrap();
        let layout = ParamLayout::new(&config);
        let mut params: Vec<f32> = (0..layout.len()).map(|i| f32::from_bits(bits(i, seed))).collect();
        // Hugging Face's format has no padding.
        params[layout.range(Param::Wte)][config.V * config.C..].fill(0.0);
        let expected: Vec<u32> = params.iter().map(|x| x.to_bits()).collect();
        let model = ModelFile { config, dropout: DropoutRates::NONE, params };
        for name in ["a.bin", "a.safetensors", "a"] {
            let path = directory.path().join(name);
            checkpoint::save_model(&path, &model, Dtype::F32).unwrap();
            let found = checkpoint::load_model(&path).unwrap();
            prop_assert_eq!(found.config, config);
            prop_assert!(found.params.iter().map(|x| x.to_bits()).eq(expected.iter().copied()), "{}", name);
        }
    }

    #[test]
    fn checkpoints_come_back(config in shapes(), seed: u32, step in 0..1_000_000u64, master: bool, numbers: [u64; 4]) {
        let directory = TempDir::new().unwrap();
        let [rng_state, rng_state_last_update, shard, sample] = numbers;
        let state = State {
            step,
            num_processes: 1,
            rank: 0,
            use_master_weights: master,
            muon: false,
adapters: false,
            dtype: Dtype::F32,
            rng_state,
            rng_state_last_update,
            loader: warpsmith::data::loader::LoaderState {
                current_shard_idx: shard >> 33,
                current_sample_idx: sample >> 33,
                shuffle: None,
            },
        };
        let value = |kind: TensorKind, i| f32::from_bits(bits(i, seed.wrapping_add(kind as u32 * 7919)));
        let source: &mut Source = &mut |kind, start, out| {
            out.iter_mut().enumerate().for_each(|(i, x)| *x = value(kind, start + i));
            Ok(())
        };
        let base_model = String::new();
        let checkpoint = Checkpoint { config, dtype: Dtype::F32, state: Some(state.clone()), base_model };
        checkpoint.save(directory.path(), &[1.5], source).unwrap();
        prop_assert_eq!(checkpoint::latest::<[f64; 1]>(directory.path()).unwrap().step, Some(step));
        let saved = Saved::open(directory.path(), step, 0).unwrap();
        prop_assert_eq!(&saved.state.state, &state);
        let mut elements = 0;
        saved.restore(&mut |kind, start, found| {
            elements += found.len();
            let same = |(i, x): (usize, &f32)| x.to_bits() == value(kind, start + i).to_bits();
            assert!(found.iter().enumerate().all(same), "{kind:?} from {start}");
            Ok(())
        }).unwrap();
        prop_assert_eq!(elements, ParamLayout::new(&config).len() * if master { 4 } else { 3 });
    }

    #[test]
    fn text_comes_back_from_tokens(text in any::<String>()) {
        prop_assert_eq!(Tokenizer::gpt2().decode_bytes(&Tokenizer::gpt2().encode_ordinary(&text)), text.as_bytes());
    }

    #[test]
    fn json_text_comes_back_from_shards(documents in prop::collection::vec("\\PC{1,40}", 1..8)) {
        let directory = TempDir::new().unwrap();
        let input = directory.path().join("a.jsonl");
        let lines = documents.iter().map(|text| serde_json::json!({"id": 1, "text": text}).to_string() + "\n");
        fs::write(&input, lines.collect::<String>()).unwrap();
        let report = prepare(
            &PrepareOptions {
                // Training text is in the order of the input, if none is drawn for validation.
                val: vec![input.clone()],
                shard_size: 5,
                ..PrepareOptions::new(vec![input], directory.path().join("out"), "data", Tokenizer::gpt2())
            },
            &|_, _| {},
        ).unwrap();
        let mut found = Vec::new();
        let is_train = |shard: &&PathBuf| shard.to_string_lossy().contains("data_train_");
        for shard in report.shards.iter().filter(is_train) {
            found.extend(tokens_of(shard));
        }
        let gpt2 = Tokenizer::gpt2();
        let expected: Vec<u32> =
            documents.iter().flat_map(|text| [vec![gpt2.eot()], gpt2.encode_ordinary(text)].concat()).collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(report.documents, 2 * documents.len() as u64);
    }

    #[test]
    fn questions_come_back(
        questions in prop::collection::vec((prop::array::uniform5(prop::collection::vec(0..50257u32, 1..9)), 0..4usize), 1..6)
    ) {
        let directory = TempDir::new().unwrap();
        let example = |([ctx, a, b, c, d], gold): ([Vec<u32>; 5], usize)| {
            let choice = |tokens: Vec<u32>| Choice { ctx: ctx[..].into(), length: tokens.len(), tokens };
            Example { choices: [a, b, c, d].map(choice).into(), gold }
        };
        let examples: Vec<_> = questions.into_iter().map(example).collect();
        let path = directory.path().join("a.bin");
        let (task, tokenizer) = (Task::HellaSwagLlmc, TokenizerId::GPT2);
        Questions { task, path: path.clone(), tokenizer, examples: examples.clone() }.write_bin(&path).unwrap();
        prop_assert_eq!(Questions::open(task, &path, &Tokenizer::gpt2()).unwrap().examples, examples);
    }

    #[test]
    fn a_loader_continues_from_any_position(
        lengths in prop::collection::vec(20..90usize, 1..4), B in 1..4usize, T in 1..6usize, ranks in 1..4usize,
        by_batch: bool, shuffle: bool, before in 0..40usize
    ) {
        let directory = TempDir::new().unwrap();
        for (n, &length) in lengths.iter().enumerate() {
            let tokens: Vec<u32> = (0..length).map(|i| (n * 100 + i) as u32).collect();
            write_shard(&directory.path().join(format!("{n}.bin")), &tokens);
        }
        let pattern = directory.path().join("*.bin").display().to_string();
        let open = |rank| DataLoader::open(LoaderOptions {
            pattern: &pattern,
            flag: "-i",
            B,
            T,
            rank,
            num_processes: ranks,
            sample: if by_batch { Sample::Batch } else { Sample::Sequence },
            shuffle,
            packing: Packing::default(),
            V: 50257,
        }).unwrap();
        for rank in 0..ranks {
            let (mut first, mut second) = (open(rank), open(rank));
            (0..before).for_each(|_| drop(first.next_batch().unwrap()));
            second.restore(&first.state()).unwrap();
            for _ in 0..10 {
                prop_assert_eq!(first.next_batch().unwrap(), second.next_batch().unwrap());
            }
        }
    }

    #[test]
    fn flags_mean_the_same_in_every_spelling_and_order(flags in flags()) {
        let spell = |spelling: usize| flags.iter().flat_map(move |(names, value)| {
            let [short, long] = *names;
            match spelling {
                0 => vec![short.to_owned(), value.clone()],
                1 => vec![long.to_owned(), value.clone()],
                _ => vec![format!("{long}={value}")],
            }
        });
        let reversed = flags.iter().rev().flat_map(|([short, _], value)| [(*short).to_owned(), value.clone()]);
        let expected = parsed(spell(0));
        for other in [parsed(spell(1)), parsed(spell(2)), parsed(reversed)] {
            prop_assert_eq!(&other, &expected);
        }
    }
}

/// Some flags of the trainer, each at most once, with values of all sizes.
fn flags() -> impl Strategy<Value = Vec<([&'static str; 2], String)>> {
    let number = |names: [&'static str; 2], range: std::ops::Range<u32>| {
        range.prop_map(move |n| (names, n.to_string())).boxed()
    };
    let fraction = |names: [&'static str; 2]| (0.0..1.0f32).prop_map(move |x| (names, x.to_string())).boxed();
    let all = vec![
        number(["-b", "--batch-size"], 0..3000),
        number(["-t", "--sequence-length"], 0..2000),
        number(["-x", "--num-iterations"], 0..100_000),
        number(["-u", "--warmup-iters"], 0..10_000),
        number(["-v", "--val-loss-every"], 0..1000),
        number(["-s", "--sample-every"], 0..1000),
        number(["-nk", "--checkpoints-keep"], 0..10),
        fraction(["-l", "--learning-rate"]),
        fraction(["-q", "--learning-rate-decay-frac"]),
        fraction(["-c", "--weight-decay"]),
        fraction(["-sl", "--skip-update-lossz"]),
        number(["-z", "--zero-stage"], 0..5),
        number(["-d", "--total-batch-size"], 0..10_000_000),
    ];
    let chosen = prop::sample::subsequence((0..all.len()).collect::<Vec<_>>(), 0..=all.len());
    (all, chosen).prop_map(|(all, chosen)| chosen.into_iter().map(|i| all[i].clone()).collect())
}

/// The arguments that a command line gives, or nothing if it is refused.
fn parsed(words: impl Iterator<Item = String>) -> Option<String> {
    static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);
    let argv = ["train_gpt2", "-e", "d12", "-i", "a.bin", "-j", "b.bin"].map(str::to_owned);
    match parse(Program::TrainGpt2, argv.into_iter().chain(words), &|_| None) {
        Ok(Parsed::Run(args)) => Some(format!("{:?}", TrainArgs { started: *STARTED, ..args })),
        Ok(Parsed::Print(text)) => Some(text),
        Err(error) => {
            assert_eq!(format!("{error:#}").lines().count(), 1, "{error:#}");
            None
        }
    }
}
