//! Hugging Face's format.

use super::*;
use ::safetensors::SafeTensors;
use serde_json::{Value, json};

/// A model that `transformers` could have saved.
fn saved(directory: &Path, dtype: Dtype) -> (ModelFile, std::path::PathBuf) {
    let model = tiny_model();
    save_model(directory, &model, dtype).unwrap();
    (model, directory.join("model.safetensors"))
}

/// The tensors of a file, which can be changed and written back with `put`.
type Raw = std::collections::BTreeMap<String, (::safetensors::Dtype, Vec<usize>, Vec<u8>)>;

fn take(path: &Path) -> Raw {
    let bytes = fs::read(path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let tensors =
        parsed.iter().map(|(name, t)| (name.to_string(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())));
    tensors.collect()
}

fn put(path: &Path, raw: &Raw) {
    let views = raw.iter().map(|(name, (dtype, shape, data))| {
        (name, ::safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(path, ::safetensors::serialize(views, None).unwrap()).unwrap();
}

fn edit_config(directory: &Path, field: &str, value: Value) {
    let path = directory.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn models_come_back_in_every_type() {
    for (dtype, tolerance) in [(Dtype::F32, 0.0), (Dtype::F16, 2f32.powi(-12)), (Dtype::Bf16, 2f32.powi(-9))]
    {
        let directory = tempfile::tempdir().unwrap();
        let (model, path) = saved(directory.path(), dtype);
        for from in [directory.path(), &path] {
            let back = load_model(from).unwrap();
            assert_eq!(back.config, model.config);
            for (i, (was, is)) in model.params.iter().zip(&back.params).enumerate() {
                assert!((was - is).abs() <= tolerance, "{dtype:?}, element {i}: {was} became {is}");
            }
        }
    }
}

#[test]
fn names_and_transposes_are_those_of_transformers() {
    let directory = tempfile::tempdir().unwrap();
    let (model, path) = saved(directory.path(), Dtype::F32);
    let raw = take(&path);
    // 4 tensors besides 3 layers of 12.
    assert_eq!(raw.len(), 40);
    let value = |name: &str, row: usize, column: usize| {
        let (_, shape, data) = &raw[name];
        let floats: Vec<f32> = bytemuck::pod_collect_to_vec(data);
        floats[row * shape.get(1).copied().unwrap_or(0) + column]
    };
    let layout = ParamLayout::new(&model.config);
    let at = |param: Param, index: usize| model.params[layout.range(param).start + index];
    assert_eq!(raw["transformer.wte.weight"].1, [50, 6]);
    assert_eq!(value("transformer.wte.weight", 49, 5), at(Param::Wte, 49 * 6 + 5));
    assert_eq!(raw["transformer.wpe.weight"].1, [7, 6]);
    // (in, out) in the file; layer 2, output 13, input 4 in memory.
    assert_eq!(raw["transformer.h.2.attn.c_attn.weight"].1, [6, 18]);
    assert_eq!(value("transformer.h.2.attn.c_attn.weight", 4, 13), at(Param::Qkvw, 2 * 18 * 6 + 13 * 6 + 4));
    assert_eq!(raw["transformer.h.1.attn.c_proj.weight"].1, [6, 6]);
    assert_eq!(value("transformer.h.1.attn.c_proj.weight", 1, 5), at(Param::Attprojw, 36 + 5 * 6 + 1));
    assert_eq!(raw["transformer.h.0.mlp.c_fc.weight"].1, [6, 24]);
    assert_eq!(value("transformer.h.0.mlp.c_fc.weight", 3, 20), at(Param::Fcw, 20 * 6 + 3));
    assert_eq!(raw["transformer.h.2.mlp.c_proj.weight"].1, [24, 6]);
    assert_eq!(value("transformer.h.2.mlp.c_proj.weight", 20, 3), at(Param::Fcprojw, 2 * 144 + 3 * 24 + 20));
    assert_eq!(raw["transformer.h.1.mlp.c_fc.bias"].1, [24]);
    assert_eq!(value("transformer.ln_f.bias", 0, 5), at(Param::Lnfb, 5));
    let bytes = fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    assert!(header.is_multiple_of(8));
}

#[test]
fn older_spellings_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let (model, path) = saved(directory.path(), Dtype::F32);
    let mut raw: Raw =
        take(&path).into_iter().map(|(name, t)| (name.replace("transformer.", ""), t)).collect();
    raw.insert("h.0.attn.bias".into(), (::safetensors::Dtype::BOOL, vec![1, 1, 7, 7], vec![1; 49]));
    raw.insert("h.2.attn.masked_bias".into(), (::safetensors::Dtype::F32, vec![], vec![0; 4]));
    raw.insert("lm_head.weight".into(), raw["wte.weight"].clone());
    put(&path, &raw);
    assert_eq!(load_model(&path).unwrap(), model);

    raw.get_mut("lm_head.weight").unwrap().2[0] ^= 1;
    put(&path, &raw);
    assert_refused(load_model(&path), &path, "lm_head.weight differs");
}

#[test]
fn a_model_in_several_files_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (model, path) = saved(directory.path(), Dtype::F32);
    let mut first = take(&path);
    let second = first.split_off("transformer.h.1.mlp.c_fc.bias");
    fs::remove_file(&path).unwrap();
    let mut map = serde_json::Map::new();
    for (file, raw) in [("a.safetensors", &first), ("b.safetensors", &second)] {
        put(&directory.path().join(file), raw);
        map.extend(raw.keys().map(|name| (name.clone(), json!(file))));
    }
    let index = directory.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    assert_eq!(load_model(directory.path()).unwrap(), model);
    fs::remove_file(directory.path().join("b.safetensors")).unwrap();
    assert_refused(load_model(directory.path()), Path::new("b.safetensors"), "cannot read");
    fs::write(&index, "{}").unwrap();
    assert_refused(load_model(directory.path()), &index, "weight_map");
    for name in ["../a.safetensors", "/dev/zero", "..", "", "a/b"] {
        fs::write(&index, json!({"weight_map": {"wte.weight": name}}).to_string()).unwrap();
        assert_refused(load_model(directory.path()), &index, "expected plain names of files");
    }
}

#[test]
fn a_model_saved_by_its_head_alone_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (model, path) = saved(directory.path(), Dtype::F32);
    let mut raw = take(&path);
    let wte = raw.remove("transformer.wte.weight").unwrap();
    raw.insert("lm_head.weight".into(), wte);
    put(&path, &raw);
    assert_eq!(load_model(&path).unwrap(), model);
}

#[cfg(unix)]
#[test]
fn devices_and_pipes_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = saved(directory.path(), Dtype::F32);
    for file in [&path, &directory.path().join("config.json")] {
        let kept = fs::read(file).unwrap();
        fs::remove_file(file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", file).unwrap();
        assert_refused(load_model(directory.path()), file, "not a regular file but a device");
        fs::remove_file(file).unwrap();
        fs::write(file, kept).unwrap();
    }
    load_model(directory.path()).unwrap();
    let config = directory.path().join("config.json");
    fs::File::create(&config).unwrap().set_len(17 << 20).unwrap();
    assert_refused(load_model(directory.path()), &config, "expected at most");
}

#[test]
fn tensors_of_another_model_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = saved(directory.path(), Dtype::F32);
    let good = take(&path);
    let edit = |expected: &str, change: &dyn Fn(&mut Raw)| {
        let mut raw = good.clone();
        change(&mut raw);
        put(&path, &raw);
        assert_refused(load_model(&path), &path, expected);
    };
    let f32s = |shape: &[usize]| {
        (::safetensors::Dtype::F32, shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()])
    };
    edit("expected a tensor h.1.ln_2.bias of shape [6], found none", &|raw| {
        raw.remove("transformer.h.1.ln_2.bias");
    });
    edit("found tensor h.1.attn.q_norm.weight, which is not part", &|raw| {
        raw.insert("transformer.h.1.attn.q_norm.weight".into(), f32s(&[6]));
    });
    edit("expected tensor h.0.mlp.c_fc.weight of shape [6, 24], found [24, 6]", &|raw| {
        raw.insert("transformer.h.0.mlp.c_fc.weight".into(), f32s(&[24, 6]));
    });
    edit("twice", &|raw| {
        raw.insert("ln_f.bias".into(), f32s(&[6]));
    });
    edit("expected F32, F16 or BF16 in tensor ln_f.bias, found F64", &|raw| {
        raw.insert("transformer.ln_f.bias".into(), (::safetensors::Dtype::F64, vec![6], vec![0; 48]));
    });
    edit("such as model.norm.weight", &|raw| {
        raw.clear();
        raw.insert("model.norm.weight".into(), f32s(&[6]));
    });
    edit("the 3 layers that config.json says, found 1", &|raw| {
        raw.remove("transformer.h.1.ln_1.weight");
    });
    edit("such as none", &|raw| raw.clear());
}

