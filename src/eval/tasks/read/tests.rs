use super::*;
use crate::eval::tasks::Questions;

/// The second label is in quotes, as in Hugging Face's copy; a blank line ends the file.
const HELLASWAG: &str = r#"{"ind": 24, "ctx": "A man is sitting on a roof. he", "split": "val", "label": 3, "endings": ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.", "is holding a rubik's cube.", "starts pulling up roofing on a roof."]}
{"ctx": "The cat", "label": "1", "endings": ["a", "sat on the mat.", "barks", "is a good dog"]}

"#;

fn open(task: Task, bytes: impl AsRef<[u8]>) -> Result<Questions> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Questions::open(task, file.path(), &Tokenizer::gpt2())
}

fn message(task: Task, bytes: impl AsRef<[u8]>) -> String {
    let message = open(task, bytes).unwrap_err().to_string();
    assert!(message.starts_with('/') && !message.contains('\n'), "{message}");
    message
}

#[test]
fn jsonl_becomes_tokens() {
    let data = open(Task::HellaSwagLlmc, HELLASWAG).unwrap();
    // Token ids from tiktoken's gpt2 encoding.
    let [first, second] = &data.examples[..] else { panic!("two examples") };
    assert!(first.choices.iter().all(|c| c.ctx[..] == [32, 582, 318, 5586, 319, 257, 9753, 13, 339]));
    assert_eq!(first.choices[1].tokens, [318, 34759, 1241, 19867, 572, 13]);
    assert_eq!(second.choices[1].ctx[..], [464, 3797]);
    assert_eq!(second.choices[1].tokens, [3332, 319, 262, 2603, 13]);
    assert_eq!((first.gold, second.gold, second.choices[1].length), (3, 1, 5));
    assert_eq!((second.longest(), data.longest()), (7, first.longest()));
    let marked = open(Task::HellaSwagLlmc, ["\u{feff}", HELLASWAG].concat()).unwrap();
    assert_eq!(marked.examples, data.examples, "a byte-order mark is skipped");
}

#[test]
fn bad_hellaswag_names_line_and_field() {
    let line = HELLASWAG.lines().nth(1).unwrap();
    for (from, to, expected) in [
        ("\"1\"", "4", "line 3: label is 4"),
        ("\"1\"", "\"\"", "label is \"\""),
        ("\"label\": \"1\", ", "", "label is null"),
        ("\"The cat\"", "\"\"", "ctx is \"\""),
        ("\"ctx\"", "\"context\"", "ctx is null"),
        ("[\"a\", \"sat on the mat.\", \"barks\", ", "[", "endings has 1 entries; expected at least 2"),
        ("\"barks\"", "7", "endings[2] is 7"),
        ("\"barks\"", "\"\"", "endings[2] is \"\""),
        ("}", "", "line 3: EOF"),
    ] {
        let text = message(Task::HellaSwagLlmc, format!("{line}\n\n{}\n", line.replace(from, to)));
        assert!(text.contains(expected), "{text}");
    }
    assert!(message(Task::HellaSwagLlmc, b"{\xff}").contains("UTF-8"));
    let missing = Questions::open(Task::HellaSwagLlmc, "/nowhere/h.jsonl", &Tokenizer::gpt2()).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/h.jsonl"));
}

#[test]
fn hellaswag_survives_conversion() {
    let data = open(Task::HellaSwagLlmc, HELLASWAG).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    data.write_bin(file.path()).unwrap();
    let back = Questions::open(Task::HellaSwagLlmc, file.path(), &Tokenizer::gpt2()).unwrap();
    assert_eq!(back.examples, data.examples);
}

/// The question as text.
fn question(read: fn(&Value) -> Result<Question>, line: &str) -> (Vec<(String, String)>, usize) {
    let Question { pairs, gold, .. } = read(&serde_json::from_str(line).unwrap()).unwrap();
    (pairs, gold)
}

