//! Round trips, files of other writers, and damage.

use super::*;
use crate::checkpoint::{find_model, load_model};
use std::fs;

const CONFIG: ModelConfig =
    ModelConfig { maxT: 7, V: 300, Vp: 384, L: 2, NH: 2, C: 32, qkv_bias: true, lora: None };

/// A model whose elements all differ.
fn model() -> ModelFile {
    let layout = ParamLayout::new(&CONFIG);
    let mut params: Vec<f32> = (0..layout.len()).map(|i| ((i * 7919) % 100_003) as f32 / 1e5 - 0.5).collect();
    params[CONFIG.V * CONFIG.C..layout.range(Param::Wte).end].fill(0.0);
    ModelFile { config: CONFIG, dropout: DropoutRates::NONE, params }
}

/// The bytes, a merge and an end of text.
fn words() -> ByteLevel {
    let gpt2 = Tokenizer::gpt2().byte_level().unwrap();
    let tokens = gpt2.tokens[..257].iter().cloned().chain(["<|endoftext|>".to_owned()]).collect();
    ByteLevel { tokens, added: vec![(257, true)], merges: gpt2.merges[..1].to_vec(), eot: 257, ..gpt2 }
}

fn small_tokenizer() -> Tokenizer {
    Tokenizer::from_byte_level("small".to_owned(), &words()).unwrap()
}

fn written(stored: Stored) -> (tempfile::TempDir, std::path::PathBuf, ModelFile) {
    let directory = tempfile::tempdir().unwrap();
    let (path, model) = (directory.path().join("new/tiny.gguf"), model());
    write(&path, &model, stored, &small_tokenizer()).unwrap();
    (directory, path, model)
}

#[test]
fn models_come_back_in_every_type() {
    for (stored, tolerance) in [
        (Stored::Float(Dtype::F32), 0.0),
        (Stored::Float(Dtype::F16), 2f32.powi(-12)),
        (Stored::Float(Dtype::Bf16), 2f32.powi(-9)),
        // Half a step of 1/127 of the largest of a block, and the rounding of its scale.
        (Stored::Q8_0, 0.5 * (0.5 / 127.0 + 2f32.powi(-11))),
    ] {
        let (_directory, path, model) = written(stored);
        let found = find_model(&path).unwrap();
        let back = found.read().unwrap();
        assert_eq!((back.config, back.params.len()), (CONFIG, model.params.len()));
        let layout = ParamLayout::new(&CONFIG);
        for spec in &PARAMS {
            let range = layout.range(spec.param);
            let is_wide = !spec.is_matrix || spec.param == Param::Wpe;
            let tolerance = if is_wide { 0.0 } else { tolerance };
            for (was, is) in model.params[range.clone()].iter().zip(&back.params[range]) {
                assert!((was - is).abs() <= tolerance, "{stored}, {}: {was} became {is}", spec.name);
            }
        }
        assert_eq!(found.tokenizer().unwrap().unwrap().id(), small_tokenizer().id());
    }
}