#[test]
fn other_dialects_are_refused() {
    let cases = [
        ("model_type", json!("llama"), "found \"llama\""),
        ("activation_function", json!("relu"), "gelu_new"),
        ("layer_norm_epsilon", json!(1e-6), "layer_norm_epsilon"),
        ("n_inner", json!(23), "n_inner"),
        ("scale_attn_weights", json!(false), "scale_attn_weights"),
        ("scale_attn_by_inverse_layer_idx", json!(true), "inverse_layer"),
        ("n_head", json!(4), "4 heads"),
        ("n_head", json!(null), "config.json"),
        ("n_layer", json!(1 << 20), "layers"),
        ("vocab_size", json!(u64::MAX), "config.json"),
        ("n_positions", json!(8), "wpe.weight of shape [8, 6], found [7, 6]"),
        ("qkv_bias", json!(false), "no such bias"),
    ];
    for (field, value, expected) in cases {
        let directory = tempfile::tempdir().unwrap();
        saved(directory.path(), Dtype::F32);
        edit_config(directory.path(), field, value);
        let Err(error) = load_model(directory.path()) else { panic!("{field}: accepted") };
        let message = format!("{error:#}");
        assert!(message.contains(expected) && message.lines().count() == 1, "{field}: {message}");
    }
    let directory = tempfile::tempdir().unwrap();
    let (model, _) = saved(directory.path(), Dtype::F32);
    edit_config(directory.path(), "activation_function", json!("gelu_pytorch_tanh"));
    edit_config(directory.path(), "n_inner", json!(24));
    assert_eq!(load_model(directory.path()).unwrap(), model);
    let config = directory.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, ["\u{feff}", &text].concat()).unwrap();
    assert_eq!(load_model(directory.path()).unwrap(), model);
}

