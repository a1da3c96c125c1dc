use super::*;
use crate::data::shard::Shard;
use crate::data::tokenizer::EOT_TEXT;
use std::cell::Cell;
use tempfile::TempDir;

/// A folder with `in/`, and options that read it into `out/`.
fn corpus(files: &[(&str, &str)]) -> (TempDir, PrepareOptions) {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        let path = dir.path().join("in").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let (inputs, output) = (vec![dir.path().join("in")], dir.path().join("out"));
    let options = PrepareOptions {
        shard_size: 100,
        val_tokens: Some(30),
        ..PrepareOptions::new(inputs, output, "c", Tokenizer::gpt2())
    };
    (dir, options)
}

const EOT: u32 = 50256;

fn encode_ordinary(text: &str) -> Vec<u32> {
    Tokenizer::gpt2().encode_ordinary(text)
}

fn run(options: &PrepareOptions) -> Result<PrepareReport> {
    prepare(options, &|_, _| {})
}

fn tokens(report: &PrepareReport) -> Vec<Vec<u32>> {
    report.shards.iter().map(|path| Shard::open(path).unwrap().tokens().to_vec()).collect()
}

/// Gives the options validation text of its own, so that training text is in the order of the
/// input. It is one document of one token.
fn give_val(dir: &TempDir, options: &mut PrepareOptions) {
    fs::write(dir.path().join("v.txt"), "word").unwrap();
    (options.val, options.val_tokens) = (vec![dir.path().join("v.txt")], None);
}

/// The tokens of all training shards.
fn train_tokens(report: &PrepareReport) -> Vec<u32> {
    let names = names(report);
    let shards = tokens(report).into_iter().zip(&names);
    shards.filter(|(_, name)| name.contains("_train_")).flat_map(|(tokens, _)| tokens).collect()
}

fn text(tokens: &[u32]) -> String {
    String::from_utf8(Tokenizer::gpt2().decode_bytes(tokens)).unwrap()
}

fn names(report: &PrepareReport) -> Vec<&str> {
    report.shards.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect()
}

fn refusal(options: &PrepareOptions) -> String {
    let message = format!("{:#}", run(options).unwrap_err());
    assert!(!message.contains('\n'), "{message}");
    message
}

fn story(seed: usize) -> String {
    (0..40 + seed).map(|i| format!("word{} and {}, ", i * seed, i % 7)).collect()
}

#[test]
fn shards_are_cut_exactly_and_hold_all_text() {
    let (a, b) = (story(1), story(2));
    let (_dir, options) = corpus(&[("b/2.md", &b), ("a.txt", &a), (".hidden", "\u{0}"), ("z.txt", "")]);
    let report = run(&options).unwrap();
    let shards = tokens(&report);
    // The first document is drawn, and what is left of it comes last.
    let drawn = [&[EOT], &encode_ordinary(&a)[..]].concat();
    let (val, rest) = drawn.split_at(30);
    let expected = [val, &[EOT], &encode_ordinary(&b), &[EOT], rest].concat();
    assert_eq!(shards.concat(), expected);
    assert_eq!(names(&report)[..3], ["c_val_000000.bin", "c_train_000001.bin", "c_train_000002.bin"]);
    let (last, full) = shards[1..].split_last().unwrap();
    assert_eq!(shards[0].len(), 30);
    assert!(full.len() >= 3 && full.iter().all(|s| s.len() == 100) && last.len() <= 100);
    assert_eq!((report.documents, report.input_bytes), (2, (a.len() + b.len()) as u64));
    assert_eq!(report.val_tokens + report.train_tokens, expected.len() as u64);
    assert_eq!(fs::read_dir(&options.output).unwrap().count(), shards.len());
}

