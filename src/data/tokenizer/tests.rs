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