/// The texts that `lm_eval` makes of the same lines; tests/eval_tasks.rs compares its numbers.
#[test]
fn prompts_are_those_of_lm_eval() {
    let pairs = |all: &[(&str, &str)]| all.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
    type Case = (fn(&Value) -> Result<Question>, &'static str, Vec<(String, String)>, usize);
    let cases: [Case; 8] = [
        (
            hellaswag,
            r#"{"activity_label": "Roof [x] work", "ctx_a": "A man  sits.", "ctx_b": "he [title] IS", "label": "0", "endings": [" a [substeps] roof ", "a[b\nc]d"]}"#,
            pairs(&[
                ("Roof work: A man sits. He. is", " a roof"),
                ("Roof work: A man sits. He. is", " a[b\nc]d"),
            ]),
            0,
        ),
        (
            piqa,
            r#"{"goal": "Open a jar", "sol1": "Twist.", "sol2": "Sing.", "label": 1}"#,
            pairs(&[
                ("Question: Open a jar\nAnswer:", " Twist."),
                ("Question: Open a jar\nAnswer:", " Sing."),
            ]),
            1,
        ),
        (
            copa,
            r#"{"premise": "The cup broke. ", "choice1": "It fell.", "choice2": "I drank.", "question": "cause", "label": 0}"#,
            pairs(&[("The cup broke because", "  it fell."), ("The cup broke because", "  i drank.")]),
            0,
        ),
        (
            copa,
            r#"{"premise": "I ran.", "choice1": "A", "choice2": "B", "question": "effect", "label": 1}"#,
            pairs(&[("I ran therefore", "  a"), ("I ran therefore", "  b")]),
            1,
        ),
        (
            arc,
            r#"{"question": "Why?", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"}"#,
            pairs(&[(WHY, " x"), (WHY, " y"), (WHY, " z")]),
            2,
        ),
        (
            arc,
            r#"{"question": {"stem": "Why?", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]}, "answerKey": "2"}"#,
            pairs(&[(WHY, " x"), (WHY, " y")]),
            1,
        ),
        (
            winogrande,
            r#"{"sentence": "Ann met Eve as _ was _ early. ", "option1": "Ann", "option2": "Eve", "answer": "2"}"#,
            pairs(&[("Ann met Eve as Ann", " was _ early."), ("Ann met Eve as Eve", " was _ early.")]),
            1,
        ),
        (lambada, r#"{"text": "He saw his dog"}"#, pairs(&[("He saw his", " dog")]), 0),
    ];
    for (read, line, expected, gold) in cases {
        assert_eq!(question(read, line), (expected, gold), "{line}");
    }
}

const WHY: &str = "Question: Why?\nAnswer:";

#[test]
fn bad_questions_name_line_and_field() {
    let ok = r#"{"sentence": "A _ b", "option1": "c", "option2": "d", "answer": "1"}"#;
    for (task, line, expected) in [
        (
            Task::Piqa,
            r#"{"goal": 1, "sol1": "a", "sol2": "b", "label": 0}"#,
            "line 1: goal is 1; expected a text",
        ),
        (
            Task::Piqa,
            r#"{"goal": "a", "sol1": "a", "sol2": "b", "label": -1}"#,
            "label is -1; expected 0 to 1",
        ),
        (Task::Copa, r#"{"question": "why"}"#, "question is \"why\"; expected cause or effect"),
        (
            Task::ArcEasy,
            r#"{"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "E"}"#,
            "answerKey is \"E\"; expected one of A, B",
        ),
        (
            Task::ArcEasy,
            r#"{"question": "q", "choices": []}"#,
            "choices.text is null; expected a list of texts",
        ),
        (Task::WinoGrande, &ok.replace('_', "x"), "sentence has no blank, _"),
        (Task::WinoGrande, &ok.replace("\"1\"", "\"\""), "answer is \"\"; expected 1 or 2"),
        (Task::Lambada, r#"{"text": "word"}"#, "text has one word"),
        (
            Task::MultipleChoice,
            r#"{"context": "a", "choices": ["b", "c"], "gold": 2}"#,
            "gold is 2; expected 0 to 1",
        ),
        (
            Task::MultipleChoice,
            r#"{"context": " ", "choices": ["b", "c"], "gold": 1}"#,
            "choice 1: a context is all",
        ),
        (Task::HellaSwag, r#"{"ctx": "a", "endings": ["b", "c"], "label": 1}"#, "activity_label is null"),
    ] {
        let text = message(task, line);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn piqa_finds_its_labels_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("valid.jsonl");
    let line = r#"{"goal": "a", "sol1": "b", "sol2": "c"}"#;
    std::fs::write(&path, format!("{line}\n\n{line}\n")).unwrap();
    let open = || Questions::open(Task::Piqa, &path, &Tokenizer::gpt2());
    assert!(open().unwrap_err().to_string().contains("line 1: label is null"));
    std::fs::write(dir.path().join("valid-labels.lst"), "1\n0\n").unwrap();
    assert_eq!(open().unwrap().examples.iter().map(|e| e.gold).collect::<Vec<_>>(), [1, 0]);
    std::fs::write(dir.path().join("valid-labels.lst"), "1\n0\n0\n").unwrap();
    let error = open().unwrap_err().to_string();
    assert!(
        error.contains("2 questions, but ")
            && error.ends_with("valid-labels.lst has 3 labels; expected as many")
    );
}

#[test]
fn letters_are_capitalized_as_in_python() {
    for (text, expected) in [("", ""), ("hE Is", "He is"), ("ßa", "Ssa"), ("éA", "Éa")] {
        assert_eq!(capitalized(text), expected);
    }
}