#[test]
fn a_stream_that_ends_with_a_shard_makes_no_empty_one() {
    let text = "a ".repeat(228);
    let (_dir, options) = corpus(&[("a.txt", text.trim_end())]);
    let report = run(&options).unwrap();
    assert_eq!(tokens(&report).iter().map(Vec::len).collect::<Vec<_>>(), [30, 100, 99]);
    let (_dir, options) = corpus(&[("a.txt", &"a ".repeat(229)[..457])]);
    assert_eq!(tokens(&run(&options).unwrap()).iter().map(Vec::len).collect::<Vec<_>>(), [30, 100, 100]);
}

#[test]
fn text_and_json_lines_mix_in_the_order_given() {
    let (dir, mut options) = corpus(&[
        ("a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two <|endoftext|>\"}\n"),
        ("b.txt", "three ### four"),
    ]);
    options.inputs = vec![dir.path().join("in/b.txt"), dir.path().join("in/a.jsonl")];
    options.split = Split::On("###".to_owned());
    give_val(&dir, &mut options);
    let report = run(&options).unwrap();
    assert_eq!(report.documents, 5);
    let (e, train) = ("<|endoftext|>", train_tokens(&report));
    assert_eq!(text(&train), format!("{e}three{e}four{e}one{e}two {e}"));
    assert_eq!(train.iter().filter(|&&t| t == EOT).count(), 4);
}

#[test]
fn the_end_of_text_in_a_document_is_text_or_a_token() {
    let (dir, mut options) =
        corpus(&[("a.jsonl", "{\"text\": \"one<|endoftext|>two\"}\n"), ("b.txt", "three<|endoftext|>four")]);
    give_val(&dir, &mut options);
    options.force = true;
    let mark = encode_ordinary(EOT_TEXT);
    let word = |text: &str| encode_ordinary(text);
    let [one, two, three, four] = ["one", "two", "three", "four"].map(word);
    let end = &[EOT][..];
    let report = run(&options).unwrap();
    assert_eq!((report.documents, report.end_of_text_marks), (4, 1));
    let expected = [end, &one, &mark, &two, end, &three, end, &four].concat();
    assert_eq!(train_tokens(&report), expected);
    options.allow_special = true;
    let expected = [end, &one, end, &two, end, &three, end, &four].concat();
    assert_eq!(train_tokens(&run(&options).unwrap()), expected);
    (options.split, options.allow_special) = (Split::Never, false);
    let report = run(&options).unwrap();
    assert_eq!((report.documents, report.end_of_text_marks), (3, 0));
    let expected = [end, &one, &mark, &two, end, &three, &mark, &four].concat();
    assert_eq!(train_tokens(&report), expected);
}

#[test]
fn a_folder_that_holds_its_own_output_can_be_read_again() {
    let (dir, mut options) = corpus(&[("a.txt", &story(1))]);
    options.output = dir.path().join("in/../in/out");
    let first = tokens(&run(&options).unwrap());
    options.force = true;
    assert_eq!(tokens(&run(&options).unwrap()), first);
    options.name = "d".to_owned();
    let error = refusal(&options);
    assert!(error.contains("out/c_train_000001.bin: a token shard, which is tokenized already"), "{error}");
}

#[test]
fn tokens_do_not_depend_on_threads_and_progress_reaches_the_end() {
    let long: String = (0..600).map(|i| story(i % 90 + 1) + "\n").collect();
    assert!(long.len() > 2 * encode::BATCH_BYTES);
    let (dir, mut options) = corpus(&[("a.txt", &long), ("b.txt", &long)]);
    options.shard_size = 60_000;
    let last = Cell::new((0, 0));
    let report = prepare(&options, &|done, total| {
        assert!(done >= last.get().0 && done <= total);
        last.set((done, total));
    });
    let many = tokens(&report.unwrap());
    assert_eq!(last.get(), (2 * long.len() as u64, 2 * long.len() as u64));
    options.output = dir.path().join("single");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let single = pool.install(|| tokens(&run(&options).unwrap()));
    assert!(many == single);
    give_val(&dir, &mut options);
    options.force = true;
    let whole = [&[EOT], &encode_ordinary(&long)[..]].concat();
    assert!(train_tokens(&run(&options).unwrap()) == [&whole[..], &whole[..]].concat());
}

