//! llm.c's model and state files.

use super::*;
use crate::checkpoint::model_bin::ModelReader;
use crate::checkpoint::state::StateReader;
use crate::llmc::MODEL;
use half::bf16;

fn write_bytes(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

/// Returns `bytes` with header field `index` replaced.
fn with_field(bytes: &[u8], index: usize, value: i32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
    bytes
}

#[test]
fn f32_models_come_back_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    let mut model = tiny_model();
    let odd =
        [f32::NAN, -f32::NAN, f32::INFINITY, -0.0, f32::MIN_POSITIVE / 2.0, f32::from_bits(0x7f80_0001)];
    model.params[..odd.len()].copy_from_slice(&odd);
    save_model(&path, &model, Dtype::F32).unwrap();
    let back = load_model(&path).unwrap();
    assert_eq!(back.config, model.config);
    assert_eq!(bits_of(&back.params), bits_of(&model.params));
}

#[test]
fn the_layout_is_that_of_llm_c() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    let model = tiny_model();
    for (dtype, version, size) in [(Dtype::F32, 3, 4), (Dtype::Bf16, 5, 2)] {
        save_model(&path, &model, dtype).unwrap();
        let bytes = fs::read(&path).unwrap();
        let header: Vec<i32> =
            bytes[..1024].chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(header[..8], [20240326, version, 7, 50, 3, 2, 6, 128]);
        assert!(header[8..].iter().all(|&field| field == 0));
        // The sum of llm.c's tensor sizes, written out.
        let elements =
            128 * 6 + 7 * 6 + 3 * (2 * 6 + 18 * 6 + 18 + 6 * 6 + 6 + 2 * 6 + 24 * 6 + 24 + 6 * 24 + 6) + 12;
        assert_eq!(bytes.len(), 1024 + size * elements);
    }
}

#[test]
fn long_tensors_pass_in_chunks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    let config = ModelConfig { maxT: 1, V: 1, Vp: 5, L: 1, NH: 1, C: 300, qkv_bias: true, lora: None };
    let len = ParamLayout::new(&config).len();
    assert!(len > 1 << 20 && !len.is_multiple_of(1 << 20), "{len} elements make no two chunks");
    let tensors = Tensors::random(3, len);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        model_bin::write(&path, &config, dtype, &mut tensors.source()).unwrap();
        let expected: Vec<f32> = match dtype {
            Dtype::F32 => tensors.0[0].clone(),
            _ => tensors.0[0].iter().map(|&p| bf16::from_f32(p).to_f32()).collect(),
        };
        assert_eq!(bits_of(&load_model(&path).unwrap().params), bits_of(&expected));
    }
}

#[test]
fn bf16_rounds_to_nearest_even() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    let mut model = tiny_model();
    // Bits before and after rounding: exact, below, at and above a tie (even and odd), carry into
    // the exponent, overflow to infinity, infinities, zeros, subnormals.
    let cases = [
        (0x3f80_0000, 0x3f80),
        (0x3f80_7fff, 0x3f80),
        (0x3f80_8000, 0x3f80),
        (0x3f80_8001, 0x3f81),
        (0x3f81_8000, 0x3f82),
        (0x3fff_8000, 0x4000),
        (0xbf81_8000, 0xbf82),
        (0x7f7f_ffff, 0x7f80),
        (0xff7f_8000, 0xff80),
        (0x7f80_0000, 0x7f80),
        (0xff80_0000, 0xff80),
        (0x8000_0000, 0x8000),
        (0x0000_8000, 0x0000),
        (0x0001_8000, 0x0002),
        (0x007f_ffff, 0x0080),
    ];
    for (param, case) in model.params.iter_mut().zip(cases) {
        *param = f32::from_bits(case.0);
    }
    let nans = [0x7fc0_0000, 0x7f80_0001, 0xffff_ffff].map(f32::from_bits);
    model.params[cases.len()..cases.len() + nans.len()].copy_from_slice(&nans);
    save_model(&path, &model, Dtype::Bf16).unwrap();

    let bytes = fs::read(&path).unwrap();
    for (i, case) in cases.iter().enumerate() {
        let stored = u16::from_le_bytes([bytes[1024 + 2 * i], bytes[1025 + 2 * i]]);
        assert_eq!(stored, case.1, "{:08x}", case.0);
    }
    let back = load_model(&path).unwrap();
    assert!(back.params[cases.len()..cases.len() + nans.len()].iter().all(|p| p.is_nan()));
    // Values that are bf16 already do not change by a bit.
    save_model(&path, &back, Dtype::Bf16).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn models_without_qkv_bias_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    let mut model = tiny_model();
    model.config.qkv_bias = false;
    save_model(&path, &model, Dtype::F32).unwrap();
    assert_refused(load_model(&path), &path, "qkvb has values");
    model.params[ParamLayout::new(&model.config).range(Param::Qkvb)].fill(0.0);
    save_model(&path, &model, Dtype::F32).unwrap();
    assert_eq!(load_model(&path).unwrap(), model);
}

