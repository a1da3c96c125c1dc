use super::*;
use crate::hub::RepoKind;
use crate::sharding::ZeroStage;

fn argv(line: &str) -> Vec<String> {
    std::iter::once("warpsmith").chain(line.split_whitespace()).map(str::to_owned).collect()
}

fn ok(line: &str) -> Tool {
    match parse(argv(line)) {
        Ok(Parsed::Run(tool)) => tool,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_commands_are_sound_and_documented() {
    Tools::command().debug_assert();
    for command in Tools::command().get_subcommands() {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{} {}", command.get_name(), arg.get_id());
        }
    }
}

#[test]
fn data_reads_its_arguments() {
    let Tool::Data(a) = ok("data a.txt b -o out --name x --shard-size 10 --val-tokens 3 --split-on \\n\\n \
                            --json-field body --force")
    else {
        panic!()
    };
    assert_eq!(a.inputs, [PathBuf::from("a.txt"), PathBuf::from("b")]);
    assert_eq!((a.output, a.name.as_str()), (PathBuf::from("out"), "x"));
    assert_eq!((a.shard_size, a.val_tokens, a.text_column.as_deref()), (10, Some(3), Some("body")));
    assert_eq!((a.split_on.as_deref(), a.force), (Some("\n\n"), true));

    let Tool::Data(a) = ok("data - -o out --split-on ---") else { panic!() };
    assert_eq!((a.inputs[0].to_str(), a.split_on.as_deref()), (Some("-"), Some("---")));
    assert_eq!((a.shard_size, a.val_tokens, a.name.as_str()), (100_000_000, None, "data"));
    assert_eq!((a.text_column, a.force, a.skip_bad_lines, a.allow_special), (None, false, false, false));
    assert_eq!((a.format.as_str(), a.seed, a.dedup, a.val.len()), ("bin", 42, None, 0));

    let line = "data a=0.7 b=0.3 -o out --val v --val w --seed 7 --format npy --dedup minhash --text-column c \
                --decontaminate h.jsonl --min-chars 9 --max-chars 99 --scripts latin,greek";
    let Tool::Data(a) = ok(line) else { panic!() };
    assert_eq!(a.val, [PathBuf::from("v"), PathBuf::from("w")]);
    assert_eq!((a.format.as_str(), a.seed, a.dedup.as_deref()), ("npy", 7, Some("minhash")));
    assert_eq!((a.text_column.as_deref(), a.min_chars, a.max_chars), (Some("c"), Some(9), Some(99)));
    assert_eq!((a.decontaminate.len(), a.scripts), (1, vec!["latin".to_owned(), "greek".to_owned()]));
    assert!(parse(argv("data a -o out --val v --val-tokens 9")).is_err());
}

#[test]
fn get_reads_its_arguments() {
    let Tool::Get(a) =
        ok("get a/b tinystories -o d --copy --include x --include y* --jobs 2 --repo-type dataset")
    else {
        panic!()
    };
    assert_eq!(
        (a.names, a.include),
        (vec!["a/b".into(), "tinystories".into()], vec!["x".into(), "y*".into()])
    );
    assert_eq!((a.copy, a.jobs, a.retries, a.repo_type), (true, 2, 5, RepoKind::Dataset));
    assert!(matches!(ok("get --list"), Tool::Get(a) if a.list && a.names.is_empty()));
}

#[test]
fn stories_have_an_amount() {
    let stories = |line: &str| match ok(line) {
        Tool::Stories(args) => args,
        other => panic!("{other:?}"),
    };
    assert_eq!(stories("stories -o d").amount(), Amount::Tokens(1_000_000));
    assert_eq!(stories("stories -o d --count 5").amount(), Amount::Stories(5));
    assert_eq!(stories("stories -o d --tokens 6 --seed 18446744073709551615").seed, u64::MAX);
    assert!(stories("stories -o a/b.txt").is_text() && !stories("stories -o a/b").is_text());
}

#[test]
fn models_are_sampled_measured_and_converted() {
    let Tool::Sample(a) =
        ok("sample --model m -p Once --max-tokens 5 --temperature 0 --top-k 50 --top-p 0.9 \
                              --seed 1 --count 4 --no-kv-cache --dtype bf16 --threads 2")
    else {
        panic!()
    };
    assert_eq!((a.model.unwrap().to_str(), a.prompt.as_deref(), a.max_tokens), (Some("m"), Some("Once"), 5));
    let s = a.sampler;
    assert_eq!((s.temperature, s.top_k, s.top_p, s.seed, a.count), (0.0, 50, 0.9, 1, 4));
    assert_eq!(
        (a.no_kv_cache, a.numbers.dtype, a.numbers.threads),
        (true, DtypeChoice::Fixed(Dtype::Bf16), 2)
    );

    let Tool::Eval(a) = ok("eval -e m --hellaswag h.jsonl --val v*.bin -b 8 -t 64 --max-batches 3 -o r")
    else {
        panic!()
    };
    assert_eq!((a.batch_size, a.sequence_length, a.max_batches), (8, Some(64), Some(3)));
    assert_eq!(
        (a.val.as_deref(), a.hellaswag, a.output),
        (Some("v*.bin"), Some("h.jsonl".into()), Some("r".into()))
    );

    let Tool::Chat(a) = ok("chat -e m --form pair --adapter d --top-k 3") else { panic!() };
    assert_eq!((a.form, a.adapter, a.sampler.top_k), (Some(ChatForm::Pair), Some("d".into()), 3));

    let Tool::Convert(a) = ok("convert a.bin b.gguf --dtype q8_0") else { panic!() };
    assert_eq!(a.dtype, Stored::Q8_0);
    let Tool::Convert(a) = ok("convert a.bin b.safetensors --dtype float32") else { panic!() };
    assert_eq!((a.input.to_str(), a.output.to_str()), (Some("a.bin"), Some("b.safetensors")));
    assert_eq!(a.dtype, Stored::Float(Dtype::F32));
    let Tool::Parity(a) = ok("parity --debug-state a/gpt2_d12_debug_state.bin --losses 2,1.5") else {
        panic!()
    };
    assert_eq!((a.model(), a.losses), (PathBuf::from("a/gpt2_d12.bin"), vec![2.0, 1.5]));
    assert!(matches!(ok("parity --debug-state d -e m"), Tool::Parity(a) if a.model().to_str() == Some("m")));
    assert!(matches!(ok("plot a b"), Tool::Plot(a) if a.dirs == ["a", "b"].map(PathBuf::from)));
    let Tool::Roofline(a) = ok("roofline -e d12 -b 64 -d 524288 --gpu A100 -r 0") else { panic!() };
    let step = &a.step;
    assert_eq!((step.batch_size, step.sequence_length, step.total_batch_size), (64, 1024, Some(524_288)));
    assert_eq!((step.gpu.name, step.recompute, step.logits_rows), ("a100", Recompute::Nothing, 16_384));
    assert!(
        matches!(ok("roofline --kernel adamw"), Tool::Roofline(a) if a.kernel.as_deref() == Some("adamw"))
    );
    let Tool::Scaling(a) = ok("scaling -e d12 --gpus 8,16 --zero 1 --links pcie5,hdr") else { panic!() };
    assert_eq!((a.gpus, a.zero, a.gpus_per_node), (vec![8, 16], vec![ZeroStage::Zero1], 8));
    assert_eq!((a.links[0].name, a.links[1].name, a.step.model.as_deref()), ("pcie5", "hdr", Some("d12")));
    assert!(
        matches!(ok("flags --write a.md"), Tool::Flags(a) if a.write.as_deref() == Some("a.md".as_ref()))
    );
    assert!(
        matches!(ok("flags --write"), Tool::Flags(a) if a.write.as_deref() == Some("docs/flags.md".as_ref()))
    );
    assert!(matches!(ok("sample -e a -e b --seed 1 --seed 2"), Tool::Sample(a) if a.sampler.seed == 2));
    assert!(matches!(ok("track a --tensorboard"), Tool::Track(a) if a.tensorboard && a.mlflow.is_none()));
    let Tool::Track(a) = ok("track a --tensorboard 0 --mlflow http://b:1/") else { panic!() };
    assert_eq!((a.tensorboard, a.mlflow.as_deref()), (false, Some("http://b:1")));
    assert!(matches!(ok("watch a b --port 0"), Tool::Watch(a) if a.dirs.len() == 2 && a.port == 0));
}

/// Command lines, and the error of each.
const ERRORS: &[(&str, &str)] = &[
    (
        "",
        "no command given; expected get, data, sft, stories, tokenizer, sample, chat, serve, eval, convert, parity, plot, track, watch, roofline, scaling, launch, plan",
    ),
    ("dat", "dat: unknown command; did you mean data?"),
    (
        "xyz",
        "xyz: unknown command; expected get, data, sft, stories, tokenizer, sample, chat, serve, eval, convert, parity, plot, track, watch, roofline, scaling, launch, plan",
    ),
    ("data -o x", "<INPUT>...: missing; --help says what it is"),
    ("data a", "-o/--output: missing; --help says what it is"),
    ("get", "<NAME>...: missing; --help says what it is"),
    ("get a --jobs 0", "--jobs: expected a whole number of at least 1, found 0"),
    ("get a --repo-type space", "--repo-type: expected model or dataset, found space"),
    ("sample", "-e/--model: missing; --help says what it is"),
    ("serve", "-e/--model: missing; --help says what it is"),
    (
        "serve -e m --host nowhere",
        "--host: expected localhost or an IP address, such as 0.0.0.0, found nowhere",
    ),
    ("serve -e m --slots 0", "--slots: expected a whole number of at least 1, found 0"),
    ("sample -e m --top-p 0", "--top-p: expected a number above 0 and at most 1, found 0"),
    ("convert a b.bin --dtype fp16", "--dtype: expected f32 or bf16 in b.bin, found fp16"),
    (
        "convert a b.safetensors --dtype q8_0",
        "--dtype: expected f32, bf16 or fp16 in b.safetensors, found q8_0; .gguf has q8_0",
    ),
    ("convert a b.gg", "convert: expected OUT to end in .bin, .safetensors, .gguf or .npy, found b.gg"),
    ("convert a.jsonl b.gguf", "convert: expected OUT to end in .bin, found b.gguf"),
    ("sample -e m --temperature -1", "--temperature: expected a number of at least 0, found -1"),
    ("sample -e m -g -1", "-g/--max-tokens: expected a whole number of at least 1, found -1"),
    ("eval -e m --val v -b -2", "-b/--batch-size: expected a whole number of at least 1, found -2"),
    ("roofline -e d12 -d -3", "-d/--total-batch-size: expected a whole number of at least 1, found -3"),
    ("sample -e m --unknown 3", "--unknown: unknown flag; --help lists all"),
    ("sample -e m --max-token 3", "--max-token: unknown flag; did you mean --max-tokens?"),
    ("sample -e m --prompt", "-p/--prompt: expected a value after it, found none"),
    ("data a -o x --name a/b", "--name: expected a name without /, found a/b"),
    ("data a -o x --split-on \\q", "--split-on: expected \\n, \\r, \\t or \\\\ after a backslash, found \\q"),
    ("parity", "--debug-state: missing; --help says what it is"),
    ("parity --debug-state d --losses 1,x", "--losses: expected a number of at least 0, found x"),
    (
        "eval -e m",
        "eval: nothing to measure; give --val PATTERN, --hellaswag FILE, --task NAME=FILE, --text FILE or --generate FILE",
    ),
    ("eval -e m --val v --stride 3", "--stride: moves the windows of --text, which is not given"),
    ("track", "<DIR>: missing; --help says what it is"),
    ("track a", "track: nowhere to pass the run on to; give --tensorboard or --mlflow URL"),
    ("track a --mlflow b", "--mlflow: expected a URL such as http://127.0.0.1:5000, found b"),
    ("watch", "<DIR>...: missing; --help says what it is"),
    ("eval -e m --hellaswag h -m 3", "-m/--max-batches: limits --val, which is not given"),
    ("roofline", "-e/--model: missing; --help says what it is"),
    ("scaling", "-e/--model: missing; --help says what it is"),
    ("roofline -e d12 --kernel adamw", "-e/--model: cannot be used together with --kernel"),
    ("roofline -e d12 --gpu v100", "--gpu: expected one of h200, h100, a100, b200, 4090, 5090, found v100"),
    ("convert a b", "convert: expected OUT to end in .bin, .safetensors, .gguf or .npy, found b"),
    ("convert a b.bin c", "c: expected a flag here, found a value without one"),
    ("stories -o x --count 1 --tokens 2", "--count: cannot be used together with --tokens"),
];

#[test]
fn errors_are_one_line() {
    for &(line, expected) in ERRORS {
        match parse(argv(line)) {
            Err(error) => assert_eq!(error.to_string(), expected, "{line}"),
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn help_and_version_are_printed() {
    for line in ["--help", "data --help", "-h", "--version"] {
        assert!(matches!(parse(argv(line)), Ok(Parsed::Print(text)) if text.len() > 10), "{line}");
    }
}