#[test]
fn existing_shards_are_only_replaced_by_force_and_then_all_of_them() {
    let (dir, mut options) = corpus(&[("a.txt", &story(1))]);
    options.shard_size = 20;
    let many = run(&options).unwrap();
    assert!(many.shards.len() > 5);
    let error = refusal(&options);
    assert!(error.contains("c_train_000001.bin: already exists") && error.contains("--force"), "{error}");
    fs::write(dir.path().join("out/cc_train_000001.bin"), "another's").unwrap();
    options.force = true;
    options.shard_size = 1000;
    let few = run(&options).unwrap();
    assert_eq!(names(&few), ["c_val_000000.bin", "c_train_000001.bin"]);
    assert_eq!(fs::read_dir(&options.output).unwrap().count(), 3);
    assert_eq!(tokens(&few).concat(), [&[EOT], &encode_ordinary(&story(1))[..]].concat());
    options.force = false;
    options.name = "d".to_owned();
    run(&options).unwrap();
}

#[test]
fn an_error_leaves_the_folder_as_it_was() {
    let (dir, mut options) = corpus(&[("a.txt", &story(3))]);
    let before = run(&options).unwrap();
    let kept = tokens(&before);
    fs::write(dir.path().join("in/b.txt"), b"bad \xff").unwrap();
    options.force = true;
    assert!(refusal(&options).contains("b.txt: byte 4 is not UTF-8"));
    assert_eq!(tokens(&before), kept);
    assert_eq!(fs::read_dir(&options.output).unwrap().count(), kept.len());
}

#[test]
fn senseless_requests_are_refused() {
    let (dir, good) = corpus(&[("a.txt", "just a few words"), ("none.txt", "")]);
    let refuse = |change: &dyn Fn(&mut PrepareOptions)| {
        let mut options = good.clone();
        change(&mut options);
        refusal(&options)
    };
    assert!(refuse(&|o| o.inputs = vec![dir.path().join("in/none.txt")]).contains("the input is empty"));
    assert!(refuse(&|_| {}).contains("5 tokens; 30 for validation"));
    assert!(refuse(&|o| o.val_tokens = Some(5)).contains("none for training"));
    assert!(refuse(&|o| o.val_tokens = Some(0)).contains("--val-tokens 0"));
    assert!(refuse(&|o| o.shard_size = 0).contains("--shard-size 0"));
    assert!(refuse(&|o| o.shard_size = 1 << 31).contains("--shard-size 2147483648"));
    assert!(refuse(&|o| o.split = Split::On(String::new())).contains("--split-on"));
    for name in ["", "a/b", ".a"] {
        assert!(refuse(&|o| o.name = name.to_owned()).contains("--name"));
    }
    assert!(refuse(&|o| o.inputs = vec![dir.path().join("none")]).contains("none: cannot read"));
    assert!(refuse(&|o| o.inputs.clear()).contains("no files"));
    fs::create_dir(dir.path().join("empty")).unwrap();
    assert!(refuse(&|o| o.inputs = vec![dir.path().join("empty")]).contains("no files in"));
    let piped = refuse(&|o| (o.inputs, o.val_tokens) = (vec!["-".into()], None));
    assert!(piped.contains("--val-tokens or --val is required"));
    assert!(refuse(&|o| o.output = dir.path().join("in/a.txt")).contains("cannot create the directory"));
    assert!(!good.output.exists());
}

#[test]
fn validation_is_a_power_of_two_up_to_a_shard() {
    assert_eq!(default_val_tokens(0, 100), 1);
    // llm.c splits tinyshakespeare this way.
    assert_eq!(default_val_tokens(1_115_394, DEFAULT_SHARD_SIZE), 32_768);
    assert_eq!(default_val_tokens(50_000_000_000, DEFAULT_SHARD_SIZE), 1 << 24);
    assert_eq!(default_val_tokens(50_000_000_000, 1000), 1000);
}