#[test]
fn every_wrong_field_of_a_model_header_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    save_model(&path, &tiny_model(), Dtype::F32).unwrap();
    let good = fs::read(&path).unwrap();
    let cases = [
        (0, 20240520, "expected a model (magic 20240326), found a token shard"),
        (0, 20240527, "found an optimizer state"),
        (0, 20240327, "found a debug state"),
        (0, 1, "found magic 1"),
        (1, 1, "found version 1"),
        (1, 5, "bytes"),
        (2, 0, "maxT"),
        (2, -1, "maxT"),
        (2, 8, "bytes"),
        (3, 0, "V is 0"),
        (3, 129, "padded size"),
        (4, i32::MAX, "layers"),
        (4, 1 << 20, "layers"),
        (4, 10_000, "bytes"),
        (5, 4, "4 heads"),
        (5, 0, "heads"),
        (6, 8, "bytes"),
        (6, i32::MIN, "channels"),
        (7, 0, "Vp"),
        (7, 1 << 20, "bytes"),
        (8, 2, "field 8"),
    ];
    for (index, value, expected) in cases {
        write_bytes(&path, &with_field(&good, index, value));
        assert_refused(load_model(&path), &path, expected);
    }
    // All dimensions are at their limit, and the size is absurd.
    let mut huge = with_field(&good, 4, 10_000);
    for index in [2, 3, 6, 7] {
        huge = with_field(&huge, index, 1 << 20);
    }
    write_bytes(&path, &huge);
    assert_refused(load_model(&path), &path, "parameters; expected at most");
}

#[test]
fn models_cut_short_or_too_long_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    save_model(&path, &tiny_model(), Dtype::Bf16).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    for len in [0, 1, 3, 4, 5, 1023, 1024, 1025, bytes.len() - 1] {
        write_bytes(&path, &bytes[..len]);
        message(load_model(&path), &path);
    }
    bytes.push(0);
    write_bytes(&path, &bytes);
    assert_refused(load_model(&path), &path, "bytes");
    write_bytes(&path, b"PK\x03\x04 and so on");
    assert_refused(load_model(&path), &path, "PyTorch");
    assert_refused(
        load_model(&path.with_file_name("none.bin")),
        &path.with_file_name("none.bin"),
        "cannot read",
    );
}

#[test]
fn states_come_back_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state_00000007_00000.bin");
    let config = tiny_model().config;
    let layout = ParamLayout::new(&config);
    let len = layout.len();
    let block = |i: &usize| PARAMS.iter().any(|s| s.is_block_matrix() && layout.range(s.param).contains(i));
    let narrow = |values: &[f32]| values.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect();
    for case in 0..16 {
        let [master, shuffle, muon, is_bf16] = [1, 2, 4, 8].map(|bit| case & bit != 0);
        let dtype = if is_bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let state = State { muon, dtype, ..tiny_state(7, master, shuffle) };
        let mut tensors = Tensors::random(5, len);
        write_state(&path, &state, &config, &mut tensors.source()).unwrap();
        if is_bf16 {
            [1, 2].into_iter().for_each(|kind| tensors.0[kind] = narrow(&tensors.0[kind]));
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), state.size(&config) as u64);
        let reader = StateReader::open(&path, &config).unwrap();
        assert_eq!(reader.state, state);
        let mut back = Tensors::poisoned(len);
        reader.read(&mut back.sink()).unwrap();
        assert_eq!(bits_of(&back.0[1]), bits_of(&tensors.0[1]));
        for i in 0..len {
            match muon && block(&i) {
                true => assert!(back.0[2][i].is_nan(), "v of Muon's matrices is in no file"),
                false => assert_eq!(back.0[2][i].to_bits(), tensors.0[2][i].to_bits()),
            }
        }
        assert_eq!(back.0[3][0].is_nan(), !master);
        if master {
            assert_eq!(bits_of(&back.0[3]), bits_of(&tensors.0[3]));
        }
        assert!(back.0[0].iter().all(|p| p.is_nan()), "a state file has no parameters");
    }
}

#[test]
fn the_state_layout_is_that_of_llm_c() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state_00000007_00000.bin");
    let tensors = Tensors::random(5, 30);
    write_state(&path, &tiny_state(7, true, true), &SMALLEST, &mut tensors.source()).unwrap();
    let bytes = fs::read(&path).unwrap();
    let i32_at = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let fields = [0, 1, 2, 3, 4, 5, 10].map(|index| i32_at(4 * index));
    assert_eq!(fields, [20240527, 1, 1, 0, 1, 1, 7]);
    let wide = [20, 22, 30, 32].map(|index| u64_at(4 * index));
    assert_eq!(wide, [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 2, 5]);
    assert_eq!(&bytes[1024..1144], bytemuck::cast_slice::<f32, u8>(&tensors.0[1]));
    assert_eq!(&bytes[1264..1384], bytemuck::cast_slice::<f32, u8>(&tensors.0[3]));
    let shuffle = &bytes[1384..];
    assert_eq!(shuffle.len(), 8 + 3 * 4 + 8 + 5 * 4 + 2520);
    assert_eq!((u64_at(1384), i32_at(1392), u64_at(1404), i32_at(1412)), (3, 2, 5, 4));
    assert_eq!(shuffle[48..52], [1, 2, 3, 4]);
}

