use super::*;
use crate::data::mask::Mask;
use crate::data::shard::Shard;
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use std::io::Write;
use tempfile::TempDir;

fn options(input: &Path, output: &Path) -> SftOptions {
    SftOptions {
        inputs: vec![input.to_owned()],
        val: Vec::new(),
        val_examples: Some(0),
        seed: 42,
        template: Template::default(),
        columns: Columns::default(),
        skip_bad_lines: false,
        output: output.to_owned(),
        tokenizer: Tokenizer::gpt2(),
        name: "sft".to_owned(),
        shard_size: 1000,
        force: false,
    }
}

fn make(options: &SftOptions) -> Result<SftReport> {
    prepare(options, &|_, _| {})
}

fn refusal(text: &str) -> String {
    let dir = TempDir::new().unwrap();
    let input = dir.path().join("a.jsonl");
    fs::write(&input, text).unwrap();
    let error = format!("{:#}", make(&options(&input, &dir.path().join("out"))).unwrap_err());
    assert!(!error.contains('\n'), "{error}");
    assert!(!dir.path().join("out").exists() || fs::read_dir(dir.path().join("out")).unwrap().count() == 0);
    error.replace(&format!("{}/", dir.path().display()), "")
}

/// The documents of a shard: the text of each, with what counts in brackets.
fn shown(shard: &Path) -> Vec<String> {
    let shard = Shard::open(shard).unwrap();
    let (mask, tokens, tokenizer) = (Mask::open(&shard).unwrap(), shard.tokens(), Tokenizer::gpt2());
    let show = |border: &[usize]| {
        let (mut text, mut was) = (String::new(), false);
        for (index, &token) in tokens.iter().enumerate().take(border[1]).skip(border[0]) {
            let is = mask.counts(index);
            text += if is && !was {
                "["
            } else if was && !is {
                "]"
            } else {
                ""
            };
            text += &String::from_utf8_lossy(tokenizer.token_bytes(token).unwrap());
            was = is;
        }
        text + if was { "]" } else { "" }
    };
    mask.borders().windows(2).map(show).collect()
}

#[test]
fn answers_and_their_ends_count_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let text = r#"{"prompt": "2+2?", "response": "It is 4."}
{"prompt": "Say nothing.", "completion": ""}
{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
 {"role": "user", "content": "<|endoftext|>"}, {"role": "assistant", "content": "Bye"}]}
"#
    .replace("},\n ", "}, ");
    let expected = [
        "2+2?\n[It is 4.<|endoftext|>]",
        "Say nothing.\n[<|endoftext|>]",
        "User:\nHi\nAssistant:\n[Hello<|endoftext|>]User:\n<|endoftext|>\nAssistant:\n[Bye<|endoftext|>]",
    ];
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    let array = format!("[{}]", text.trim_end().replace('\n', ",\n"));
    let zst = zstd::encode_all(text.as_bytes(), 1).unwrap();
    let files = [("a.jsonl", text.clone().into_bytes()), ("a.json", array.into_bytes())];
    for (name, bytes) in files.into_iter().chain([("a.jsonl.gz", gz.finish().unwrap()), ("a.jsonl.zst", zst)])
    {
        let input = dir.path().join(name);
        fs::write(&input, bytes).unwrap();
        let out = dir.path().join(format!("out_{name}"));
        let report = make(&options(&input, &out)).unwrap();
        assert_eq!(report.shards, [out.join("sft_train_000001.bin")]);
        assert_eq!(shown(&report.shards[0]), expected, "{name}");
        assert_eq!((report.train.examples, report.val.examples), (3, 0));
        let longest = report.lengths[2];
        assert_eq!(report.train.tokens, report.lengths.iter().sum::<usize>() as u64);
        assert!(report.train.counted < report.train.tokens && longest < 40);
    }
}