/// A document per number: `document 7 7 7 …`.
fn numbered(documents: usize) -> String {
    let document = |i: usize| format!("document{}", format!(" {i}").repeat(10));
    (0..documents).map(document).collect::<Vec<_>>().join(EOT_TEXT)
}

#[test]
fn validation_documents_are_drawn_from_all_of_the_input_by_the_seed() {
    let (dir, mut options) = corpus(&[("a.txt", &numbered(300)), ("b.txt", &numbered(300))]);
    options.val_tokens = Some(800);
    let of = |options: &PrepareOptions| {
        let report = run(options).unwrap();
        let shards = tokens(&report);
        assert_eq!((report.val_tokens, shards[0].len(), report.documents), (800, 800, 600));
        text(&shards[0])
    };
    let first = of(&options);
    let documents = first.matches(EOT_TEXT).count();
    assert!((50..90).contains(&documents), "{documents}");
    let numbers: Vec<usize> = first.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers.iter().min() < Some(&30) && numbers.iter().max() > Some(&270), "{numbers:?}");
    options.force = true;
    assert_eq!(of(&options), first);
    options.seed = 43;
    assert_ne!(of(&options), first);
    // A plain text of several pieces is drawn from in pieces.
    fs::write(dir.path().join("in/a.txt"), story(9).repeat(2000)).unwrap();
    fs::remove_file(dir.path().join("in/b.txt")).unwrap();
    let report = run(&options).unwrap();
    assert_eq!((report.documents, report.val_tokens), (1, 800));
}

#[test]
fn validation_text_of_ones_own_is_used_as_it_is() {
    let (dir, mut options) = corpus(&[("a.txt", "one two three")]);
    options.shard_size = 4;
    fs::write(dir.path().join("v.txt"), "five six seven eight nine ten").unwrap();
    (options.val, options.val_tokens) = (vec![dir.path().join("v.txt")], None);
    let report = run(&options).unwrap();
    assert_eq!(names(&report), ["c_val_000000.bin", "c_val_000001.bin", "c_train_000002.bin"]);
    let shards = tokens(&report);
    assert_eq!(text(&shards[..2].concat()), "<|endoftext|>five six seven eight nine ten");
    assert_eq!(text(&shards[2]), "<|endoftext|>one two three");
    assert_eq!((report.val_tokens, report.train_tokens, report.documents), (7, 4, 2));
    options.val_tokens = Some(3);
    assert!(refusal(&options).contains("--val-tokens: expected this or --val"));
    fs::write(dir.path().join("v.txt"), "").unwrap();
    options.val_tokens = None;
    options.force = true;
    assert!(refusal(&options).contains("--val: the input is empty"));
}

