//! The container of GGUF, version 3: metadata as keys and values, then the names, shapes, types and
//! places of tensors, then their data. All numbers are little-endian.
//!
//! Source: docs/gguf.md of ggml.

use super::elements::size;
use crate::files;
use crate::tensor::{Dtype, Stored};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

pub const MAGIC: &[u8; 4] = b"GGUF";

const VERSION: u32 = 3;

/// The version before, which differs in nothing that is read here.
const EARLIER_VERSION: u32 = 2;

/// Bytes to a multiple of which the data of each tensor start, unless the metadata say otherwise.
const ALIGNMENT: usize = 32;

const ALIGNMENT_KEY: &str = "general.alignment";

/// Most dimensions of a tensor in ggml.
const MAX_DIMS: u32 = 4;

/// The types of tensors that are written and read: ggml's number, and the number that
/// `general.file_type` has for a file with matrices of this type.
const TYPES: [(Stored, u32, u32); 4] = [
    (Stored::Float(Dtype::F32), 0, 0),
    (Stored::Float(Dtype::F16), 1, 1),
    (Stored::Q8_0, 8, 7),
    (Stored::Float(Dtype::Bf16), 30, 32),
];

/// The value of `general.file_type` of a file with matrices of this type.
///
/// # Errors
/// If GGUF has no such type.
pub fn file_type(stored: Stored) -> Result<u32> {
    number(stored).map(|(_, file_type)| file_type)
}

fn number(stored: Stored) -> Result<(u32, u32)> {
    let known = TYPES.iter().find(|known| known.0 == stored);
    let known = known.with_context(|| format!("expected a type of floats, found {stored}"))?;
    Ok((known.1, known.2))
}

/// Keys and their values, in the order in which they are written.
pub type Metadata = Vec<(String, Value)>;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    /// A number of another type, which is only read.
    Number(f64),
    /// An array of other numbers, which is passed over.
    Other,
}

/// Numbers of types of values in a file.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a number by its type in a file; `None` for a text, an array or an unknown type.
fn size_of(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Rows, then columns, as elsewhere in this program; the file has them in reverse.
    pub shape: Vec<usize>,
    pub stored: Stored,
    /// First byte of its data in the file.
    pub start: u64,
}

/// The bytes of a file before its data, and after them the zeros up to the first tensor. Tensors
/// have a name, a shape and a type, and follow one another, each with [`padding`] after it.
///
/// # Errors
/// If a tensor's type is not one of GGUF.
pub fn header(metadata: &[(String, Value)], tensors: &[(String, Vec<usize>, Stored)]) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut out, key);
        put(&mut out, value);
    }
    let mut offset = 0;
    for (name, shape, stored) in tensors {
        put_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        out.extend(number(*stored)?.0.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        let bytes = size(*stored, shape.iter().product());
        let bytes =
            bytes.with_context(|| format!("tensor {name}: {shape:?} are no whole blocks of {stored}"))?;
        offset += bytes + padding(bytes);
    }
    out.resize(out.len() + padding(out.len()), 0);
    Ok(out)
}