#[test]
fn validation_examples_are_drawn_and_shards_hold_whole_examples() {
    let dir = TempDir::new().unwrap();
    let input = dir.path().join("a.jsonl");
    let line = |i: usize| format!("{{\"prompt\": \"p {i}\", \"response\": \"r {i}\"}}\n");
    fs::write(&input, (0..100).map(line).collect::<String>()).unwrap();
    let out = dir.path().join("out");
    let mut options = SftOptions { val_examples: None, shard_size: 100, ..options(&input, &out) };
    let report = make(&options).unwrap();
    assert_eq!((report.val.examples, report.train.examples), (5, 95));
    let mut all: Vec<String> = report.shards.iter().flat_map(|shard| shown(shard)).collect();
    all.sort_unstable();
    let mut expected: Vec<String> = (0..100).map(|i| format!("p {i}\n[r {i}<|endoftext|>]")).collect();
    expected.sort_unstable();
    assert_eq!(all, expected);
    assert!(report.shards.len() > 5, "{:?}", report.shards);
    assert!(report.shards.iter().all(|shard| Shard::open(shard).unwrap().len() <= 100));

    let error = make(&options).unwrap_err().to_string();
    assert!(error.contains("already exists; choose another --name"), "{error}");
    // Fewer shards take the place of all of them and of their masks.
    (options.force, options.shard_size, options.val_examples) = (true, 10_000, Some(1));
    let report = make(&options).unwrap();
    assert_eq!(report.shards.len(), 2);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 4);
}

#[test]
fn bad_input_is_one_line_with_its_place() {
    assert_eq!(refusal(""), "the input has no examples; give JSON lines with a prompt and a response each");
    assert!(refusal("words").starts_with("a.jsonl: expected JSON lines, or one array of objects, found"));
    assert!(refusal("PAR1....").contains("a parquet file; export it as JSON lines"));
    let good = "{\"prompt\": \"a\", \"response\": \"b\"}\n";
    assert!(
        refusal(&format!("{good}{{\"prompt\": \"a\"}}\n")).starts_with("a.jsonl:2: no field \"response\"")
    );
    assert!(refusal(&format!("{good}{{\"prompt\": ")).starts_with("a.jsonl:2: not a JSON object: EOF"));
    assert!(
        refusal(&format!("[{good}, {{\"prompt\": 1}}]")).starts_with("a.jsonl: element 2: field \"prompt\"")
    );

    let dir = TempDir::new().unwrap();
    let input = dir.path().join("a.jsonl");
    fs::write(&input, format!("{good}{{}}\n{good}")).unwrap();
    let lenient = SftOptions { skip_bad_lines: true, ..options(&input, &dir.path().join("out")) };
    assert_eq!(make(&lenient).unwrap().train.examples, 2);
    let greedy = SftOptions { val_examples: Some(2), force: true, ..lenient };
    let error = make(&greedy).unwrap_err().to_string();
    assert!(error.starts_with("the input has 2 examples; 2 for validation would leave none"), "{error}");
}

#[test]
fn an_answer_without_a_prompt_follows_the_end_of_text() {
    let tokenizer = Tokenizer::gpt2();
    let segments = [Segment { given: String::new(), answer: "Hi".to_owned() }];
    let eot = tokenizer.eot();
    let expected = Encoded { tokens: vec![eot, 17250, eot], counts: vec![false, true, true] };
    assert_eq!(Encoded::new(&segments, &tokenizer), expected);
}

/// A conversation to continue has the tokens that an example of it has before the answer.
#[test]
fn a_conversation_to_continue_is_that_of_training() {
    let tokenizer = Tokenizer::gpt2();
    let template = Template::parse(
        r#"{"messages": {"system": "{content}\n", "user": "U {content}\n", "assistant": "A {content}!\n"}}"#,
    );
    let template = template.unwrap();
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let turns =
        [turn("system", "Be"), turn("user", "x"), turn("assistant", "y"), turn("user", "<|endoftext|>")];
    let found = template.conversation(&turns, &tokenizer).unwrap();
    let answered = [&turns[..], &[turn("assistant", "z")]].concat();
    let whole = json!({ "messages": answered }).to_string();
    let segments = example::segments(whole.as_bytes(), &Columns::default(), &template).unwrap();
    let trained = Encoded::new(&segments, &tokenizer);
    assert_eq!(trained.tokens[..found.len()], found);
    // Exactly the last answer is missing.
    let answer = [tokenizer.encode_ordinary("z!\n"), vec![tokenizer.eot()]].concat();
    assert_eq!(trained.tokens[found.len()..], answer);
    assert_eq!(template.answer_end(), "!\n");
    let error = template.conversation(&[turn("tool", "")], &tokenizer).unwrap_err();
    assert!(error.contains("messages[0].role"), "{error}");
    let bare = Template::parse(r#"{"messages": {"assistant": "{content}"}}"#).unwrap();
    assert_eq!(bare.conversation(&[], &tokenizer).unwrap(), [tokenizer.eot()]);
}