#[test]
fn weighted_inputs_are_mixed_until_one_is_used_up() {
    let (dir, mut options) = corpus(&[]);
    let story = |name: &str| format!("{name} ").repeat(20).trim_end().to_owned();
    let write = |name: &str, documents: usize| {
        fs::write(dir.path().join(name), vec![story(name); documents].join(EOT_TEXT)).unwrap();
    };
    write("web", 1000);
    write("code", 100);
    write("wiki", 1000);
    let input =
        |name: &str, weight: &str| PathBuf::from(format!("{}={weight}", dir.path().join(name).display()));
    options.inputs = vec![input("web", "6"), input("code", "1"), input("wiki", "3")];
    options.shard_size = 100_000;
    give_val(&dir, &mut options);
    let report = run(&options).unwrap();
    let total: u64 = report.mixed.iter().map(|part| part.bytes).sum();
    let shares: Vec<f64> = report.mixed.iter().map(|part| part.bytes as f64 / total as f64).collect();
    for (share, expected) in shares.iter().zip([0.6, 0.1, 0.3]) {
        assert!((share - expected).abs() < 0.01, "{shares:?}");
    }
    assert_eq!(report.mixed.iter().map(|p| p.is_used_up).collect::<Vec<_>>(), [false, true, false]);
    let train = text(&train_tokens(&report));
    assert_eq!(train.matches("code").count(), 2000);
    // Documents stay whole.
    let documents: Vec<&str> = train.split(EOT_TEXT).skip(1).collect();
    assert!(documents.iter().all(|d| ["web", "code", "wiki"].iter().any(|name| *d == story(name))));
    let halves = documents.split_at(documents.len() / 2);
    let web = |half: &[&str]| half.iter().filter(|d| d.starts_with("web")).count();
    assert!(web(halves.0).abs_diff(web(halves.1)) <= 1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    options.force = true;
    assert_eq!(pool.install(|| run(&options).unwrap()), report);
    assert!(text(&train_tokens(&report)) == train);
}

#[test]
fn documents_that_a_filter_rejects_are_left_out_with_examples() {
    let long = "go on ".repeat(60_000);
    let documents = ["once", "twice", "ONCE ", &long, "где", "twice", "last", &long];
    let (dir, mut options) = corpus(&[("a.txt", &documents.join(EOT_TEXT))]);
    give_val(&dir, &mut options);
    options.shard_size = 1 << 20;
    options.filter = FilterOptions {
        dedup: Some(crate::data::filter::Dedup::Exact),
        scripts: vec!["latin".to_owned()],
        ..FilterOptions::default()
    };
    let of = |options: &PrepareOptions| {
        let report = run(options).unwrap();
        let reasons: Vec<(u64, usize)> =
            report.removed.iter().map(|r| (r.documents, r.examples.len())).collect();
        (text(&train_tokens(&report)), reasons, report.documents)
    };
    let kept = ["", "once", "twice", long.trim_end(), "last"].join(EOT_TEXT);
    let expected = (kept, vec![(1, 1), (3, 3)], 5);
    assert!(of(&options) == expected);
    options.force = true;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    assert!(pool.install(|| of(&options)) == expected);
}

#[test]
fn shards_are_written_in_the_form_of_other_programs() {
    let (_dir, mut options) = corpus(&[("a.txt", &story(1))]);
    let bin = run(&options).unwrap();
    options.format = ShardFormat::Npy;
    let npy = run(&options).unwrap();
    assert_eq!(names(&npy)[..2], ["c_val_000000.npy", "c_train_000001.npy"]);
    assert_eq!(tokens(&npy), tokens(&bin));
    assert!(refusal(&options).contains("c_train_000001.npy: already exists"));
    options.format = ShardFormat::Raw;
    let raw = run(&options).unwrap();
    assert_eq!(names(&raw), ["val.bin", "train.bin"]);
    let bytes: Vec<u8> = raw.shards.iter().flat_map(|path| fs::read(path).unwrap()).collect();
    let found: Vec<u32> = bytes.chunks(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect();
    assert_eq!(found, tokens(&bin).concat());
    assert!(refusal(&options).contains("train.bin: already exists"));
}

#[test]
fn parquet_files_become_shards_and_their_columns_are_checked_first() {
    let (dir, mut options) = corpus(&[("a.txt", "text")]);
    let fixture =
        |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet").join(name);
    options.inputs = vec![fixture("snappy.parquet"), fixture("zstd.parquet"), dir.path().join("in")];
    give_val(&dir, &mut options);
    let report = run(&options).unwrap();
    let rows = "<|endoftext|>One fine day.<|endoftext|>naïve café — 你好 🦀<|endoftext|>again<|endoftext|>again\
                <|endoftext|>The <|endoftext|> end.\n";
    assert_eq!(text(&train_tokens(&report)), format!("{rows}{rows}<|endoftext|>text"));

    options.inputs.truncate(2);
    options.text_column = Some("text".to_owned());
    options.output = dir.path().join("beside-plain-validation-text");
    let report = run(&options).unwrap();
    assert_eq!(text(&train_tokens(&report)), format!("{rows}{rows}"));
    options.text_column = Some("body".to_owned());
    options.output = dir.path().join("none");
    assert!(refusal(&options).contains("snappy.parquet: no column \"body\""));
    assert!(!options.output.exists());
}