#[test]
fn heads_are_guessed_only_where_they_can_be() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = saved(directory.path(), Dtype::F32);
    fs::remove_file(directory.path().join("config.json")).unwrap();
    assert_refused(load_model(&path), &path, "config.json");

    let config = ModelConfig { maxT: 4, V: 9, Vp: 128, L: 2, NH: 2, C: 128, qkv_bias: true, lora: None };
    let model =
        ModelFile { config, dropout: DropoutRates::NONE, params: vec![0.0; ParamLayout::new(&config).len()] };
    save_model(&path, &model, Dtype::Bf16).unwrap();
    fs::remove_file(directory.path().join("config.json")).unwrap();
    assert_eq!(load_model(&path).unwrap(), model);
}

#[test]
fn models_without_qkv_bias_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut model = tiny_model();
    model.config.qkv_bias = false;
    model.params[ParamLayout::new(&model.config).range(Param::Qkvb)].fill(0.0);
    save_model(directory.path(), &model, Dtype::F32).unwrap();
    assert_eq!(load_model(directory.path()).unwrap(), model);
}

#[test]
fn torn_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = saved(directory.path(), Dtype::Bf16);
    let bytes = fs::read(&path).unwrap();
    for cut in [9, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..cut]).unwrap();
        message(load_model(&path), &path);
    }
    fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    assert_refused(load_model(&path), &path, "bytes");
    // The header is longer than any memory.
    fs::write(&path, [&(u64::MAX - 3).to_le_bytes(), &b"{\"a\": 1}"[..]].concat()).unwrap();
    message(load_model(&path), &path);
    let file = fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut &file, &[&200_000_000u64.to_le_bytes()[..], b"{"].concat()).unwrap();
    file.set_len(300_000_000).unwrap();
    assert_refused(load_model(&path), &path, "a header of at most 100000000 bytes");
}

#[test]
fn directories_with_nothing_to_load_say_what_was_expected() {
    let directory = tempfile::tempdir().unwrap();
    let message = format!("{:#}", load_model(directory.path()).unwrap_err());
    assert!(message.contains("model.safetensors") && message.contains("DONE"), "{message}");
}
