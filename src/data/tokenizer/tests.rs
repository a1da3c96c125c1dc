use super::*;

const SAMPLES: [&str; 5] = [
    "Hello, I'm a language model,",
    "  two  spaces,\n\n\ttabs and 1234567 they've",
    "naïve café — 你好 🦀 \u{1f469}\u{200d}\u{1f680}",
    "<|endoftext|> in a text is text",
    "",
];

/// The output of Hugging Face's `tokenizers` with GPT-2's published `encoder.json` and
/// `vocab.bpe`.
#[test]
fn tokens_are_those_of_gpt2() {
    let encode_ordinary = |text| Tokenizer::gpt2().encode_ordinary(text);
    assert_eq!(encode_ordinary(SAMPLES[0]), [15496, 11, 314, 1101, 257, 3303, 2746, 11]);
    assert_eq!(encode_ordinary("First Citizen:"), [5962, 22307, 25]);
    assert_eq!(encode_ordinary("<|endoftext|>"), [27, 91, 437, 1659, 5239, 91, 29]);
}

#[test]
fn the_end_of_text_is_a_token_if_asked_for() {
    for (text, expected) in [
        ("", &[][..]),
        ("Hello", &[15496]),
        ("<|endoftext|>", &[50256]),
        ("<|endoftext|>Hello<|endoftext|><|endoftext|>", &[50256, 15496, 50256, 50256]),
        ("<|endoftext|", &[27, 91, 437, 1659, 5239, 91]),
    ] {
        assert_eq!(Tokenizer::gpt2().encode(text), expected, "{text}");
    }
}

#[test]
fn decoding_undoes_encoding() {
    for sample in SAMPLES {
        assert_eq!(
            Tokenizer::gpt2().decode_bytes(&Tokenizer::gpt2().encode_ordinary(sample)),
            sample.as_bytes()
        );
    }
    assert_eq!(Tokenizer::gpt2().vocab_size(), 50257);
    assert_eq!(Tokenizer::gpt2().decode_bytes(&[50256]), b"<|endoftext|>");
    assert_eq!(Tokenizer::gpt2().decode_bytes(&[50257, 15496]), b"Hello");
    assert_eq!(Tokenizer::gpt2().token_bytes(50303), None);
}

#[test]
fn long_runs_are_encoded() {
    for unit in [" ", "a", "\n", "=", "7"] {
        let text = unit.repeat(300_000) + "x";
        let bytes = Tokenizer::gpt2().decode_bytes(&Tokenizer::gpt2().encode_ordinary(&text));
        assert!(bytes == text.as_bytes(), "{unit:?}");
    }
}

