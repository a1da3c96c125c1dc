//! `warpsmith chat`, run as a user runs it: through a pipe, and on a terminal.

#[path = "../common/mod.rs"]
mod common;
mod terminal;

use common::{refuse, refuse_in_the_end, stderr, stdout, succeed, warpsmith};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use terminal::Terminal;
use warpsmith::checkpoint::{self, ModelFile};
use warpsmith::config::{DropoutRates, ModelConfig};
use warpsmith::data::tokenizer::{ByteLevel, Tokenizer};
use warpsmith::params::{Param, ParamLayout};
use warpsmith::tensor::Dtype;

/// The bytes and an end of text.
fn tokenizer() -> Tokenizer {
    let gpt2 = Tokenizer::gpt2().byte_level().unwrap();
    let tokens = gpt2.tokens[..256].iter().cloned().chain(["<|endoftext|>".to_owned()]).collect();
    let parts = ByteLevel { tokens, added: vec![(256, true)], merges: Vec::new(), eot: 256, ..gpt2 };
    Tokenizer::from_byte_level("bytes".to_owned(), &parts).unwrap()
}

/// Writes a model that says the same letter without an end, and has room for `context` tokens.
fn write_endless(dir: &Path, context: usize) {
    let config = ModelConfig::new(context, 1, 1, 8).with_vocab(257);
    let layout = ParamLayout::new(&config);
    let mut params = vec![0.0; layout.len()];
    // The final layernorm gives ones, whatever it gets, and the letter's row alone is not zero.
    params[layout.range(Param::Lnfb)].fill(1.0);
    let letter = tokenizer().encode_ordinary("z")[0] as usize;
    params[letter * config.C..(letter + 1) * config.C].fill(1.0);
    let model = ModelFile { config, dropout: DropoutRates::NONE, params };
    checkpoint::export_model(&dir.join("endless/model.bin"), &model, Dtype::F32, &tokenizer()).unwrap();
}

/// Passes lines to a command.
fn say(command: &mut Command, lines: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The conversations that a model is fine-tuned on. The second answers depend on what was said
/// first, and one thing is said by the system.
const CONVERSATIONS: [[&str; 5]; 4] = [
    ["", "red", "rose", "more", "apple"],
    ["", "blue", "sky", "more", "sea"],
    ["In French.", "red", "rouge", "more", "vin"],
    ["In French.", "blue", "bleu", "more", "mer"],
];

/// Fine-tunes a small model on [`CONVERSATIONS`], in `tuned`.
fn tune(dir: &Path) {
    let message = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let lines = CONVERSATIONS.iter().map(|[system, turns @ ..]| {
        let system = Some(message("system", system)).filter(|_| !system.is_empty());
        let turns = turns.iter().zip(["user", "assistant"].iter().cycle());
        let messages: Vec<_> =
            system.into_iter().chain(turns.map(|(text, role)| message(role, text))).collect();
        serde_json::json!({"messages": messages}).to_string() + "\n"
    });
    let lines: String = lines.collect();
    fs::write(dir.join("talk.jsonl"), lines).unwrap();
    fs::create_dir(dir.join("bytes")).unwrap();
    fs::write(dir.join("bytes/tokenizer.json"), &*tokenizer().json()).unwrap();
    succeed(&mut warpsmith(dir, "sft talk.jsonl --val talk.jsonl -o data --tokenizer bytes"));
    let flags = "-i data/sft_train_*.bin -j data/sft_val_*.bin --layers 2 --heads 2 --channels 32 --context 192 \
                 -b 4 -t 96 -l 1e-2 -k linear -q 0 -u 10 -x 150 -v 0 -s 0 -o tuned";
    let mut train = Command::new(common::TRAIN_GPT2);
    succeed(train.current_dir(dir).args(flags.split_whitespace()));
}

#[test]
fn a_model_answers_as_it_was_fine_tuned_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tune(dir);
    let chat = "chat -e tuned --temperature 0 -g 40";
    let run = |more: &[&str], lines: &str| {
        let output = say(warpsmith(dir, chat).args(more), lines);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(run(&[], "red\nmore\n/reset\nblue\nmore"), "rose\napple\nsky\nsea\n");
    let french = ["--system", "In French."];
    assert_eq!(run(&french, "blue\n\nmore\n/save out.jsonl\n/exit\nred\n"), "bleu\nmer\n");
    // The file is the example that the model was fine-tuned on.
    let saved = fs::read_to_string(dir.join("out.jsonl")).unwrap();
    let expected = fs::read_to_string(dir.join("talk.jsonl")).unwrap();
    assert_eq!(saved.lines().next(), expected.lines().nth(3));
    succeed(&mut warpsmith(dir, "sft out.jsonl -o again --val-examples 0 --tokenizer bytes"));
    let help = run(&[], "/help\n");
    assert!(help.contains("/save FILE") && help.ends_with("a / of the text.\n"), "{help}");

    // GGUF has the tokenizer in it; the answers are the same.
    succeed(&mut warpsmith(dir, "convert tuned alone/tuned.gguf"));
    let output = say(&mut warpsmith(dir, "chat -e alone/tuned.gguf --temperature 0 -g 40"), "red\nmore\n");
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("rose\napple\n", Some(0)));

    // The adapters of a run, merged when the model is read, give the run's own model.
    let lora = "-i data/sft_train_*.bin -j data/sft_val_*.bin -e tuned -b 4 -t 96 -x 5 -l 1e-2 -v 0 -s 0 \
                --lora-rank 4 --lora-targets all -o lora";
    let mut train = Command::new(common::TRAIN_GPT2);
    succeed(train.current_dir(dir).args(lora.split_whitespace()));
    let adapter = "-e lora/base.bin --adapter lora/adapter_00000005";
    let answers = |model: &str| {
        let output = say(&mut warpsmith(dir, &format!("chat {model} --temperature 0 -g 40")), "red\nmore\n");
        assert!(output.status.success(), "{}", stderr(&output));
        let sample = format!("sample {model} -p red --seed 4 -g 30");
        let eval = format!("eval {model} -j data/sft_val_*.bin -t 96 -b 1");
        [stdout(&output)]
            .into_iter()
            .chain([sample, eval].map(|line| stdout(&succeed(&mut warpsmith(dir, &line)))))
            .collect::<Vec<_>>()
    };
    let merged = answers(adapter);
    assert_eq!(merged, answers("-e lora"));
    assert_ne!(
        merged[2],
        stdout(&succeed(&mut warpsmith(dir, "eval -e tuned -j data/sft_val_*.bin -t 96 -b 1")))
    );
    refuse_in_the_end(
        &mut warpsmith(dir, "chat -e tuned --adapter data"),
        &["--adapter: ", "adapter_config.json"],
    );
}