/// Zeros after so many bytes, to keep what follows aligned.
pub fn padding(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT) - bytes
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    let number = |out: &mut Vec<u8>, kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
        out.extend(ARRAY.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Value::U32(value) => number(out, U32, &value.to_le_bytes()),
        Value::F32(value) => number(out, F32, &value.to_le_bytes()),
        Value::Bool(bit) => number(out, BOOL, &[u8::from(*bit)]),
        Value::Text(text) => {
            out.extend(TEXT.to_le_bytes());
            put_text(out, text);
        }
        Value::Texts(texts) => {
            array(out, TEXT, texts.len());
            texts.iter().for_each(|text| put_text(out, text));
        }
        Value::I32s(numbers) => {
            array(out, I32, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::Number(_) | Value::Other => panic!("{value:?} is only read"),
    }
}

/// An open file whose header has been read.
pub struct Container {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Info>,
    pub file: File,
}

impl Container {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// One line that names the file, if it cannot be read, is damaged, or has tensors of a type
    /// that is not supported.
    pub fn open(path: &Path) -> Result<Container> {
        let (file, found) = files::open(path)?;
        let mut header = Header { left: found.len(), input: BufReader::new(file) };
        header.read().with_context(|| path.display().to_string())
    }
}

/// The header of a file, as it is read.
struct Header {
    input: BufReader<File>,
    /// Bytes to the end of the file. No length that it states is believed beyond that.
    left: u64,
}

impl Header {
    fn read(&mut self) -> Result<Container> {
        let bytes = self.left;
        let magic: [u8; 4] = self.array()?;
        ensure!(magic == *MAGIC, "expected a GGUF file, found one that starts with {magic:?}");
        let version = self.u32()?;
        ensure!(
            [EARLIER_VERSION, VERSION].contains(&version),
            "expected version {VERSION} of GGUF, found {version}; convert the model again with llama.cpp"
        );
        let [tensor_count, value_count] = [self.u64()?, self.u64()?];
        let mut metadata = BTreeMap::new();
        for _ in 0..value_count {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind).with_context(|| format!("value of {key}"))?;
            ensure!(metadata.insert(key.clone(), value).is_none(), "the key {key} is there twice");
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = self.text()?;
            let info = self.info().with_context(|| format!("tensor {name}"))?;
            ensure!(tensors.insert(name.clone(), info).is_none(), "tensor {name} is there twice");
        }
        let alignment = match metadata.get(ALIGNMENT_KEY) {
            None => ALIGNMENT as u64,
            Some(&Value::U32(alignment)) if alignment.is_power_of_two() => u64::from(alignment),
            Some(other) => bail!("{ALIGNMENT_KEY}: expected a power of two, found {other:?}"),
        };
        let data = (bytes - self.left).next_multiple_of(alignment);
        for (name, info) in &mut tensors {
            let len = info.shape.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim));
            let size = len.and_then(|len| size(info.stored, len)).map(|size| size as u64);
            let start = data.checked_add(info.start).filter(|_| info.start.is_multiple_of(alignment));
            let end = start.zip(size).and_then(|(start, size)| start.checked_add(size));
            ensure!(
                end.is_some_and(|end| end <= bytes),
                "tensor {name}: expected {:?} elements of {} from byte {} of the data on, found a file of {bytes} bytes",
                info.shape,
                info.stored,
                info.start
            );
            info.start += data;
        }
        let file = self.input.get_ref().try_clone()?;
        Ok(Container { metadata, tensors, file })
    }

    /// Name and place of a tensor, whose start is that in the data.
    fn info(&mut self) -> Result<Info> {
        let dims = self.u32()?;
        ensure!((1..=MAX_DIMS).contains(&dims), "expected 1 to {MAX_DIMS} dimensions, found {dims}");
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.insert(0, usize::try_from(self.u64()?)?);
        }
        let number = self.u32()?;
        let known = TYPES.iter().find(|known| known.1 == number).map(|known| known.0);
        let stored = known.with_context(|| {
            let names = TYPES.map(|(stored, ..)| stored.to_string()).join(", ");
            format!("expected one of the types {names}, found ggml's type {number}; take the model in one of these")
        })?;
        Ok(Info { shape, stored, start: self.u64()? })
    }

    fn value(&mut self, kind: u32) -> Result<Value> {
        match kind {
            TEXT => self.text().map(Value::Text),
            ARRAY => self.list(),
            _ => self.number(kind),
        }
    }

    fn number(&mut self, kind: u32) -> Result<Value> {
        Ok(match kind {
            U32 => Value::U32(self.u32()?),
            F32 => Value::F32(f32::from_bits(self.u32()?)),
            BOOL => Value::Bool(self.array::<1>()? != [0]),
            0 => Value::Number(self.array::<1>()?[0].into()),
            1 => Value::Number(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Number(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Number(i16::from_le_bytes(self.array()?).into()),
            I32 => Value::Number(i32::from_le_bytes(self.array()?).into()),
            10 => Value::Number(self.u64()? as f64),
            11 => Value::Number(i64::from_le_bytes(self.array()?) as f64),
            12 => Value::Number(f64::from_le_bytes(self.array()?)),
            other => bail!("expected one of the types 0 to 12, found {other}"),
        })
    }

    fn list(&mut self) -> Result<Value> {
        let (kind, len) = (self.u32()?, self.u64()?);
        if kind == TEXT {
            let texts = (0..len).map(|_| self.text());
            return texts.collect::<Result<_>>().map(Value::Texts);
        }
        let size =
            size_of(kind).with_context(|| format!("expected an array of numbers or texts, found {kind}"))?;
        let bytes = len.checked_mul(size as u64).filter(|&bytes| bytes <= self.left);
        let bytes = bytes.with_context(|| format!("expected {len} elements, found the end of the file"))?;
        let bytes = self.bytes(bytes)?;
        Ok(match kind {
            I32 => Value::I32s(bytemuck::pod_collect_to_vec(&bytes)),
            _ => Value::Other,
        })
    }

    fn text(&mut self) -> Result<String> {
        let len = self.u64()?;
        let bytes = self.bytes(len)?;
        String::from_utf8(bytes).ok().context("expected UTF-8 text, found other bytes")
    }

    fn bytes(&mut self, len: u64) -> Result<Vec<u8>> {
        self.take(len)?;
        let mut bytes = vec![0; len as usize];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Counts bytes that are about to be read.
    fn take(&mut self, len: u64) -> Result<()> {
        let left = self.left.checked_sub(len);
        self.left = left.with_context(|| format!("expected {len} more bytes, found {}", self.left))?;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
}