#[test]
fn streamed_text_is_whole_characters() {
    for sample in SAMPLES {
        let mut stream = TextStream::new();
        let mut text = String::new();
        for id in Tokenizer::gpt2().encode_ordinary(sample) {
            text += &stream.push(Tokenizer::gpt2().token_bytes(id).unwrap());
        }
        assert_eq!(text, sample, "nothing is held back at the end of complete text");
        assert_eq!(stream.finish(), "");
    }
    let mut stream = TextStream::new();
    assert_eq!(stream.push(b"a\xf0\x9f"), "a");
    assert_eq!(stream.push(b"\xa6"), "");
    assert_eq!(stream.push(b"\x80b"), "🦀b");
    assert_eq!(stream.push(b"\xffc\x80\xe4\xbd"), "\u{fffd}c\u{fffd}");
    assert_eq!(stream.push(b"!"), "\u{fffd}!");
    assert_eq!(stream.push(b"\xe4"), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

/// English, code, numbers and other scripts: what this repository is made of, and the samples.
fn texts() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["README.md", "Cargo.lock", "src/data/tokenizer/split.rs", "kernels/adamw.cu"];
    let files = files.iter().map(|file| std::fs::read_to_string(root.join(file)).unwrap());
    files.chain(SAMPLES.map(str::to_owned)).collect()
}

#[test]
fn gpt2_is_that_of_tiktoken() {
    let (ours, oracle) = (Tokenizer::gpt2(), tiktoken_rs::r50k_base().unwrap());
    assert_eq!(ours.id(), TokenizerId::GPT2, "its digest");
    for text in texts() {
        assert!(ours.encode_ordinary(&text) == oracle.encode_ordinary(&text));
        assert!(ours.encode(&text) == oracle.encode_with_special_tokens(&text));
    }
}

/// GPT-4's vocabulary has Llama 3's pattern.
#[test]
fn words_with_three_digits_are_those_of_gpt4() {
    let oracle = tiktoken_rs::cl100k_base().unwrap();
    let tokens: Vec<Vec<u8>> = (0..100_256).map(|id| oracle.decode_bytes(&[id]).unwrap()).collect();
    let tokens = (0..).zip(&tokens).map(|(id, token)| (id, token.as_slice()));
    let (bpe, _) = Bpe::from_ranks(Pattern::Digits(3), tokens).unwrap();
    for text in texts() {
        assert!(bpe.encode(&text) == oracle.encode_ordinary(&text));
    }
}

fn write(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn refusal(text: &str) -> String {
    let (_dir, path) = write(text);
    let message = format!("{:#}", Tokenizer::open(&path).unwrap_err());
    assert!(message.contains("tokenizer.json: ") && !message.contains('\n'), "{message}");
    message
}

#[test]
fn the_file_of_gpt2_is_gpt2_and_what_the_crate_reads() {
    let gpt2 = Tokenizer::gpt2();
    let (dir, path) = write(&gpt2.json());
    for source in [&path, dir.path(), Path::new("gpt2")] {
        let opened = Tokenizer::open(source).unwrap();
        assert_eq!((opened.name(), opened.id()), (GPT2, TokenizerId::GPT2));
    }
    assert!(Tokenizer::find_in(dir.path()).unwrap().is_some_and(|found| found.is_gpt2()));
    assert!(Tokenizer::find_in(Path::new("/nowhere")).unwrap().is_none());
    let foreign = Foreign::parse(&gpt2.json()).unwrap();
    for text in texts() {
        assert!(gpt2.encode_ordinary(&text) == foreign.encode(&text, false));
        assert!(gpt2.encode(&text) == foreign.encode(&text, true));
    }
}

#[test]
fn the_files_of_llmc_are_written_and_read() {
    let (dir, gpt2) = (tempfile::tempdir().unwrap(), Tokenizer::gpt2());
    let path = dir.path().join("gpt2_tokenizer.bin");
    gpt2.write_llmc(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let header: Vec<i32> = bytemuck::pod_collect_to_vec(&bytes[..1024]);
    assert_eq!((&header[..4], header[4..].iter().all(|&x| x == 0)), (&[20240328, 2, 50257, 50256][..], true));
    assert_eq!(&bytes[1024..1028], b"\x01!\x01\"");
    assert!(bytes.ends_with(b"\x0d<|endoftext|>"));
    assert!(Tokenizer::open(&path).unwrap().is_gpt2());
}

/// The pattern of Llama 3, and special tokens that overlap.
#[test]
fn byte_level_files_give_the_tokens_of_the_crate() {
    let small = train::tests::trained(500);
    let split = serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"},
         "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let mut json: serde_json::Value = serde_json::from_str(&small.json()).unwrap();
    let plain = json.to_string();
    json["pre_tokenizer"] = split;
    json["added_tokens"].as_array_mut().unwrap().extend([special(500, "<|end|>"), special(501, "<|end|>x")]);
    for ignore_merges in [false, true] {
        json["model"]["ignore_merges"] = ignore_merges.into();
        let (_dir, path) = write(&json.to_string());
        let ours = Tokenizer::open(&path).unwrap();
        assert_eq!((ours.vocab_size(), ours.eot(), ours.cuts()), (502, 499, Cuts::Space));
        let crates = Foreign::parse(&json.to_string()).unwrap();
        for text in texts().iter().chain([&"a<|end|>x <|end|> y<|endoftext|>".to_owned()]) {
            assert!(ours.encode_ordinary(text) == crates.encode(text, false));
            assert!(ours.encode(text) == crates.encode(text, true));
        }
        assert_ne!(ours.id(), small.id());
        let parts = ours.byte_level().unwrap();
        assert_eq!(parts.pre, if ignore_merges { "llama-bpe" } else { "dbrx" });
        let again = Tokenizer::from_byte_level("again".to_owned(), &parts).unwrap();
        assert_eq!((again.id(), again.byte_level().unwrap()), (ours.id(), parts));
        assert!(texts().iter().all(|text| again.encode(text) == ours.encode(text)));
    }
    let (_dir, path) = write(&plain);
    assert_eq!(Tokenizer::open(&path).unwrap().id(), small.id());
}

#[test]
fn lists_of_texts_are_the_tokenizer() {
    let gpt2 = Tokenizer::gpt2();
    let parts = gpt2.byte_level().unwrap();
    assert_eq!((parts.pre.as_str(), parts.tokens.len(), parts.merges.len()), ("gpt-2", 50257, 50000));
    assert_eq!((&parts.tokens[262], &parts.merges[0]), (&"\u{120}the".to_owned(), &"\u{120} t".to_owned()));
    assert_eq!((&parts.added, parts.eot), (&vec![(50256, true)], 50256));
    let again = Tokenizer::from_byte_level("again".to_owned(), &parts).unwrap();
    assert_eq!((again.id(), again.name()), (TokenizerId::GPT2, GPT2));

    let (_dir, path) = write(WORDS);
    let error = Tokenizer::open(&path).unwrap().byte_level().unwrap_err().to_string();
    assert!(error.contains("expected byte-level BPE, found a tokenizer of another kind"), "{error}");
    let refusal = |change: &dyn Fn(&mut ByteLevel)| {
        let mut changed = parts.clone();
        change(&mut changed);
        format!("{:#}", Tokenizer::from_byte_level("x".to_owned(), &changed).unwrap_err())
    };
    assert!(refusal(&|parts| parts.pre = "tekken".to_owned()).contains("expected gpt-2, llama-bpe"));
    assert!(refusal(&|parts| parts.eot = 50257).contains("expected ids of 50257 tokens, found 50257"));
    assert!(
        refusal(&|parts| parts.tokens[300] = parts.tokens[301].clone()).contains("not in the vocabulary")
    );
}

/// Words of letters between spaces, which the crate encodes.
const WORDS: &str = r####"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
    "padding": null, "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
    "added_tokens": [{"id": 0, "content": "[UNK]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
        {"id": 1, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "[SEP]": 1, "the": 2, "cat": 3, "##s": 4}}}"####;

#[test]
fn files_of_other_kinds_are_encoded_by_the_crate() {
    let (dir, path) = write(WORDS);
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eot(), tokenizer.eot_text()), (5, 1, "[SEP]"));
    assert_eq!(tokenizer.cuts(), Cuts::Nowhere);
    assert_eq!(tokenizer.encode_ordinary("The cats the dog"), [2, 3, 4, 2, 0], "not truncated");
    assert_eq!(tokenizer.encode("the[SEP]cat"), [2, 1, 3]);
    assert!(!tokenizer.encode_ordinary("the[SEP]cat").contains(&1));
    assert_eq!(tokenizer.decode_bytes(&[2, 3, 4]), b" the cats");
    assert_eq!(tokenizer.json(), WORDS, "the file itself");
    let error = tokenizer.write_llmc(&dir.path().join("x.bin")).unwrap_err().to_string();
    assert!(error.contains("byte-level BPE only"), "{error}");
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": {"content": "the"}}"#).unwrap();
    assert_eq!(Tokenizer::open(&path).unwrap().eot(), 2);
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "dog"}"#).unwrap();
    let error = format!("{:#}", Tokenizer::open(&path).unwrap_err());
    assert!(error.contains("names dog as eos_token, which is not in the vocabulary"), "{error}");
}