#[test]
fn the_template_ends_answers_and_the_context_is_kept_free() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_endless(dir, 64);
    let chat = |more: &str, lines: &str| {
        let output =
            say(&mut warpsmith(dir, &format!("chat -e endless/model.bin --temperature 0{more}")), lines);
        (stdout(&output), stderr(&output), output.status.code())
    };
    // A question takes 20 tokens and an answer 11, of 54 that leave room for another answer.
    let (text, said, status) = chat(" -g 10", "aa\nbb\ncc\ndd\n");
    assert_eq!(
        (text.as_str(), status),
        (format!("{}\n", "z".repeat(10)).repeat(4).as_str(), Some(0)),
        "{said}"
    );
    assert_eq!(said.matches("the model no longer reads the oldest turns").count(), 1, "{said}");
    let (text, said, _) = chat(" -g 500", "x\n");
    assert!(said.contains("the answer is cut: the context of 64 tokens is full"), "{said}");
    assert!((30..64).contains(&text.trim_end().len()), "{text}");
    let (_, said, _) = chat(" -g 10", &format!("{}\n", "long ".repeat(20)));
    assert!(said.contains("tokens; the model reads only the last 54"), "{said}");

    let template =
        r#"{"messages": {"user": "{content}>", "assistant": "{content}zzz"}, "pair": "{prompt}|{response}"}"#;
    fs::write(dir.join("t.json"), template).unwrap();
    let (text, ..) = chat(" --template t.json", "hello\n");
    assert_eq!(text, "\n", "the end of the template is never shown");
    let (text, ..) = chat(" --template t.json --form pair -g 3", "one\\\nline\n//save x\n/save p.jsonl\n");
    assert_eq!(text, "zzz\nzzz\n");
    let saved = fs::read_to_string(dir.join("p.jsonl")).unwrap();
    let pair = |prompt: &str| serde_json::json!({"prompt": prompt, "response": "zzz"}).to_string() + "\n";
    assert_eq!(saved, pair("one\nline") + &pair("/save x"));
}