#[test]
fn a_file_is_what_llama_cpp_reads() {
    let (_directory, path, model) = written(Stored::Float(Dtype::F32));
    let bytes = fs::read(&path).unwrap();
    let found = Container::open(&path).unwrap();
    assert_eq!(bytes[..8], *b"GGUF\x03\0\0\0");
    assert_eq!(bytes[8..24], [4 + 2 * 12, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0]);
    for (key, value) in [
        ("general.architecture", Value::Text("gpt2".to_owned())),
        ("general.name", Value::Text("tiny".to_owned())),
        ("general.file_type", Value::U32(0)),
        ("gpt2.feed_forward_length", Value::U32(128)),
        ("gpt2.attention.layer_norm_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.pre", Value::Text("gpt-2".to_owned())),
        ("tokenizer.ggml.eos_token_id", Value::U32(257)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ] {
        assert_eq!(found.metadata[key], value, "{key}");
    }
    let tokens = found.texts("tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens[299].as_str()), (300, "[PAD299]"));
    let Value::I32s(types) = &found.metadata["tokenizer.ggml.token_type"] else { panic!("no types") };
    assert_eq!(types[256..259], [NORMAL, CONTROL, UNUSED]);
    let layout = ParamLayout::new(&CONFIG);
    let at = |name: &str, row: usize, column: usize| {
        let info = &found.tensors[name];
        assert!(info.start.is_multiple_of(32));
        let place = info.start as usize + 4 * (row * info.shape.last().unwrap() + column);
        f32::from_le_bytes(bytes[place..place + 4].try_into().unwrap())
    };
    let expected = |param: Param, index: usize| model.params[layout.range(param).start + index];
    assert_eq!(found.tensors["blk.1.attn_qkv.weight"].shape, [96, 32]);
    assert_eq!(at("blk.1.attn_qkv.weight", 13, 4), expected(Param::Qkvw, 96 * 32 + 13 * 32 + 4));
    assert_eq!(found.tensors["blk.1.ffn_down.weight"].shape, [32, 128]);
    assert_eq!(at("blk.1.ffn_down.weight", 3, 20), expected(Param::Fcprojw, 32 * 128 + 3 * 128 + 20));
    assert_eq!(at("token_embd.weight", 299, 31), expected(Param::Wte, 299 * 32 + 31));
    assert_eq!(at("blk.0.ffn_up.bias", 0, 20), expected(Param::Fcb, 20));
    assert_eq!(at("output_norm.bias", 0, 31), expected(Param::Lnfb, 31));
}

/// Writes the model of [`model`] after a change of its description, with a copy of the embedding as
/// the head.
fn written_by_others(path: &Path, change: &dyn Fn(&mut Metadata), head: f32) {
    let model = model();
    let f32s = Stored::Float(Dtype::F32);
    let mut metadata = shape_metadata(path, &CONFIG, f32s).unwrap();
    metadata.extend(tokenizer_metadata(&CONFIG, words()));
    change(&mut metadata);
    let mut all = entries(&CONFIG);
    all.push(Entry {
        name: HEAD.to_owned(),
        shape: all[0].shape.clone(),
        range: all[0].range.clone(),
        is_wide: true,
    });
    let named: Vec<_> = all.iter().map(|entry| (entry.name.clone(), entry.shape.clone(), f32s)).collect();
    let mut out = container::header(&metadata, &named).unwrap();
    for entry in &all {
        out.extend(bytemuck::cast_slice(&model.params[entry.range.clone()]));
        out.resize(out.len().next_multiple_of(32), 0);
    }
    let first = out.len() - 4 * CONFIG.V * CONFIG.C;
    out[first..first + 4].copy_from_slice(&head.to_le_bytes());
    fs::write(path, out).unwrap();
}

/// Returns the refusal of a file, which names it.
fn refusal(path: &Path) -> String {
    let error = format!("{:#}", load_model(path).unwrap_err());
    assert!(error.contains("x.gguf") && error.lines().count() == 1, "{error}");
    error
}

#[test]
fn files_of_other_writers_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.gguf");
    let head = model().params[0];
    let set = |key: &str, value: Value| {
        let key = key.to_owned();
        move |metadata: &mut Metadata| {
            metadata.retain(|(other, _)| *other != key);
            metadata.push((key.clone(), value.clone()));
        }
    };
    written_by_others(&path, &|metadata| metadata.retain(|(key, _)| key != "tokenizer.ggml.pre"), head);
    assert_eq!(load_model(&path).unwrap(), model());
    assert_eq!(tokenizer(&path).unwrap().unwrap().id(), small_tokenizer().id());
    let mut bytes = fs::read(&path).unwrap();
    bytes[4] = 2;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(load_model(&path).unwrap(), model(), "version 2");
    bytes[4] = 1;
    fs::write(&path, &bytes).unwrap();
    assert!(refusal(&path).contains("expected version 3 of GGUF, found 1"));

    written_by_others(&path, &set(QKV_BIAS, Value::Bool(false)), head);
    assert!(refusal(&path).contains("attn_qkv.bias has values, but warpsmith.qkv_bias"));
    written_by_others(&path, &|_| {}, head + 1.0);
    assert!(refusal(&path).contains("output.weight differs from token_embd.weight"));
    for (key, value, expected) in [
        ("general.architecture", Value::Text("llama".to_owned()), "architecture gpt2, found llama"),
        ("gpt2.feed_forward_length", Value::U32(100), "feed_forward_length of 4 times 32, found 100"),
        ("gpt2.block_count", Value::U32(3), "expected a tensor blk.2.attn_norm.weight of shape [32]"),
        ("gpt2.block_count", Value::U32(1), "found tensor blk.1.attn_norm.bias, which is not part"),
        ("gpt2.block_count", Value::F32(-1.0), "expected a count gpt2.block_count, found -1"),
        ("gpt2.context_length", Value::U32(8), "position_embd.weight of shape [8, 32], found [7, 32]"),
        ("gpt2.attention.head_count", Value::U32(5), "5 heads"),
        ("gpt2.attention.head_count_kv", Value::U32(1), "as many heads of keys and values as 2, found 1"),
        ("gpt2.attention.layer_norm_epsilon", Value::F32(1e-6), "of 0.00001, found 0.000001"),
        ("general.alignment", Value::U32(24), "expected a power of two"),
    ] {
        written_by_others(&path, &set(key, value), head);
        let message = refusal(&path);
        assert!(message.contains(expected), "{key}: {message}");
    }
    for (key, value, expected) in [
        (
            "tokenizer.ggml.model",
            Value::Text("llama".to_owned()),
            "expected byte-level BPE (gpt2), found llama",
        ),
        ("tokenizer.ggml.pre", Value::Text("tekken".to_owned()), "tokenizer.ggml.pre: expected gpt-2"),
        ("tokenizer.ggml.eos_token_id", Value::U32(300), "expected ids of 258 tokens, found 300"),
        ("tokenizer.ggml.token_type", Value::I32s(vec![1]), "expected 300 types of tokens, found 1"),
    ] {
        written_by_others(&path, &set(key, value), head);
        let message = format!("{:#}", tokenizer(&path).unwrap_err());
        assert!(message.contains(expected) && message.contains("x.gguf"), "{key}: {message}");
    }
}

#[test]
fn damage_is_one_line() {
    let (directory, path, _) = written(Stored::Q8_0);
    let good = fs::read(&path).unwrap();
    let path = directory.path().join("x.gguf");
    let damaged = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        refusal(&path)
    };
    // A header cut at every byte ends in the middle of something.
    for len in (0..400).chain([good.len() - 4096]) {
        damaged(&good[..len]);
    }
    let at = |text: &[u8]| good.windows(text.len()).position(|window| window == text).unwrap();
    let edit = |place: usize, to: &[u8]| {
        let mut bytes = good.clone();
        bytes[place..place + to.len()].copy_from_slice(to);
        damaged(&bytes)
    };
    let kind = at(b"token_embd.weight") + 17 + 4 + 16;
    assert!(
        edit(kind, &12u32.to_le_bytes()).contains("tensor token_embd.weight: expected one of the types f32,")
    );
    assert!(
        edit(kind + 4, &1u64.to_le_bytes()).contains("tensor token_embd.weight: expected [300, 32] elements")
    );
    assert!(edit(kind - 8, &u64::MAX.to_le_bytes()).contains("elements of q8_0"));
    assert!(edit(at(b"position_embd.weight"), b"token_embd.weightxxx").contains("position_embd.weight"));
    assert!(edit(24, &u64::MAX.to_le_bytes()).contains("more bytes, found"));
    assert!(edit(16, &u64::MAX.to_le_bytes()).contains("x.gguf: "));
    assert!(edit(0, b"GGUG").contains("found one that starts with"));
}

#[test]
fn what_llama_cpp_has_no_word_for_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.gguf");
    let mut odd = model();
    odd.config.C = 24;
    let write = |model: &ModelFile, stored: Stored| {
        format!("{:#}", super::write(&path, model, stored, &small_tokenizer()).unwrap_err())
    };
    let error = write(&odd, Stored::Q8_0);
    assert!(error.contains("blocks of 32 elements, into which 24 channels do not divide"), "{error}");
    assert!(write(&model(), Stored::Float(Dtype::I32)).contains("expected a type of floats, found i32"));
    assert!(!path.exists());
}