#[test]
fn unusable_files_are_refused_with_the_reason() {
    assert!(refusal("{").contains("not JSON"));
    assert!(refusal("{\"a\": 1}").contains("with a \"model\", found other JSON"));
    assert!(
        refusal(&WORDS.replace("\"##s\": 4", "\"##s\": 9"))
            .contains("no token has id 4, though ids go up to 9")
    );
    let far = refusal(&WORDS.replace("\"##s\": 4", "\"##s\": 4000000000"));
    assert!(far.contains("expected ids below 1048576, found 4000000000"), "{far}");
    assert!(
        refusal(&WORDS.replace("[SEP]", "[END]"))
            .contains("no end-of-text token: expected one of <|endoftext|>")
    );
    refusal(&WORDS.replace("WordPiece\", \"unk", "Unknown\", \"unk"));
    let small: serde_json::Value = serde_json::from_str(&train::tests::trained(300).json()).unwrap();
    let refuse = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = small.clone();
        change(&mut json);
        refusal(&json.to_string())
    };
    assert!(refuse(&|json| json["model"]["merges"][3] = "a".into()).contains("merge 3 is not a pair"));
    assert!(
        refuse(&|json| json["model"]["merges"][3] = "a zzz".into()).contains("merge 3: \"zzz\" is not in")
    );
    assert!(
        refuse(&|json| drop(json["model"].as_object_mut().unwrap().remove("merges"))).contains("\"merges\"")
    );
    let error = format!("{:#}", Tokenizer::open(Path::new("/nowhere/tokenizer.json")).unwrap_err());
    assert!(error.contains("/nowhere/tokenizer.json"), "{error}");
}

#[test]
fn another_tokenizer_is_refused_by_name() {
    let small = train::tests::trained(300);
    small.ensure_is(small.id(), "x.bin").unwrap();
    let error = small.ensure_is(TokenizerId::GPT2, "x.bin").unwrap_err().to_string();
    assert!(error.starts_with("x.bin: expected tokens of the tokenizer tokenizer.json ("), "{error}");
    assert!(error.contains("found those of gpt2"), "{error}");
    let unknown = TokenizerId { digest: 0, ..small.id() };
    small.ensure_is(unknown, "x.bin").unwrap();
    assert!(small.ensure_is(TokenizerId { vocab_size: 299, ..unknown }, "x.bin").is_err());
}