#[test]
fn what_cannot_be_done_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_endless(dir, 64);
    for (name, template) in [
        ("pair.json", r#"{"pair": "{prompt}{response}"}"#),
        ("bad.json", r#"{"messages": {"user": "{content}"}}"#),
    ] {
        fs::write(dir.join(name), template).unwrap();
    }
    for (flags, words) in [
        (
            "--system x --template pair.json",
            &["--system: pairs of a prompt and a response have no such turn"][..],
        ),
        ("--template pair.json --form messages", &["--template: expected a field \"messages\", found none"]),
        ("--template bad.json", &["--template: bad.json: ", "expected a role \"assistant\""]),
        ("--template none.json", &["--template", "none.json"]),
        ("--form other", &["--form: expected messages or pair, found other"]),
        ("--top-p 2", &["--top-p"]),
    ] {
        refuse(&mut warpsmith(dir, &format!("chat -e endless/model.bin {flags}")), words);
    }
    let chat = |lines: &str| {
        let output = say(&mut warpsmith(dir, "chat -e endless/model.bin --temperature 0 -g 2"), lines);
        let said = stderr(&output).trim_end().lines().last().unwrap_or_default().to_owned();
        (stdout(&output), said, output.status.code())
    };
    // A script does not go on without what it asked for.
    for (lines, expected) in [
        ("/sav x\nhello\n", "warpsmith: /sav x: unknown command; /help lists all"),
        ("/save\nhello\n", "warpsmith: /save: expected a file, found nothing"),
        ("/save x\nhello\n", "warpsmith: /save: nothing has been said"),
    ] {
        assert_eq!(chat(lines), (String::new(), expected.to_owned(), Some(2)));
    }
    fs::write(dir.join("mine"), "").unwrap();
    assert_eq!(
        chat("a\n/save mine\n"),
        (
            "zz\n".to_owned(),
            "warpsmith: /save: mine: already exists; choose another name".to_owned(),
            Some(2)
        )
    );
    let (_, said, status) = chat("\u{0}a\n/save /\n");
    assert!(said.contains("/save: /: ") && status == Some(2), "{said}");
}

#[test]
fn a_terminal_has_an_editor_and_ctrl_c_ends_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    write_endless(dir.path(), 1 << 17);
    let mut command = warpsmith(dir.path(), "chat -e endless/model.bin --temperature 0 -g 1000000");
    let mut chat = Terminal::start(&mut command);
    chat.expect("/help lists the commands");
    chat.expect("> ");
    chat.send("hello\r");
    chat.expect("zzzzzzzz");
    chat.send("\u{3}");
    // The program goes on, and so does the conversation.
    chat.expect("> ");
    // An error ends nothing either. The arrow key brings back what was said.
    chat.send("/what\r");
    chat.expect("chat: /what: unknown command");
    chat.expect("> ");
    chat.send("\u{1b}[A\u{1b}[A");
    chat.expect("hello");
    chat.send("\r");
    chat.expect("zzzzzzzz");
    chat.send("\u{3}");
    chat.expect("> ");
    chat.send("/save talk.jsonl\r");
    chat.expect("talk.jsonl: written");
    chat.expect("> ");
    chat.send("\u{3}");
    chat.expect("Ctrl-D or /exit leaves");
    // The editor reads keys as they are; before it, the terminal would take this one for itself.
    chat.expect("> ");
    chat.send("\u{4}");
    assert_eq!(chat.end(), Some(0));
    let saved = fs::read_to_string(dir.path().join("talk.jsonl")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    let messages = saved["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 4);
    let answer = messages[1]["content"].as_str().unwrap();
    assert!(answer.len() >= 8 && answer.bytes().all(|byte| byte == b'z'), "{answer}");
    assert_eq!(messages[2]["content"], "hello");
}

/// Without a terminal SIGINT ends the answer, and the program if it waits for a line.
#[test]
fn a_signal_ends_an_answer_or_the_wait() {
    use std::io::Read;
    let dir = tempfile::tempdir().unwrap();
    write_endless(dir.path(), 1 << 17);
    let mut command = warpsmith(dir.path(), "chat -e endless/model.bin --temperature 0 -g 1000000");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    for _ in 0..2 {
        input.write_all(b"hello\n").unwrap();
        let mut piece = [0; 4];
        output.read_exact(&mut piece).unwrap();
        assert_eq!(&piece, b"zzzz");
        common::signal(child.id(), "INT");
        while piece[0] != b'\n' {
            output.read_exact(&mut piece[..1]).unwrap();
        }
    }
    // It may not wait yet when the signal arrives.
    let ended = std::iter::repeat_with(|| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        common::signal(child.id(), "INT");
        std::thread::sleep(std::time::Duration::from_millis(100));
        child.try_wait().unwrap()
    });
    let status = ended.take(100).find_map(|status| status).expect("an end");
    assert_eq!(status.code(), Some(130));
}
