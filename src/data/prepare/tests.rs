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
    let options = PrepareOptions {
        inputs: vec![dir.path().join("in")],
        output: dir.path().join("out"),
        tokenizer: Tokenizer::gpt2(),
        name: "c".to_owned(),
        split: Split::EndOfText,
        json_field: None,
        skip_bad_lines: false,
        allow_special: false,
        shard_size: 100,
        val_tokens: Some(30),
        force: false,
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
    let expected = [&[EOT], &encode_ordinary(&a)[..], &[EOT], &encode_ordinary(&b)[..]].concat();
    assert_eq!(shards.concat(), expected);
    assert_eq!(names(&report)[..3], ["c_val_000000.bin", "c_train_000001.bin", "c_train_000002.bin"]);
    let (last, full) = shards[1..].split_last().unwrap();
    assert_eq!(shards[0].len(), 30);
    assert!(full.len() >= 3 && full.iter().all(|s| s.len() == 100) && last.len() <= 100);
    assert_eq!((report.documents, report.input_bytes), (2, (a.len() + b.len()) as u64));
    assert_eq!(report.val_tokens + report.train_tokens, expected.len() as u64);
    let text = Tokenizer::gpt2().decode_bytes(&shards.concat());
    assert_eq!(text, format!("<|endoftext|>{a}<|endoftext|>{b}").as_bytes());
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
    options.val_tokens = Some(1);
    let report = run(&options).unwrap();
    assert_eq!(report.documents, 4);
    let text = Tokenizer::gpt2().decode_bytes(&tokens(&report).concat());
    let e = "<|endoftext|>";
    assert_eq!(String::from_utf8(text).unwrap(), format!("{e}three{e}four{e}one{e}two {e}"));
    assert_eq!(tokens(&report).concat().iter().filter(|&&t| t == EOT).count(), 4);
}

#[test]
fn the_end_of_text_in_a_document_is_text_or_a_token() {
    let (_dir, mut options) =
        corpus(&[("a.jsonl", "{\"text\": \"one<|endoftext|>two\"}\n"), ("b.txt", "three<|endoftext|>four")]);
    options.val_tokens = Some(1);
    options.force = true;
    let mark = encode_ordinary(EOT_TEXT);
    let word = |text: &str| encode_ordinary(text);
    let [one, two, three, four] = ["one", "two", "three", "four"].map(word);
    let end = &[EOT][..];
    let report = run(&options).unwrap();
    assert_eq!((report.documents, report.end_of_text_marks), (3, 1));
    let expected = [end, &one, &mark, &two, end, &three, end, &four].concat();
    assert_eq!(tokens(&report).concat(), expected);
    options.allow_special = true;
    let expected = [end, &one, end, &two, end, &three, end, &four].concat();
    assert_eq!(tokens(&run(&options).unwrap()).concat(), expected);
    (options.split, options.allow_special) = (Split::Never, false);
    let report = run(&options).unwrap();
    assert_eq!((report.documents, report.end_of_text_marks), (2, 0));
    let expected = [end, &one, &mark, &two, end, &three, &mark, &four].concat();
    assert_eq!(tokens(&report).concat(), expected);
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
    assert!(long.len() > 2 * BATCH_BYTES);
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
    let whole = [&[EOT], &encode_ordinary(&long)[..]].concat();
    assert!(many.concat() == [&whole[..], &whole[..]].concat());
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
    assert!(piped.contains("--val-tokens is required"));
    assert!(refuse(&|o| o.output = dir.path().join("in/a.txt")).contains("cannot create the directory"));
    assert!(!good.output.exists());
}

#[test]
fn validation_is_a_power_of_two_up_to_a_shard() {
    assert_eq!(default_val_tokens(0, 100), 1);
    // llm.c splits tinyshakespeare this way.
    assert_eq!(default_val_tokens(1_115_394, DEFAULT_SHARD_SIZE), 32_768);
    assert_eq!(default_val_tokens(50_000_000_000, DEFAULT_SHARD_SIZE), DEFAULT_SHARD_SIZE);
}