#[test]
fn wrong_states_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state_00000007_00000.bin");
    let random = Tensors::random(5, 30);
    write_state(&path, &tiny_state(7, false, true), &SMALLEST, &mut random.source()).unwrap();
    let good = fs::read(&path).unwrap();
    // Byte offsets of the shuffle block.
    let (shards, samples) = (1264 / 4, 1284 / 4);
    let cases = [
        (0, MODEL.magic, "expected an optimizer state (magic 20240527), found a model"),
        (1, 3, "version 3"),
        (2, 0, "of 0 processes"),
        (2, -3, "of -3 processes"),
        (3, 1, "rank 1 of 1"),
        (3, -1, "rank -1"),
        (4, 1, ""),
        (4, 2, "field 4"),
        (5, 0, "bytes"),
        (5, -1, "field 5"),
        (10, -1, "step"),
        (30, 3, "shard 3 of 3"),
        (31, 1, "shard"),
        (32, 6, "6 samples"),
        (shards, 4, ""),
        (shards + 1, -1, "count of"),
        (shards + 2, 3, "has 3,"),
        (shards + 2, 0, "out of range or repeated"),
        (shards + 2, -1, "has -1,"),
        (samples, 6, ""),
        (samples + 1, i32::MAX, "count of"),
        (samples + 2, 5, "has 5,"),
    ];
    for (index, value, expected) in cases {
        write_bytes(&path, &with_field(&good, index, value));
        assert_refused(StateReader::open(&path, &SMALLEST), &path, expected);
    }
    for cut in [0, 4, 1023, 1024, 1260, 1264, 1271, 1272, 1290, good.len() - 2520, good.len() - 1] {
        write_bytes(&path, &good[..cut]);
        message(StateReader::open(&path, &SMALLEST), &path);
    }
    write_bytes(&path, &[&good[..], &[0]].concat());
    assert_refused(StateReader::open(&path, &SMALLEST), &path, "bytes");
    write_bytes(&path, &good);
    assert!(StateReader::open(&path, &SMALLEST).is_ok());
    for maxT in [1, 3] {
        message(StateReader::open(&path, &ModelConfig { maxT, ..SMALLEST }), &path);
    }
    let too_far = tiny_state(1 << 31, false, false);
    let result = write_state(&path, &too_far, &SMALLEST, &mut random.source());
    assert_refused(result, &path, "more than the format can hold");
    assert_eq!(fs::read(&path).unwrap(), good);
}

/// Random bytes, random bytes after a valid start, and valid files with random damage give an error
/// or a model, and never a panic.
#[test]
fn garbage_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let (path, safetensors) = (directory.path().join("model.bin"), directory.path().join("m.safetensors"));
    let model = tiny_model();
    save_model(&path, &model, Dtype::Bf16).unwrap();
    let model_bytes = fs::read(&path).unwrap();
    save_model(&safetensors, &model, Dtype::Bf16).unwrap();
    let safetensors_bytes = fs::read(&safetensors).unwrap();
    let random = Tensors::random(5, 30);
    write_state(&path, &tiny_state(7, false, true), &SMALLEST, &mut random.source()).unwrap();
    let state_bytes = fs::read(&path).unwrap();
    let mut bits = Bits(9);
    let mut refused = 0;
    for round in 0..1500 {
        let original = [&model_bytes, &state_bytes, &safetensors_bytes][round % 3];
        // Damage matters most in the headers.
        let sensitive = original.len().min(3000) as u64;
        let mut bytes = original.clone();
        match bits.next() % 3 {
            0 => (0..1 + bits.next() % 4).for_each(|_| {
                bytes[(bits.next() % sensitive) as usize] = bits.next() as u8;
            }),
            1 => {
                let keep = (bits.next() % sensitive) as usize;
                bytes.truncate(keep);
                bytes.extend((0..bits.next() % 2000).map(|_| bits.next() as u8));
            }
            _ => bytes = (0..bits.next() % 4000).map(|_| bits.next() as u8).collect(),
        }
        write_bytes(&path, &bytes);
        refused += usize::from(load_model(&path).is_err());
        refused += usize::from(StateReader::open(&path, &SMALLEST).is_err());
    }
    assert!(refused > 1500, "only {refused} of 3000 were refused");
}

#[test]
fn readers_give_the_type_away_before_reading() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.bin");
    let model = tiny_model();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        save_model(&path, &model, dtype).unwrap();
        let reader = ModelReader::open(&path).unwrap();
        assert_eq!((reader.dtype, reader.config), (dtype, model.config));
    }
    assert_refused(save_model(&path, &model, Dtype::F16), &path, "expected f32 or bf16");
    assert_eq!(load_model(&path).unwrap().config, model.config);
}
